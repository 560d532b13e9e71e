"""Maps at other sizes and softer: `[..., H, W]` tensors, each axis on its own.

A size is (height, width) in elements; the centre of element i lies at i + 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_masknoise.window import WHOLE, Window

Size = tuple[int, int]


def extent(x: Tensor) -> Size:
    """The size (h, w) of `[…, h, w]`."""
    return x.shape[-2], x.shape[-1]


def feather(maps: Tensor, amount: float) -> Tensor:
    """Blur maps [..., H, W] so that a hard edge becomes a smoothstep ``amount`` of the shorter side wide.

    The kernel is the smoothstep's derivative 6t(1 − t) along each axis. Beyond the border a map goes on as it
    ends.
    """
    width = amount * min(maps.shape[-2:])
    if width <= 0:
        return maps
    rows, columns = (_blur_matrix(n, width).to(maps) for n in maps.shape[-2:])
    return (rows @ maps @ columns.T).clamp_(0, 1)


def resize(maps: Tensor, size: Size, window: Window = WHOLE) -> Tensor:
    """Maps [..., H, W], or a window of them, at another size [..., h, w], same dtype and device; each axis on its own.

    A shrinking axis takes exact area averages, whatever the ratio, so the mean is kept; a growing one
    Catmull-Rom splines. Values stay within the range of their own input map. Never nearest: a soft edge must
    stay soft.
    """
    if tuple(maps.shape[-2:]) == tuple(size) and window == WHOLE:
        return maps
    exact = maps if maps.dtype == torch.float64 else maps.float()
    low, high = exact.amin((-2, -1), keepdim=True), exact.amax((-2, -1), keepdim=True)
    spans = zip(window[:2], window[2:], strict=True)
    rows, columns = (
        _resize_matrix(n, m, span).to(exact) for n, m, span in zip(maps.shape[-2:], size, spans, strict=True)
    )
    return (rows @ exact @ columns.T).clamp(low, high).to(maps.dtype)


def level_size(size: Size, level: int) -> Size:
    """The size of a U-Net level: each of ``level`` halvings rounds up, which is ceil(n / 2^level)."""
    return -(-size[0] >> level), -(-size[1] >> level)


def level_with(size: Size, locations: int) -> Size:
    """The size of the U-Net level with that many locations, of a latent of ``size`` (h, w).

    A layer sees its queries as a list; their number alone would not tell the height from the width. Raises ValueError
    when no level has as many.
    """
    for level in range(8):
        height, width = level_size(size, level)
        if height * width == locations:
            return height, width
    raise ValueError(f"no level of a {size[0]}×{size[1]} latent has {locations} locations")


# --- Matrices along one axis


def _resize_matrix(n: int, m: int, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """[m, n] float64: area averages where the axis shrinks, Catmull-Rom splines where it grows. span: the part of the n
    elements that is wanted, in fractions; beyond the border they go on as they end."""
    start, step = span[0] * n, (span[1] - span[0]) * n / m
    if step >= 1:
        edges = torch.arange(m + 1, dtype=torch.float64)[:, None] * step + start
        covered = (edges - torch.arange(n)).clamp(0, 1)  # of each input element, up to each output edge
        covered[:, :1] += edges.clamp(max=0)
        covered[:, -1:] += (edges - n).clamp(min=0)
        return covered.diff(dim=0) / step
    places = (torch.arange(m, dtype=torch.float64) + 0.5) * step + start - 0.5
    first = places.floor().long()
    t = (places - first)[:, None]
    taps = torch.cat(  # Catmull & Rom 1974, as the cubic convolution of Keys 1981 with a = -1/2
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        1,
    )
    sources = (first[:, None] + torch.arange(-1, 3)).clamp(0, n - 1)
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(1, sources, taps)


def _blur_matrix(n: int, width: float) -> Tensor:
    """[n, n] float64: the kernel's share of each element, its tails beyond the border given to the
    outermost."""
    edges = torch.arange(1, n, dtype=torch.float64) - 0.5
    t = ((edges - torch.arange(n)[:, None]) / width + 0.5).clamp(0, 1)
    shares = torch.nn.functional.pad(t * t * (3 - 2 * t), (1, 0))
    return torch.nn.functional.pad(shares, (0, 1), value=1.0).diff(dim=1)
