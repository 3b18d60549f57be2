"""What the tests of the client share: a retry that is soon over, addresses, and the files of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amp_core.client import Retry

QUICK = Retry(attempts=3, timeout=10, wait_initial=0.01, wait_max=0.02, connect=2, read=5)
DEAD = "http://127.0.0.1:9"  # The discard port: nothing listens there.
SPEC = "walk==0.11.0"


def same_files(pulled: Any, bundle: Any) -> bool:
    return all(path.read_bytes() == file.path.read_bytes() for path, file in zip(pulled.files, bundle.files, strict=True))


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "partial").iterdir())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
