"""Digests of a large file by blocks, so that it can be verified on several cores while it arrives.

A SHA-256 is one long chain: on a processor without SHA instructions it is slower than the network (measured: 0.36 GB/s against
loopback at 0.5–0.9 GB/s). Blocks can be checked in parallel, and a damaged one is found when it arrives and not at the end.
The list is part of the manifest and thereby pinned by the manifest's own SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["BLOCK_ALGORITHM", "BLOCK_SIZE", "block_digest", "block_digests"]

BLOCK_ALGORITHM = "blake2b-256"
BLOCK_SIZE = 4 << 20
"""Bytes; the last block is as long as what is left."""


def block_digest(data: bytes | bytearray | memoryview) -> str:
    """The BLAKE2b digest of 32 bytes, as hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def block_digests(path: str | os.PathLike[str]) -> list[str]:
    """One digest a block of the file."""
    digests = []
    with open(Path(path), "rb") as file:
        while block := file.read(BLOCK_SIZE):
            digests.append(block_digest(block))
    return digests
