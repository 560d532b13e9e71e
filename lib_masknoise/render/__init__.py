"""A scene and its settings → a folder of frames, animations and a summary, here or on many machines."""

from lib_masknoise.render.job import write
from lib_masknoise.render.plan import PlanChanged
from lib_masknoise.settings import Settings

__all__ = ["PlanChanged", "Settings", "write"]
