"""The WebUI hosts: A1111, Forge and their kin.

`job` is a job's way through the host's hooks; `denoising` one sampling pass in it, whose rows `a1111`, `forge`,
`predictions` and `joint` each bring to the model in their host's way.
"""
