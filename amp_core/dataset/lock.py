"""Locking: selected frames of scored rollouts become the files of a version.

One pass over the frames feeds the archives, the dataset hash, the statistics and the coverage, so that memory holds one
member's frames at a time, and of the other members what decides their order and weights.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset.blocks import BLOCK_ALGORITHM, BLOCK_SIZE, block_digests
from amp_core.dataset.buckets import Bucket, Outcome, make_buckets
from amp_core.dataset.coverage import Coverage
from amp_core.dataset.manifest import MANIFEST_SCHEMA, SHARDED_SCHEMA
from amp_core.dataset.members import Member, Place, RobotLike, sort_members
from amp_core.dataset.names import check_dataset_name, file_names, shard_names
from amp_core.dataset.statistics import ColumnStats
from amp_core.dataset.weights import describe_weighting, normalize_weights
from amp_core.digests import digest_of_file
from amp_core.errors import DiskFull, IntegrityError, PhysicsFailed, Unavailable
from amp_core.features import FeatureLayout, feature_code_hash
from amp_core.files import NO_ROOM, partial_path, publish_file, sync_file, sync_folder
from amp_core.npz import ALIGNMENT, PAGE_ALIGNMENT, NpzWriter
from amp_core.strict_json import canonical_json, format_json
from amp_core.version import GENERATOR_RELEASE_DATE, GENERATOR_VERSION

__all__ = ["SHARD_BYTES", "Bundle", "BundleFile", "lock_bundle"]

_CANNOT_WRITE = NO_ROOM | {errno.EFBIG, errno.EROFS, errno.EACCES}
_STEP = 1 << 15  # Rows handled at once: about 3.5 MB of 27 float32.
_HEADERS = 1 << 12  # More bytes than an archive of four members has beside their data and its alignment.

SHARD_BYTES = 256 << 20
"""The largest file of features; those of a larger version are shards."""


@dataclass(frozen=True)
class BundleFile:
    """One written file; `sha256` as `sha256:` and 64 hex digits."""

    path: Path
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name

    def to_dict(self) -> dict[str, Any]:
        """The file's entry in the manifest."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Bundle:
    """The files of a version, complete on disk.

    Args:
      shards: the features, in one file or several, in the order of their rows.
      duplicates: the members that were left out, as the manifest has them: their frames are those of another one.
    """

    shards: tuple[BundleFile, ...]
    normalization_stats: BundleFile
    manifest: BundleFile
    dataset_hash: str
    feature_code_hash: str
    num_clips: int
    num_frames: int
    num_segments: int
    coverage: Mapping[str, Any]
    duplicates: tuple[Mapping[str, Any], ...] = ()

    @property
    def features(self) -> BundleFile:
        """The one file with the features; `ValueError` where they are in several shards."""
        if len(self.shards) > 1:
            raise ValueError(f"the features are in {len(self.shards)} shards: use `shards`")
        return self.shards[0]

    @property
    def files(self) -> tuple[BundleFile, ...]:
        return *self.shards, self.normalization_stats, self.manifest


