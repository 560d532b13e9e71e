"""Callbacks of the denoiser. What they raise is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from modules import errors

callback_map: dict[str, list[Any]] = {
    name: []
    for name in (
        "cfg_denoiser",
        "cfg_denoised",
        "cfg_after_cfg",
        "app_started",
        "before_ui",
        "infotext_pasted",
        "before_image_saved",
        "script_unloaded",
        "ui_settings",
    )
}


@dataclass
class CFGDenoiserParams:
    x: Any
    sigma: Any
    text_cond: Any
    text_uncond: Any
    denoiser: Any


@dataclass
class CFGDenoisedParams:
    x: Any
    inner_model: Any


@dataclass
class AfterCFGCallbackParams:
    x: Any


def _registration(name: str) -> Callable[[Callable[..., None]], None]:
    return lambda callback: callback_map[name].append(SimpleNamespace(callback=callback))


on_cfg_denoiser = _registration("cfg_denoiser")
on_cfg_denoised = _registration("cfg_denoised")
on_cfg_after_cfg = _registration("cfg_after_cfg")
on_app_started = _registration("app_started")
on_before_ui = _registration("before_ui")
on_before_image_saved = _registration("before_image_saved")
on_script_unloaded = _registration("script_unloaded")
on_ui_settings = _registration("ui_settings")
on_infotext_pasted = _registration("infotext_pasted")


def call(name: str, params: Any) -> None:
    for entry in list(callback_map[name]):
        errors.guarded(entry.callback, params)


def remove_callbacks_for_function(callback: Callable[..., None]) -> None:
    for entries in callback_map.values():
        entries[:] = [entry for entry in entries if entry.callback != callback]
