"""The built-in model, loaded once."""

import pytest


@pytest.fixture(scope="session")
def pipe():
    from lib_masknoise.hosts.diffusers import load_pipeline

    return load_pipeline(device="cpu")
