"""The specification's physics reference schema: an export as the dictionary that the specification writes down.

An export is an `.npz`, which holds arrays; the schema also has numbers, texts and nested objects. Those are in one more
member, `meta`: canonical JSON in UTF-8, as a uint8 array. It has all 22 names of the schema. Where the schema has an array,
`meta` names the member that holds it, with its dtype and shape. `read_reference` puts both together again.

Nothing in `meta` depends on the day or the machine: `generation_timestamp` is the day on which the generator was released
(docs/errata.md, E13 and E17).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import IntegrityError, NotFound
from amp_core.npz import ARCHIVE_FAULTS
from amp_core.strict_json import canonical_json, read_json
from amp_core.version import GENERATOR_RELEASE_DATE

__all__ = [
    "FORCE_ARRAYS", "META", "PROVENANCE", "REFERENCE_ARRAYS", "REFERENCE_KEYS", "TIMESTAMP", "decode_meta", "describe_member",
    "encode_meta", "read_members", "read_meta", "read_reference",
]  # fmt: skip

Arrays = Mapping[str, NDArray[Any]]

META = "meta"
"""The member of an export that is no array of frames."""

REFERENCE_ARRAYS = (
    "features", "dof_pos", "dof_vel", "root_pos", "root_rot", "root_lin_vel", "root_ang_vel", "foot_contacts",
)  # fmt: skip
"""The arrays of the schema, (N, …) each."""

REFERENCE_KEYS = (
    "features", "feature_dim", "dof_pos", "dof_vel", "root_pos", "root_rot", "root_lin_vel", "root_ang_vel", "foot_contacts",
    "fps", "dt", "num_frames", "duration_sec", "tier", "quality_metrics", "generation_mode", "harness_params", "source_file",
    "robot", "joint_names", "generator_version", "generation_timestamp",
)  # fmt: skip
"""Every name of the schema, in its order."""

FORCE_ARRAYS = ("sum_fn_per_frame", "stab_force_per_frame")
"""The arrays that the schema has in `quality_metrics`, (N,) N each."""

PROVENANCE = "provenance"
"""The one name in `meta` that is not in the schema: what generated the export, for replaying and locking it."""

TIMESTAMP = f"{GENERATOR_RELEASE_DATE}T00:00:00Z"
"""`generation_timestamp` of exports of this generator."""

_MEMBER = "member"


def encode_meta(
    arrays: Arrays,
    *,
    dt: float,
    tier: int,
    tier_reason: str,
    quality_metrics: Mapping[str, float | int | None],
    generation_mode: str,
    harness_params: Mapping[str, Any],
    source_file: str,
    robot: str,
    joint_names: tuple[str, ...],
    generator_version: str,
    provenance: Mapping[str, Any],
) -> NDArray[np.uint8]:
    """The `meta` member of an export.

    Args:
      arrays: the export's other members.
      dt: s, a frame.
      quality_metrics: without the arrays and the tier, which the schema has in them too.
      provenance: what generated the export, JSON-ready.
    """
    frames = len(arrays["features"])
    document = {name: describe_member(arrays, name) for name in REFERENCE_ARRAYS} | {
        "feature_dim": int(arrays["features"].shape[1]),
        "fps": 1.0 / dt,
        "dt": dt,
        "num_frames": frames,
        "duration_sec": frames * dt,
        "tier": int(tier),
        "quality_metrics": {
            "tier": int(tier),
            "tier_reason": tier_reason,
            **quality_metrics,
            **{name: describe_member(arrays, name) for name in FORCE_ARRAYS},
        },
        "generation_mode": generation_mode,
        "harness_params": dict(harness_params),
        "source_file": source_file,
        "robot": robot,
        "joint_names": list(joint_names),
        "generator_version": generator_version,
        "generation_timestamp": TIMESTAMP,
        PROVENANCE: dict(provenance),
    }
    return np.frombuffer(canonical_json(document), np.uint8)


def describe_member(arrays: Arrays, name: str) -> dict[str, Any]:
    """What `meta` has in the place of an array: its member's name, dtype and shape."""
    array = arrays[name]
    return {_MEMBER: name, "dtype": array.dtype.name, "shape": list(array.shape)}


def decode_meta(member: NDArray[Any], file: str | None = None) -> dict[str, Any]:
    """The JSON object of a `meta` member: UTF-8 bytes, or a text of shape ().

    Raises:
      IntegrityError: it is neither, or no JSON object.
    """
    try:
        data = str(member[()]).encode() if member.dtype.kind == "U" else member.tobytes()
        document = read_json(data)
    except (ValueError, IndexError) as error:
        raise _meta_error(f"is not JSON ({error})", file) from error
    if not isinstance(document, dict):
        raise _meta_error("is not a JSON object", file)
    return document


def _meta_error(problem: str, file: str | None) -> IntegrityError:
    remedy = "Score the clip again"
    return IntegrityError(f"the member {problem}", file=file, key=META, expected="one JSON object in UTF-8", remedy=remedy)


def read_members(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Some members of an archive, read as a whole.

    Raises:
      NotFound: there is no member of one of these names.
      IntegrityError: no archive, or a member that only pickle reads.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise NotFound(
                    "there is no such array", file=str(path), key=missing[0], expected=f"one of {', '.join(archive.files)}"
                )
            return {name: archive[name] for name in names}
    except (*ARCHIVE_FAULTS, OSError, ValueError) as error:
        raise IntegrityError(
            f"the archive cannot be read ({error})",
            file=str(path),
            expected="an .npz of plain arrays",
            remedy="Make or download it again",
        ) from error


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `meta` of an export: the schema's names and `provenance`.

    Raises:
      NotFound: an export of a release before 0.12, which has none.
      IntegrityError: no archive, or `meta` is not a JSON object.
    """
    return decode_meta(read_members(path, [META])[META], str(path))


def read_reference(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An export as the specification's dictionary: its 22 names, with arrays where it has arrays.

        reference = read_reference("exports/walk.npz")
        reference["features"], reference["tier"], reference["quality_metrics"]["sum_fn_per_frame"]

    `quality_metrics` has the tier, its reason, every metric and the two arrays of forces. The file holds more arrays than the
    schema names (`numpy.load` shows them).

    Raises:
      NotFound: an export of a release before 0.12, which has no `meta`.
      IntegrityError: no archive; a name of the schema is missing; `meta` and an array do not fit.
    """
    meta = read_meta(path)
    missing = [name for name in REFERENCE_KEYS if name not in meta]
    if missing:
        raise IntegrityError(
            f"the member {META} lacks {', '.join(missing)}",
            file=str(path),
            key=META,
            expected=f"the names {', '.join(REFERENCE_KEYS)}",
            remedy="Score the clip again",
        )
    arrays = read_members(path, (*REFERENCE_ARRAYS, *FORCE_ARRAYS))

    def resolve(value: Any) -> Any:
        if not (isinstance(value, Mapping) and _MEMBER in value):
            return value
        array = arrays.get(value[_MEMBER])
        if array is None or (array.dtype.name, list(array.shape)) != (value.get("dtype"), value.get("shape")):
            actual = "missing" if array is None else f"{array.dtype.name} of shape {list(array.shape)}"
            raise IntegrityError(
                f"the array is {actual}",
                file=str(Path(path)),
                key=str(value[_MEMBER]),
                expected=f"{value.get('dtype')} of shape {value.get('shape')}, as {META} says",
                remedy="Score the clip again",
            )
        return array

    reference = {name: resolve(meta[name]) for name in REFERENCE_KEYS}
    reference["quality_metrics"] = {name: resolve(value) for name, value in reference["quality_metrics"].items()}
    return reference