def lock_bundle(
    members: Iterable[Member],
    out_dir: str | os.PathLike[str],
    *,
    name: str,
    version: str,
    robot: RobotLike,
    mujoco_version: str,
    gate_profile: str,
    select: Mapping[str, Any] | None = None,
    waivers: Sequence[Mapping[str, Any]] = (),
    verification: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int | None = None,
) -> Bundle:
    """Write `features_v{V}.npz`, `normalization_stats_v{V}.json` and `dataset_manifest_v{V}.json` into `out_dir`.

    Features of more than `shard_bytes` (by default `SHARD_BYTES`) become shards, `features_v{V}-00001-of-0000N.npz`.

    The same members give the same bytes, on any day and in whatever order they are passed: they are sorted by name, digest
    and recipe. Files appear under their names when all of them are complete and on disk; an error leaves the folder as it was.

    Args:
      members: the rollouts. Of a `Sequence` each is asked for three times and not held, so that it may be made on access;
        their frames are loaded one member at a time.
      out_dir: an existing folder, for example of the job that locks.
      robot: every member was generated with this one.
      mujoco_version: of the generation.
      gate_profile: name of the profile that classified the members.
      select: the selection that the version was asked for, kept in the manifest.
      waivers: gates that were waived, with who and why; kept in the manifest.
      verification: report of the readiness tests; kept in the manifest.
      progress: called with frames done and frames in total, once a member.
    Raises:
      InputRefused: nothing was selected, a member comes twice, a frame range does not fit, a bad name or version.
      IntegrityError: a member's features are not the (N, F) float32 that its ranges and the robot call for.
      PhysicsFailed: a feature is NaN or infinite; names clip, frame and dimension.
      DiskFull, Unavailable: `out_dir` has no room or cannot be written.
    """
    check_dataset_name(name)
    names = file_names(version)
    folder = Path(out_dir)
    members = members if isinstance(members, Sequence) else list(members)
    places, duplicates = split_duplicates(members, sort_members(members))
    rows = _Rows(members, places, robot, gate_profile)
    shard_rows = _count_shard_rows(rows.total, robot.layout.dim, shard_bytes or SHARD_BYTES)
    # The rows of each shard.
    limits = [(first, min(first + shard_rows, rows.total)) for first in range(0, rows.total, shard_rows)]
    shards = shard_names(names.features, len(limits))
    with (
        _staging(folder, (*shards, names.normalization_stats, names.manifest)) as partial,
        tempfile.TemporaryFile(dir=folder) as clips,
    ):
        rows.write([partial[shard] for shard in shards], limits, clips, progress)
        features = tuple(_measure(partial[shard], folder / shard) for shard in shards)
        dataset_hash, code_hash = rows.digest, feature_code_hash()
        common = {
            "version": version,
            "dataset_hash": dataset_hash,
            "feature_code_hash": code_hash,
            "generation_date": GENERATOR_RELEASE_DATE,
            "num_clips": len(places),
            "num_frames": rows.total,
        }
        stats = {**common, **rows.statistics.to_dict(), "clips": rows.clips}
        partial[names.normalization_stats].write_bytes(canonical_json(stats))
        normalization = _measure(partial[names.normalization_stats], folder / names.normalization_stats)

        coverage = rows.coverage.to_dict()
        manifest = {
            **common,
            "schema": MANIFEST_SCHEMA if len(shards) == 1 else SHARDED_SCHEMA,
            "name": name,
            "generator_version": GENERATOR_VERSION,
            "mujoco_version": mujoco_version,
            "robot": {"name": robot.name, "digest": robot.digest, "control_dt": float(robot.control_dt)},
            "joint_names": list(robot.joint_names),
            "feature_layout": robot.layout.to_dict(),
            "gate_profile": gate_profile,
            "gates": rows.outcome.to_dict(),
            "select": dict(select or {}),
            "waivers": [dict(waiver) for waiver in waivers],
            "verification": None if verification is None else dict(verification),
            "num_segments": len(rows.lengths),
            "weighting": describe_weighting(rows.weights, rows.lengths),
            "coverage": coverage,
            "buckets": [bucket.to_dict(dataset_hash) for bucket in rows.buckets],
            "files": {
                "features": _describe_features(features, partial, limits),
                "normalization_stats": normalization.to_dict(),
            },
            "duplicates": duplicates,
        }
        _write_manifest(partial[names.manifest], manifest, clips)
        manifest_file = _measure(partial[names.manifest], folder / names.manifest)
        _publish(folder, partial, names.features)
    return Bundle(
        features,
        normalization,
        manifest_file,
        dataset_hash,
        code_hash,
        num_clips=len(places),
        num_frames=rows.total,
        num_segments=len(rows.lengths),
        coverage=coverage,
        duplicates=tuple(duplicates),
    )


