"""Pictures as the frames of one animated PNG (the Portable Network Graphics specification, third edition, 2025).

Pillow leaves out frames that equal the one before, in some versions, and a sequence of masks would get shorter.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PER_SECOND = 12


def packed(files: list[bytes]) -> bytes:
    """PNG files of one size, mode and depth as one animated file, in their order; what else the first has stays."""
    parts, number = [SIGNATURE], 0
    for index, file in enumerate(files):
        chunks = list(_chunks(file))
        size = chunks[0][1][:8]
        if index == 0:
            parts += [_chunk(*chunks[0]), _chunk(b"acTL", struct.pack(">II", len(files), 0))]
            parts += [_chunk(kind, body) for kind, body in chunks[1:] if kind not in (b"IDAT", b"IEND")]
        # Offset 0, 0; how long it is shown; cleared before the next one, and laid over nothing.
        parts.append(_chunk(b"fcTL", struct.pack(">I8sIIHHBB", number, size, 0, 0, 1, PER_SECOND, 0, 0)))
        number += 1
        for body in (body for kind, body in chunks if kind == b"IDAT"):
            parts.append(_chunk(b"fdAT", struct.pack(">I", number) + body) if index else _chunk(b"IDAT", body))
            number += index > 0
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(file):
        (length,) = struct.unpack_from(">I", file, at)
        yield file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
