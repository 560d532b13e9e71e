"""A sound file's samples, by ffmpeg's decoders (PyAV)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

HIGHEST_RATE = 44100
"""Hz to which a sound is resampled from more."""


def read(path: str | os.PathLike[str], seconds: float | None = None) -> tuple[Array, int]:
    """The first sound in a file of any kind that ffmpeg reads (also a video's): the mean of its channels, float32
    ``[n]``, and its rate in Hz.

    seconds: as much of its beginning as is read, a little more; None for all. Raises FileNotFoundError, ValueError for
    a file that has no sound or cannot be decoded, ModuleNotFoundError without PyAV.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError('reading sound needs PyAV: pip install "av>=12"', name="av") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"{path}: no sound in it")
            return _decoded(container, container.streams.audio[0], seconds, path)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: cannot be read as sound: {error.strerror}") from None


def _decoded(container: Any, stream: Any, seconds: float | None, path: str | os.PathLike[str]) -> tuple[Array, int]:
    import av

    rate = min(stream.codec_context.sample_rate, HIGHEST_RATE)
    resampler = av.AudioResampler(format="fltp", rate=rate)
    parts: list[Array] = []
    length = 0
    for frame in container.decode(stream):
        frame.pts = None  # one sample after the other, whatever the file says of their times
        for channels in resampler.resample(frame):
            parts.append(channels.to_ndarray().mean(0))
            length += len(parts[-1])
        if seconds is not None and length > seconds * rate:
            break
    parts += [channels.to_ndarray().mean(0) for channels in resampler.resample(None)]
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise ValueError(f"{path}: no sound in it")
    return samples, rate
