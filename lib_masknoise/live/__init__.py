"""Live: a picture that follows the edits of its scene.

    engine = Engine(host)                                  # a host: hosts/diffusers/live.py
    request = engine.ask("a page", Wish(scene, settings), emit)

`emit` is called from the engine's thread with a `Picture` for every pass and a `Note` for everything else, until the
picture is the scene's. The newest request of a session ends the one before, between two steps.
"""

from lib_masknoise.live.engine import Engine, Note, Picture, Request, described
from lib_masknoise.live.host import FAINT, GLANCE, STEPS, Host, Settings, Step, Turns, Wish
from lib_masknoise.live.imprint import Imprint, imprint

__all__ = [
    "FAINT",
    "GLANCE",
    "STEPS",
    "Engine",
    "Host",
    "Imprint",
    "Note",
    "Picture",
    "Request",
    "Settings",
    "Step",
    "Turns",
    "Wish",
    "described",
    "imprint",
]
