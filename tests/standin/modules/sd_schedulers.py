"""Noise schedules by name."""

from types import SimpleNamespace

schedulers = [SimpleNamespace(name="automatic", label="Automatic"), SimpleNamespace(name="karras", label="Karras")]
