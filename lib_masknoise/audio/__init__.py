"""Sound as numbers over frames, for keyframes: how loud it is, or where something sets in.

The numbers come from the samples alone (`loudness`, `onsets`), a few keys from the numbers (`keyframes`); `read` takes
the samples from a file. There is no beat, bar or tempo in it: what is heard as a beat shows only where it is loud.
"""

from lib_masknoise.audio.keys import keyframes, simplified
from lib_masknoise.audio.levels import BANDS, Band, loudness, onsets
from lib_masknoise.audio.reading import read

__all__ = ["BANDS", "Band", "keyframes", "loudness", "onsets", "read", "simplified"]
