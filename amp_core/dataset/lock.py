"""Locking: selected frames of scored rollouts become the three files of a version.

One pass over the frames feeds the archive, the dataset hash, the statistics and the coverage, so that memory holds one member's
frames at a time, however many members there are.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset.blocks import BLOCK_ALGORITHM, BLOCK_SIZE, block_digests
from amp_core.dataset.buckets import count_outcome, make_buckets
from amp_core.dataset.coverage import Coverage
from amp_core.dataset.manifest import MANIFEST_SCHEMA
from amp_core.dataset.members import Member, RobotLike, sort_members
from amp_core.dataset.names import check_dataset_name, file_names
from amp_core.dataset.statistics import ColumnStats
from amp_core.dataset.weights import describe_weighting, normalize_weights, raw_weight
from amp_core.digests import digest_of_file
from amp_core.errors import DiskFull, IntegrityError, PhysicsFailed, Unavailable
from amp_core.features import FeatureLayout, feature_code_hash
from amp_core.files import NO_ROOM, partial_path, publish_file
from amp_core.npz import NpzWriter
from amp_core.strict_json import canonical_json
from amp_core.version import GENERATOR_RELEASE_DATE, GENERATOR_VERSION

__all__ = ["Bundle", "BundleFile", "lock_bundle"]

_CANNOT_WRITE = NO_ROOM | {errno.EFBIG, errno.EROFS, errno.EACCES}
_STEP = 1 << 15  # Rows handled at once: about 3.5 MB of 27 float32.


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
    """The three files of a version, complete on disk.

    `duplicates` are the members that were left out, as the manifest has them: their frames are those of another one.
    """

    features: BundleFile
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
    def files(self) -> tuple[BundleFile, BundleFile, BundleFile]:
        return self.features, self.normalization_stats, self.manifest


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
) -> Bundle:
    """Write `features_v{V}.npz`, `normalization_stats_v{V}.json` and `dataset_manifest_v{V}.json` into `out_dir`.

    The same members give the same bytes, on any day and in whatever order they are passed: they are sorted by name, digest
    and recipe. Each file appears under its name only when it is complete and on disk; after an error none of them is left.

    Args:
      members: the rollouts. Their metadata is held, their frames are loaded one member at a time.
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
    distinct, duplicates = split_duplicates(sort_members(members))
    rows = _Rows(distinct, robot, gate_profile)
    with _staging(folder, names) as partial:
        rows.write(partial[names.features], progress)
        blocks = block_digests(partial[names.features])
        features = _publish(partial[names.features], folder / names.features)
        dataset_hash, code_hash = rows.digest, feature_code_hash()
        common = {
            "version": version,
            "dataset_hash": dataset_hash,
            "feature_code_hash": code_hash,
            "generation_date": GENERATOR_RELEASE_DATE,
            "num_clips": len(rows.members),
            "num_frames": rows.count,
        }
        stats = {
            **common,
            **rows.statistics.to_dict(),
            "clips": [{"name": member.name, "tier": member.worst_tier, "frames": member.frames} for member in rows.members],
        }
        partial[names.normalization_stats].write_bytes(canonical_json(stats))
        normalization = _publish(partial[names.normalization_stats], folder / names.normalization_stats)

        coverage = rows.coverage.to_dict()
        manifest = {
            **common,
            "schema": MANIFEST_SCHEMA,
            "name": name,
            "generator_version": GENERATOR_VERSION,
            "mujoco_version": mujoco_version,
            "robot": {"name": robot.name, "digest": robot.digest, "control_dt": float(robot.control_dt)},
            "joint_names": list(robot.joint_names),
            "feature_layout": robot.layout.to_dict(),
            "gate_profile": gate_profile,
            "gates": count_outcome(rows.members),
            "select": dict(select or {}),
            "waivers": [dict(waiver) for waiver in waivers],
            "verification": None if verification is None else dict(verification),
            "num_segments": len(rows.lengths),
            "weighting": describe_weighting(rows.weights, rows.lengths),
            "coverage": coverage,
            "buckets": [bucket.to_dict(dataset_hash) for bucket in rows.buckets],
            "files": {
                "features": features.to_dict()
                | {"blocks": {"algorithm": BLOCK_ALGORITHM, "size": BLOCK_SIZE, "digests": blocks}},
                "normalization_stats": normalization.to_dict(),
            },
            "clips": rows.clips,
            "duplicates": duplicates,
        }
        partial[names.manifest].write_bytes(canonical_json(manifest))
        manifest_file = _publish(partial[names.manifest], folder / names.manifest)
    counts = len(rows.members), rows.count, len(rows.lengths)
    return Bundle(features, normalization, manifest_file, dataset_hash, code_hash, *counts, coverage, tuple(duplicates))


