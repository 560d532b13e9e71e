"""The stand-in in the place of the host's `modules`, for as long as these tests run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

HERE = Path(__file__).parent
ADAPTER = (
    "a1111",
    "calibrating",
    "containers",
    "denoising",
    "exploring",
    "facts",
    "files",
    "flux",
    "forge",
    "initial",
    "job",
    "joint",
    "live",
    "own_job",
    "parts",
    "predictions",
    "prompts",
    "refusal",
    "single_stream",
    "static_text",
    "streams",
    "styling",
    "xyz",
)

HOSTS_OWN = ("modules", "backend", "ldm_patched", "modules_forge")


def _take_away(before: set[str]) -> None:
    """The stand-in and everything that has imported it."""
    import lib_masknoise.hosts

    for name in set(sys.modules) - before:
        if name.partition(".")[0] in HOSTS_OWN or name.startswith("lib_masknoise.hosts.webui"):
            del sys.modules[name]
    vars(lib_masknoise.hosts).pop("webui", None)


def _script() -> ModuleType:
    """The extension's own script, without its user interface."""
    names = "accordions", "calibrate", "explore", "keeping"  # which need gradio
    parts = {name: ModuleType(f"lib_masknoise.ui.{name}") for name in names}
    spec = importlib.util.spec_from_file_location("masknoise_script", HERE.parents[1] / "scripts" / "masknoise.py")
    module = importlib.util.module_from_spec(spec)
    import lib_masknoise.ui

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {part.__name__: part for part in parts.values()}))
        for name, part in parts.items():
            stack.enter_context(mock.patch.object(lib_masknoise.ui, name, part, create=True))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def _standin(tmp_path_factory):
    pytest.importorskip("ldm", reason="needs stable-diffusion-sdkit")
    pytest.importorskip("einops")
    pytest.importorskip("fastapi")
    before = set(sys.modules)
    sys.path.insert(0, str(HERE))
    try:
        from modules import scripts

        from tests.standin.host import Host
        from tests.standin.model import hijacked_ldm

        scripts.folder = str(tmp_path_factory.mktemp("extension"))
        adapter = {name: importlib.import_module(f"lib_masknoise.hosts.webui.{name}") for name in ADAPTER}
        adapter["attention"] = importlib.import_module("lib_masknoise.attention")
        adapter["jobs"] = adapter.pop("job")  # the host has a `job` of its own
        with hijacked_ldm():
            yield Host(_script(), adapter)
    finally:
        sys.path.remove(str(HERE))
        _take_away(before)


@pytest.fixture(scope="module")
def host(_standin):
    """The host, with the extension in it. `host.start()` starts it anew."""
    return _standin


@pytest.fixture(autouse=True)
def _fresh(_standin, tmp_path):
    _standin.start(folder=tmp_path)
    yield
    _standin.assert_clean()


@pytest.fixture
def conditions(monkeypatch):
    """The chunks of each call of Forge's model: 0 for conditions, 1 for negative ones."""
    from tests.standin import forge

    found = []

    def apply_model(model, *args, original=forge.Model.apply_model, **named):
        found.append(list(named["transformer_options"]["cond_or_uncond"]))
        return original(model, *args, **named)

    monkeypatch.setattr(forge.Model, "apply_model", apply_model)
    return found