def _count_shard_rows(total: int, dim: int, shard_bytes: int) -> int:
    """Rows of each shard but the last; all of them where one file is small enough."""
    row_bytes = 4 * (dim + 3)
    if total * row_bytes + _HEADERS <= shard_bytes:
        return total
    # So many rows of any array of four-byte elements fill whole pages.
    step = PAGE_ALIGNMENT // 4
    return max(step, (shard_bytes - 4 * PAGE_ALIGNMENT - _HEADERS) // row_bytes // step * step)


def _describe_features(
    shards: Sequence[BundleFile], partial: Mapping[str, Path], limits: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The features in the manifest's `files`."""
    entries = []
    for file, rows in zip(shards, limits, strict=True):
        blocks = {"algorithm": BLOCK_ALGORITHM, "size": BLOCK_SIZE, "digests": block_digests(partial[file.name])}
        entries.append(file.to_dict() | {"blocks": blocks} | ({"rows": list(rows)} if len(shards) > 1 else {}))
    return entries[0] if len(entries) == 1 else {"size": sum(file.size for file in shards), "shards": entries}


def _write_manifest(path: Path, manifest: Mapping[str, Any], clips: BinaryIO) -> None:
    """Write the manifest with the clips of the file, a line each: all of them together may be larger than the memory."""
    head, key, tail = canonical_json({**manifest, "clips": []}).partition(b'\n  "clips": [')
    with open(path, "wb") as file:
        file.write(head + key + b"\n")
        clips.seek(0)
        shutil.copyfileobj(clips, file)
        file.write(b"\n  " + tail)


def split_duplicates(members: Sequence[Member], places: Sequence[Place]) -> tuple[list[Place], list[dict[str, Any]]]:
    """The places of members with frames of their own, and the others, each with the first one of the same physics and features.

    A motion that is in the catalog twice (as two formats, or under two names) would weigh twice in the statistics and be drawn
    twice as often.

    Args:
      places: in the order of the version.

    Returns:
      The first of each set of equal members, and the manifest's `duplicates`: `{name, digest, recipe_digest, of}`.
    """

    def identify(place: Place) -> dict[str, Any]:
        return {"name": place.name, "digest": place.digest, "recipe_digest": place.recipe_digest}

    lengths = Counter((place.scale, place.frames) for place in places)
    originals: dict[tuple[Any, ...], Place] = {}
    distinct, duplicates = [], []
    for place in places:
        original = place
        # A member of a length of its own need not be read.
        if lengths[place.scale, place.frames] > 1:
            features, sha = members[place.number].load(), hashlib.sha256()
            for start, end in place.ranges:
                sha.update(np.ascontiguousarray(features[start:end]).data)
            original = originals.setdefault((place.scale, place.frames, sha.digest()), place)
        if original is place:
            distinct.append(place)
        else:
            duplicates.append(identify(place) | {"of": identify(original)})
    return distinct, duplicates


class _Rows:
    """The rows of a version, and what is computed from them while they are written.

    Attributes:
      lengths, weights: frames and weight of a frame of each segment.
      total: the number of rows.
      clips: the statistics' entries of the members that are written.
    """

    def __init__(self, members: Sequence[Member], places: Sequence[Place], robot: RobotLike, gate_profile: str) -> None:
        self.layout = robot.layout
        self.coverage = Coverage(robot.layout, robot.control_dt, robot.feet)
        self.outcome = Outcome()
        self.lengths = [end - start for place in places for start, end in place.ranges]
        self.weights = normalize_weights([weight for place in places for weight in place.raw_weights], self.lengths)
        self.total = sum(self.lengths)
        self.clips: list[dict[str, Any]] = []
        self._members, self._places, self._gate_profile = members, places, gate_profile
        self._buckets = make_buckets((place.scale for place in places), robot.layout.dim)
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The dataset hash: of the rows as little-endian float32."""
        return f"sha256:{self._sha.hexdigest()}"

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets in their order."""
        return list(self._buckets.values())

    @property
    def statistics(self) -> ColumnStats:
        """The statistics of all rows."""
        stats = ColumnStats(self.layout.dim)
        for bucket in self.buckets:
            stats.merge(bucket.stats)
        return stats

    def write(
        self,
        paths: Sequence[Path],
        limits: Sequence[tuple[int, int]],
        clips: BinaryIO,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Write the features' archives, each with the rows of its limits; the manifest's entries go to the file `clips`."""
        owners = np.repeat(np.arange(len(self._places), dtype=np.int32), [len(place.ranges) for place in self._places])
        weights, ends = np.asarray(self.weights, np.float32), np.cumsum(self.lengths)
        pieces = self._iterate(clips, progress)
        rest = next(pieces)
        alignment = ALIGNMENT if len(paths) == 1 else PAGE_ALIGNMENT
        for path, (first, last) in zip(paths, limits, strict=True):
            with open(path, "wb") as file, NpzWriter(file, alignment=alignment) as writer:
                writer.begin("features", (last - first, self.layout.dim), np.float32)
                count = first
                while count < last:
                    rows, rest = rest[: last - count], rest[last - count :]
                    writer.write(rows)
                    count += len(rows)
                    if not len(rest):
                        rest = next(pieces, rest)
                segments = np.searchsorted(ends, np.arange(first, last), side="right")
                writer.add("clip_index", owners[segments])
                writer.add("segment_index", segments.astype(np.int32))
                writer.add("sample_weight", weights[segments])

    def _iterate(self, clips: BinaryIO, progress: Callable[[int, int], None] | None) -> Iterator[NDArray[np.float32]]:
        """The rows in pieces; of each member whose rows were taken, its entry is in `clips`."""
        numbers = {scale: number for number, scale in enumerate(self._buckets)}
        count = segment = 0
        for place in self._places:
            member, bucket = self._members[place.number], self._buckets[place.scale]
            features = _load(member, self.layout.dim)
            self.coverage.begin_clip(member.name, member.source, original=member.source == member.digest)
            segments = []
            for (start, end), tier, margins in zip(place.ranges, member.tiers, member.margins, strict=True):
                segments.append(
                    {
                        **{"segment_index": segment, "start": start, "end": end, "row": count, "tier": tier},
                        **{"margins": margins, "weight": self.weights[segment]},
                    }
                )
                segment += 1
                self.coverage.begin_segment(tier)
                for first in range(start, end, _STEP):
                    rows = np.ascontiguousarray(features[first : min(end, first + _STEP)])
                    _check_finite(rows, first, member, self.layout)
                    self._sha.update(np.ascontiguousarray(rows, dtype="<f4").data)
                    bucket.add(count, rows)
                    self.coverage.add(rows)
                    count += len(rows)
                    yield rows
            self.outcome.add(member)
            bucket.outcome.add(member)
            self.clips.append({"name": member.name, "tier": member.worst_tier, "frames": place.frames})
            entry = _describe_clip(member, numbers[place.scale], segments) | {"gate_profile": self._gate_profile}
            separator = ",\n    " if len(self.clips) > 1 else "    "
            clips.write((separator + format_json(entry, sort_keys=True, separators=(",", ":"))).encode("utf-8"))
            if progress is not None:
                progress(count, self.total)


def _load(member: Member, dim: int) -> NDArray[np.float32]:
    features, last = member.load(), member.ranges[-1][1]
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != dim or len(features) < last:
        raise IntegrityError(
            f"the features of clip {member.name!r} are {features.dtype} of shape {features.shape}",
            key="features",
            expected=f"float32 of shape (at least {last}, {dim})",
            remedy="Score the clip again with this robot.",
        )
    return features


def _check_finite(rows: NDArray[np.float32], first: int, member: Member, layout: FeatureLayout) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise PhysicsFailed(
            f"feature {layout.names[column]!r} of clip {member.name!r} is {float(rows[row, column])}",
            key="features",
            frame=first + row,
            expected="finite numbers",
            remedy="Leave the clip out, or score it again.",
        )


def _describe_clip(member: Member, bucket: int, segments: list[dict[str, Any]]) -> dict[str, Any]:
    def convert(value: Any, key: str) -> Any:
        """A number as JSON can hold it: numpy's scalars become Python's, and what is not finite is refused."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            raise PhysicsFailed(f"clip {member.name!r} has a metric of {value}", key=key, expected="a finite number or null")
        if isinstance(value, (list, tuple)):
            return [convert(item, key) for item in value]
        return value

    return {
        "name": member.name,
        "digest": member.digest,
        "lineage": member.source,
        "parent": member.parent,
        "augmentation": member.augmentation,
        "tier": int(member.tier),
        "mode": member.mode,
        "recipe_digest": member.recipe_digest,
        "physics": asdict(member.scale),
        "bucket": bucket,
        "frames": int(member.frames),
        "segments": segments,
        "quality_metrics": {key: convert(value, key) for key, value in member.quality_metrics.items()},
    }


@contextmanager
def _staging(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Partial files to write to, by their final name. After an error none is left; what was there before is as it was."""
    partial = {name: partial_path(folder / name) for name in names}
    try:
        yield partial
    except BaseException as error:
        for path in partial.values():
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise (DiskFull if error.errno in NO_ROOM else Unavailable)(
                f"the version cannot be written ({error.strerror or error})",
                file=str(folder),
                remedy="Make room there or give another folder, then lock again.",
            ) from error
        raise


def _measure(partial: Path, final: Path) -> BundleFile:
    return BundleFile(final, partial.stat().st_size, digest_of_file(partial))


def _publish(folder: Path, partial: Mapping[str, Path], features: str) -> None:
    """Put the finished files on disk under their names, the manifest last; shards of an earlier build of the version go."""
    for path in partial.values():
        sync_file(path)
    stem, suffix = features.removesuffix(".npz"), re.compile(r"(-\d{5}-of-\d{5})?\.npz")
    stale = [path for path in folder.glob(f"{glob.escape(stem)}*.npz") if suffix.fullmatch(path.name.removeprefix(stem))]
    for path in stale:
        if path.name not in partial:
            path.unlink()
    for name, path in partial.items():
        publish_file(path, folder / name)
    sync_folder(folder)
