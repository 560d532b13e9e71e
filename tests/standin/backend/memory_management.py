"""Where models are put."""

from typing import Any

loaded: list[Any] = []


def load_models_gpu(models: list[Any], memory_required: int = 0) -> None:
    loaded[:] = models
