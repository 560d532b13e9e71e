"""Small networks that change the context before the keys and before the values: pairs of functions here."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def apply_hypernetworks(hypernetworks: list[Any], context: Tensor, layer: Any = None) -> tuple[Tensor, Tensor]:
    keys = values = context
    for of_keys, of_values in hypernetworks:
        keys, values = of_keys(keys), of_values(values)
    return keys, values
