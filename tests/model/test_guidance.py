"""The guidance scale where none is asked for."""

import json

import pytest

from lib_masknoise.render.studio import guidance


def test_what_was_asked_for_counts(tmp_path):
    assert guidance(1.5, str(tmp_path)) == 1.5 and guidance(None, None) == 4.0


@pytest.mark.parametrize(
    "kind, usual",
    [("FluxPipeline", 3.5), ("WanPipeline", 5.0), ("StableDiffusionPipeline", 7.0), ("NoPipeline", 7.0)],
)
def test_a_transformers_own_default(tmp_path, kind, usual):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    assert guidance(None, str(tmp_path)) == usual
    assert guidance(None, str(tmp_path / "model.safetensors")) == 7.0
