"""For all tests."""

from hypothesis import settings

# How busy the machine is must not decide; what must be quick is measured in bench/.
settings.register_profile("masknoise", deadline=None)
settings.load_profile("masknoise")
