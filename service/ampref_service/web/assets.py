"""Style sheets, which lie in the package, and scripts, which `service/web` builds into `assets/`: `/assets/NAME`, for ever.

A name holds the hash of its content, so that a browser asks once for it. Nothing of this needs a key.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

BUILT = Path(__file__).with_name("assets")
"""Where `node build.mjs --out` of `service/web` puts the scripts."""

_STATIC = Path(__file__).with_name("static")
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


@dataclass(frozen=True)
class Asset:
    """A file that pages load."""

    name: str
    content: bytes

    @property
    def media_type(self) -> str:
        return f"{_MEDIA_TYPES[Path(self.name).suffix]}; charset=utf-8"


@dataclass(frozen=True)
class Assets:
    """Every file that pages load, by its name in an address.

    Args:
      style: the name of the style sheet.
      entries: `{"clip.js": {"file": NAME, "imports": [NAME, …]}}` of the built scripts; empty where they were not built.
    """

    by_name: Mapping[str, Asset]
    style: str
    icon: str
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def are_built(self) -> bool:
        """Whether the scripts are here."""
        return bool(self.entries)


@functools.cache
def load_assets() -> Assets:
    """The files of this installation."""
    icon = _hash_name("icon.svg", (_STATIC / "icon.svg").read_bytes())
    manifest = BUILT / "manifest.json"
    try:
        document = json.loads(manifest.read_bytes()) if manifest.is_file() else {}
    except ValueError:
        document = {}  # It was cut off while it was built.
    built = [
        Asset(path.name, path.read_bytes())
        for path in sorted(BUILT.glob("*"))
        if document and path.suffix in _MEDIA_TYPES and path.is_file()
    ]
    # Those of libraries first, so that ours may overrule them. One file, because each request takes its time.
    sheets = [asset.content for asset in built if asset.name.endswith(".css")]
    sheets += [
        files("amp_core").joinpath("page.css").read_bytes(),
        *(path.read_bytes() for path in sorted(_STATIC.glob("*.css"))),
    ]
    style = _hash_name("style.css", b"\n".join(sheets))
    return Assets(
        by_name={asset.name: asset for asset in (style, icon, *built)},
        style=style.name,
        icon=icon.name,
        entries=document.get("entries", {}),
    )


def _hash_name(name: str, content: bytes) -> Asset:
    stem, _, suffix = name.rpartition(".")
    return Asset(f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}", content)
