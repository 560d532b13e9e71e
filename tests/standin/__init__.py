"""The A1111 adapter on the real `ldm` layers, inside a stand-in for the host.

`modules/` is the stand-in: what docs and the host's own behaviour say about the order of the hooks, the rows of a
denoiser call and the ways the U-Net is called, in as few lines as carry it. It is no WebUI: it samples noise with a
tiny random U-Net. `tests/webui` runs against a real one.
"""
