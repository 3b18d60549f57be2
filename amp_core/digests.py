"""How a SHA-256 is written everywhere: `sha256:` and 64 hex digits."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["digest_of", "digest_of_file"]


def digest_of(data: bytes) -> str:
    """`sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_file(path: Path | str) -> str:
    """`sha256:…` of a file, read in chunks."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