def split_duplicates(members: Sequence[Member]) -> tuple[list[Member], list[dict[str, Any]]]:
    """The members with frames of their own, and the others, each with the first member of the same physics and features.

    A motion that is in the catalog twice (as two formats, or under two names) would weigh twice in the statistics and be drawn
    twice as often.

    Args:
      members: in the order of the version.

    Returns:
      The first of each set of equal members, and the manifest's `duplicates`: `{name, digest, recipe_digest, of}`.
    """

    def identify(member: Member) -> dict[str, Any]:
        return {"name": member.name, "digest": member.digest, "recipe_digest": member.recipe_digest}

    lengths = Counter((member.scale, member.frames) for member in members)
    originals: dict[tuple[Any, ...], Member] = {}
    distinct, duplicates = [], []
    for member in members:
        original = member
        # A member of a length of its own need not be read.
        if lengths[member.scale, member.frames] > 1:
            features, sha = member.load(), hashlib.sha256()
            for start, end in member.ranges:
                sha.update(np.ascontiguousarray(features[start:end]).data)
            original = originals.setdefault((member.scale, member.frames, sha.digest()), member)
        if original is member:
            distinct.append(member)
        else:
            duplicates.append(identify(member) | {"of": identify(original)})
    return distinct, duplicates


class _Rows:
    """The rows of a version, and what is computed from them while they are written.

    Attributes:
      lengths, weights: frames and weight of a frame of each segment.
      clips: the manifest's entries of the members written so far.
      count: rows written so far.
    """

    def __init__(self, members: Sequence[Member], robot: RobotLike, gate_profile: str) -> None:
        self.members, self.gate_profile = members, gate_profile
        self.layout = robot.layout
        self.buckets = make_buckets(members, robot.layout.dim)
        self.coverage = Coverage(robot.layout, robot.control_dt, robot.feet)
        self.lengths = [end - start for member in members for start, end in member.ranges]
        self._margins = [margins for member in members for margins in member.margins]
        self.weights = normalize_weights([raw_weight(margins) for margins in self._margins], self.lengths)
        self.clips: list[dict[str, Any]] = []
        self.count = 0
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The dataset hash: of the rows as little-endian float32."""
        return f"sha256:{self._sha.hexdigest()}"

    @property
    def statistics(self) -> ColumnStats:
        """The statistics of all rows."""
        stats = ColumnStats(self.layout.dim)
        for bucket in self.buckets:
            stats.merge(bucket.stats)
        return stats

    def write(self, path: Path, progress: Callable[[int, int], None] | None) -> None:
        """Write the features archive, member by member."""
        total = sum(self.lengths)
        owners: list[int] = []
        with open(path, "wb") as file, NpzWriter(file) as writer:
            writer.begin("features", (total, self.layout.dim), np.float32)
            for clip, member in enumerate(self.members):
                self._write_member(writer, member, first_segment=len(owners))
                owners += [clip] * len(member.ranges)
                if progress is not None:
                    progress(self.count, total)
            for key, values in (
                ("clip_index", np.asarray(owners, np.int32)),
                ("segment_index", np.arange(len(owners), dtype=np.int32)),
                ("sample_weight", np.asarray(self.weights, np.float32)),
            ):
                writer.add(key, np.repeat(values, self.lengths))

    def _write_member(self, writer: NpzWriter, member: Member, first_segment: int) -> None:
        index, bucket = next((i, bucket) for i, bucket in enumerate(self.buckets) if bucket.scale == member.scale)
        features = member.load()
        last = member.ranges[-1][1]
        dim = self.layout.dim
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != dim or len(features) < last:
            raise IntegrityError(
                f"the features of clip {member.name!r} are {features.dtype} of shape {features.shape}",
                key="features",
                expected=f"float32 of shape (at least {last}, {dim})",
                remedy="Score the clip again with this robot.",
            )
        self.coverage.begin_clip(member.name, member.source, original=member.source == member.digest)
        segments = []
        for segment, ((start, end), tier) in enumerate(zip(member.ranges, member.tiers, strict=True), first_segment):
            segments.append(
                {
                    **{"segment_index": segment, "start": int(start), "end": int(end), "row": self.count, "tier": tier},
                    **{"margins": self._margins[segment], "weight": self.weights[segment]},
                }
            )
            self.coverage.begin_segment(tier)
            for first in range(start, end, _STEP):
                rows = np.ascontiguousarray(features[first : min(end, first + _STEP)])
                _check_finite(rows, first, member, self.layout)
                writer.write(rows)
                self._sha.update(np.ascontiguousarray(rows, dtype="<f4").data)
                bucket.add(self.count, rows)
                self.coverage.add(rows)
                self.count += len(rows)
        self.clips.append(_describe_clip(member, index, segments) | {"gate_profile": self.gate_profile})


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
        "gates": [{key: convert(value, key) for key, value in gate.items()} for gate in member.gates],
    }


@contextmanager
def _staging(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Partial files to write to, by their final name. After an error neither they nor the finished files are left."""
    partial = {name: partial_path(folder / name) for name in names}
    try:
        yield partial
    except BaseException as error:
        for name, path in partial.items():
            path.unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise (DiskFull if error.errno in NO_ROOM else Unavailable)(
                f"the version cannot be written ({error.strerror or error})",
                file=str(folder),
                remedy="Make room there or give another folder, then lock again.",
            ) from error
        raise


def _publish(partial: Path, final: Path) -> BundleFile:
    """Put a finished partial file on disk under its name."""
    file = BundleFile(final, partial.stat().st_size, digest_of_file(partial))
    publish_file(partial, final, durable=True)
    return file
