"""The manifest of a locked version, as a reader checks it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amp_core.errors import IntegrityError
from amp_core.strict_json import read_json

__all__ = ["MANIFEST_SCHEMA", "SHARDED_SCHEMA", "read_head", "read_json_object", "read_manifest"]

MANIFEST_SCHEMA = "ampref-dataset-manifest/1"
"""Names the manifest's keys and their meaning; a reader refuses a number that it does not know."""

SHARDED_SCHEMA = "ampref-dataset-manifest/2"
"""The same, with the features in shards: a reader of the first would look for a file that there is not."""

_TYPES = {"dataset_hash": str, "feature_code_hash": str, "num_clips": int, "num_frames": int, "feature_layout": dict}


def read_manifest(path: Path, name: str, version: str) -> dict[str, Any]:
    """The manifest in the file `path`.

    Raises:
      IntegrityError: it is not JSON, follows another schema, is of another dataset or version, or lacks a value.
    """
    manifest = read_json_object(path, "manifest")
    if manifest.get("schema") not in (MANIFEST_SCHEMA, SHARDED_SCHEMA):
        raise IntegrityError(
            f"the manifest follows {manifest.get('schema')!r}",
            file=str(path),
            key="schema",
            expected=f"{MANIFEST_SCHEMA} or {SHARDED_SCHEMA}",
            remedy="Install the release of ampref that the version was locked with, or a newer one.",
        )
    if (manifest.get("name"), manifest.get("version")) != (name, version):
        raise IntegrityError(
            f"the manifest is of {manifest.get('name')}=={manifest.get('version')}",
            file=str(path),
            expected=f"{name}=={version}",
            remedy="Check the pinned digest; if it is right, ask the service's operator.",
        )
    for key, kind in _TYPES.items():
        if type(manifest.get(key)) is not kind:
            raise IntegrityError("the manifest lacks a value", file=str(path), key=key, remedy="Lock the version again.")
    return manifest


def read_head(lines: Iterable[bytes]) -> dict[str, Any]:
    """What a manifest says but for its `clips`, which may be many times larger than the rest, line by line.

    Raises:
      IntegrityError: it is not canonical JSON.
    """
    head, is_clip = [], False
    for line in lines:
        is_clip = is_clip and line.rstrip(b",\n") != b"  ]"
        if not is_clip:
            head.append(line)
        is_clip = is_clip or line == b'  "clips": [\n'
    try:
        manifest = read_json(b"".join(head))
    except ValueError as error:
        raise IntegrityError("the manifest is not JSON", remedy="Lock the version again.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("feature_layout"), dict):
        raise IntegrityError("the manifest lacks a value", key="feature_layout", remedy="Lock the version again.")
    return manifest


def read_json_object(path: Path, kind: str = "file") -> dict[str, Any]:
    """The JSON object in a file of a locked version; `IntegrityError` when it holds anything else. `kind` is for messages."""
    try:
        value = read_json(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"the {kind} is not JSON", file=str(path), remedy="Lock the version again.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"the {kind} is not a JSON object", file=str(path), remedy="Lock the version again.")
    return value
