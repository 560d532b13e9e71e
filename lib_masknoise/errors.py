"""Errors of models, which whoever runs one shows as they are: one line each."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be used: which file, what it seems to be, and what was expected."""


class BrokenOutput(RuntimeError):
    """A model whose output is no picture: where its numbers stopped being finite, or who replaced it."""
