"""The useful range of every strength, found for a checkpoint: measured by one call of its denoiser, kept as a profile.

Knows no host. `profile` is what is kept, `effects` what is measured, `measuring` how.
"""
