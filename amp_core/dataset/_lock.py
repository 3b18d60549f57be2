"""Locking: selected frames of scored rollouts become the three files of a version.

One pass over the frames feeds the archive, the dataset hash and the statistics together, so that memory holds one member's
frames at a time, however many members there are.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset import _weights
from amp_core.dataset._blocks import BLOCK_ALGORITHM, BLOCK_SIZE, block_digests
from amp_core.dataset._buckets import Buckets, scale_of
from amp_core.dataset._coverage import Coverage, FootLike
from amp_core.dataset._names import check_dataset_name, file_names
from amp_core.errors import DiskFull, InputRefused, IntegrityError, PhysicsFailed, Unavailable
from amp_core.features import FeatureBlock, feature_code_hash
from amp_core.files import partial_path, publish_file
from amp_core.npz import NpzWriter
from amp_core.recipe import PhysicsScale
from amp_core.strict_json import canonical_json
from amp_core.tiers import Tier
from amp_core.version import GENERATOR_RELEASE_DATE, GENERATOR_VERSION

__all__ = ["MANIFEST_SCHEMA", "Bundle", "BundleFile", "LayoutLike", "Member", "RobotFacts", "RobotLike", "lock_bundle"]

MANIFEST_SCHEMA = "ampref-dataset-manifest/1"
"""Names the manifest's keys and their meaning; a reader refuses a number that it does not know."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_WRITE = _FULL | {errno.EFBIG, errno.EROFS, errno.EACCES}
_STEP = 1 << 15  # Rows handled at once: about 3.5 MB of 27 float32.


class LayoutLike(Protocol):
    """What locking needs of a `FeatureLayout`."""

    @property
    def dim(self) -> int: ...
    @property
    def names(self) -> Sequence[str]: ...
    def block(self, name: str) -> FeatureBlock: ...
    def to_dict(self) -> dict[str, Any]: ...


class RobotLike(Protocol):
    """What locking needs of a `Robot`."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def joint_names(self) -> Sequence[str]: ...
    @property
    def control_dt(self) -> float: ...
    @property
    def layout(self) -> LayoutLike: ...
    @property
    def feet(self) -> Sequence[FootLike]: ...


@dataclass(frozen=True)
class RobotFacts:
    """A robot as far as a dataset needs it, where no model is compiled.

    Args:
      digest: `sha256:` of the robot's specification and model files.
      control_dt: seconds a frame.
      feet: which contact channels are on one foot; when empty, each channel is a foot of its own.
    """

    name: str
    digest: str
    joint_names: tuple[str, ...]
    control_dt: float
    layout: LayoutLike
    feet: tuple[FootLike, ...] = ()


@dataclass(frozen=True)
class Member:
    """One scored rollout, and which of its frames a version takes.

    Args:
      name: the clip's name.
      digest: `sha256:` of the motion's bytes.
      tier: 0, 1 or -1: of the whole rollout.
      mode: the recipe's mode.
      recipe_digest: `sha256:` of the recipe.
      ranges: half-open frame ranges `(start, end)` in ascending order that do not overlap; each becomes one segment.
      quality_metrics: of the whole rollout; numbers or None.
      load: returns the whole rollout's features, (N, F) float32; called once, when its turn comes.
      gates: outcome of every gate, `{name, value, threshold, passed}`; of the whole rollout.
      range_tiers: of each range on its own, where windows of a clip were chosen; `tier` for each when empty.
      range_metrics: of each range on its own, for its weight; `quality_metrics` for each when empty. `WEIGHT_METRICS` are
        enough; one that is missing counts as a gate that has no value: no margin.
      lineage: digest of the motion at the root of this one's family; its own when empty. Coverage counts both as one source.
      parent, augmentation: of a variant, the digest of the motion that it was made from and what was done to it; else None.
      physics: the recipe's factors on friction, mass and damping; None, like a factor that is left out, is the robot's own.
    """

    name: str
    digest: str
    tier: int
    mode: str
    recipe_digest: str
    ranges: Sequence[tuple[int, int]]
    quality_metrics: Mapping[str, Any]
    load: Callable[[], NDArray[Any]]
    gates: Sequence[Mapping[str, Any]] = field(default=())
    range_tiers: Sequence[int] = ()
    range_metrics: Sequence[Mapping[str, Any]] = ()
    lineage: str = ""
    parent: str | None = None
    augmentation: str | None = None
    physics: Mapping[str, float] | None = None

    @property
    def scale(self) -> PhysicsScale:
        """The physics that it was generated in: its bucket."""
        return scale_of(self.physics)

    @property
    def frames(self) -> int:
        """How many frames the version takes."""
        return sum(end - start for start, end in self.ranges)

    @property
    def tiers(self) -> tuple[int, ...]:
        """The tier of each range."""
        return tuple(int(tier) for tier in self.range_tiers) or (int(self.tier),) * len(self.ranges)

    @property
    def source(self) -> str:
        """Digest of the clip that it comes from: its own, or that of the one it is a variant of."""
        return self.lineage or self.digest

    @property
    def margins(self) -> list[dict[str, float]]:
        """The margins of each range: what its weight is made of."""
        return [_weights.margins(metrics) for metrics in self.range_metrics or (self.quality_metrics,) * len(self.ranges)]

    @property
    def tier_taken(self) -> int:
        """The worst tier of the frames that the version takes."""
        return Tier.worst(self.tiers)


@dataclass(frozen=True)
class BundleFile:
    """One written file; `sha256` as `sha256:` and 64 hex digits."""

    path: Path
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """The three files of a version, complete on disk."""

    features: BundleFile
    normalization_stats: BundleFile
    manifest: BundleFile
    dataset_hash: str
    feature_code_hash: str
    num_clips: int
    num_frames: int
    num_segments: int
    coverage: Mapping[str, Any]

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
    and recipe. Each file appears under its name only when it is whole and on disk; after an error none of them is left.

    Args:
      members: what goes in. Their metadata is held, their frames are loaded one member at a time.
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
    """
    check_dataset_name(name)
    names = file_names(version)
    folder = Path(out_dir)
    ordered = _ordered(members)
    total = sum(member.frames for member in ordered)
    code_hash = feature_code_hash()
    layout = robot.layout

    margins = [found for member in ordered for found in member.margins]
    lengths = [end - start for member in ordered for start, end in member.ranges]
    weights = _weights.normalized([_weights.raw_weight(found) for found in margins], lengths)
    worth = [{"margins": found, "weight": weight} for found, weight in zip(margins, weights, strict=True)]

    with _all_or_none(folder, names) as partial:
        rows = _Rows(robot, [member.scale for member in ordered])
        segments = 0
        clips: list[dict[str, Any]] = []
        owners: list[int] = []
        with open(partial[names.features], "wb") as file, NpzWriter(file) as writer:
            writer.begin("features", (total, layout.dim), np.float32)
            for clip, member in enumerate(ordered):
                ends = segments + len(member.ranges)
                bucket = rows.buckets.index(member.scale)
                entry = _clip_entry(member, bucket, rows.count, segments, worth[segments:ends])
                rows.coverage.clip(member.name, member.source, original=member.source == member.digest)
                for tier, pieces in zip(member.tiers, _frames(member, layout), strict=True):
                    rows.coverage.segment(tier)
                    for piece in pieces:
                        writer.write(piece)
                        rows.take(piece, bucket)
                clips.append(entry)
                owners += [clip] * len(member.ranges)
                segments = ends
                if progress is not None:
                    progress(rows.count, total)
            run = np.asarray(lengths)
            writer.begin("clip_index", (total,), np.int32)
            _write_runs(writer, np.asarray(owners, np.int32), run)
            writer.begin("segment_index", (total,), np.int32)
            _write_runs(writer, np.arange(segments, dtype=np.int32), run)
            writer.begin("sample_weight", (total,), np.float32)
            _write_runs(writer, np.asarray(weights, np.float32), run)
        blocks = block_digests(partial[names.features])
        features = _seal(partial[names.features], folder / names.features)

        dataset_hash = rows.digest
        stats = {
            "version": version,
            "dataset_hash": dataset_hash,
            "feature_code_hash": code_hash,
            "generation_date": GENERATOR_RELEASE_DATE,
            "num_clips": len(ordered),
            "num_frames": total,
            **rows.buckets.whole().to_dict(),
            "clips": [{"name": member.name, "tier": member.tier_taken, "frames": member.frames} for member in ordered],
        }
        partial[names.normalization_stats].write_bytes(canonical_json(stats))
        normalization = _seal(partial[names.normalization_stats], folder / names.normalization_stats)

        coverage = rows.coverage.to_dict()
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "name": name,
            "version": version,
            "generator_version": GENERATOR_VERSION,
            "generation_date": GENERATOR_RELEASE_DATE,
            "mujoco_version": mujoco_version,
            "robot": {"name": robot.name, "digest": robot.digest, "control_dt": float(robot.control_dt)},
            "joint_names": list(robot.joint_names),
            "feature_layout": layout.to_dict(),
            "gate_profile": gate_profile,
            "gates": _outcome(ordered),
            "select": dict(select or {}),
            "waivers": [dict(waiver) for waiver in waivers],
            "verification": None if verification is None else dict(verification),
            "dataset_hash": dataset_hash,
            "feature_code_hash": code_hash,
            "num_clips": len(ordered),
            "num_segments": segments,
            "num_frames": total,
            "weighting": _weights.weighting(weights, lengths),
            "coverage": coverage,
            "buckets": rows.buckets.to_list(dataset_hash, _counts(ordered, rows.buckets.scales)),
            "files": {
                "features": {
                    "name": features.name,
                    "size": features.size,
                    "sha256": features.sha256,
                    "blocks": {"algorithm": BLOCK_ALGORITHM, "size": BLOCK_SIZE, "digests": blocks},
                },
                "normalization_stats": {
                    "name": normalization.name,
                    "size": normalization.size,
                    "sha256": normalization.sha256,
                },
            },
            "clips": clips,
        }
        partial[names.manifest].write_bytes(canonical_json(manifest))
        sealed = _seal(partial[names.manifest], folder / names.manifest)
    return Bundle(features, normalization, sealed, dataset_hash, code_hash, len(ordered), total, segments, coverage)


class _Rows:
    """What is computed from the rows as they pass: the dataset hash, the statistics of every bucket and the coverage."""

    def __init__(self, robot: RobotLike, scales: Sequence[PhysicsScale]) -> None:
        self.count = 0
        self.buckets = Buckets(scales, robot.layout.dim)
        self.coverage = Coverage(robot.layout, robot.control_dt, robot.feet)
        self._sha = hashlib.sha256()

    def take(self, rows: NDArray[np.float32], bucket: int) -> None:
        self._sha.update(np.ascontiguousarray(rows, dtype="<f4").data)
        self.buckets.take(bucket, self.count, rows)
        self.coverage.take(rows)
        self.count += len(rows)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}"


def _ordered(members: Iterable[Member]) -> list[Member]:
    def key(member: Member) -> tuple[str, str, str]:
        return member.name, member.digest, member.recipe_digest

    ordered = sorted(members, key=key)
    if not ordered:
        raise InputRefused(
            "the selection holds no clip",
            key="select",
            expected="at least one rollout with a frame range",
            remedy="Widen the selection, or score more clips: ampref clips lists what there is.",
        )
    for before, member in zip([None, *ordered[:-1]], ordered, strict=True):
        if before is not None and key(before) == key(member):
            raise InputRefused(
                f"clip {member.name!r} comes twice with the same recipe",
                key="clips",
                expected="every pair of motion and recipe once",
                remedy="Put all frame ranges of a rollout into one member.",
            )
        _check_ranges(member)
    return ordered


def _check_ranges(member: Member) -> None:
    position = 0
    for start, end in member.ranges:
        if not (position <= start < end):
            raise InputRefused(
                f"clip {member.name!r} has the frame range [{start}, {end}) after frame {position}",
                key="ranges",
                frame=int(start),
                expected="ascending half-open ranges with at least one frame that do not overlap",
            )
        position = end
    if not member.ranges:
        raise InputRefused(f"clip {member.name!r} has no frame range", key="ranges", expected="at least one")
    if len(member.tiers) != len(member.ranges) or not set(member.tiers) <= set(Tier):
        raise InputRefused(
            f"clip {member.name!r} has the tiers {list(member.tiers)} for {len(member.ranges)} frame ranges",
            key="range_tiers",
            expected="0, 1 or -1 for every range, or none at all",
        )
    if member.range_metrics and len(member.range_metrics) != len(member.ranges):
        raise InputRefused(
            f"clip {member.name!r} has metrics of {len(member.range_metrics)} windows for {len(member.ranges)} frame ranges",
            key="range_metrics",
            expected="the metrics of every range, or none at all",
        )


def _frames(member: Member, layout: LayoutLike) -> Iterator[Iterator[NDArray[np.float32]]]:
    """The frames of each of the member's ranges, a bounded number at a time."""
    features = member.load()
    needed = member.ranges[-1][1]
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != layout.dim or len(features) < needed:
        raise IntegrityError(
            f"the features of clip {member.name!r} are {features.dtype} of shape {features.shape}",
            key="features",
            expected=f"float32 of shape (at least {needed}, {layout.dim})",
            remedy="Score the clip again with this robot.",
        )
    for start, end in member.ranges:
        yield _pieces(features, start, end, member, layout)


def _pieces(features: NDArray[Any], start: int, end: int, member: Member, layout: LayoutLike) -> Iterator[NDArray[np.float32]]:
    for first in range(start, end, _STEP):
        piece = np.ascontiguousarray(features[first : min(end, first + _STEP)])
        finite = np.isfinite(piece)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise PhysicsFailed(
                f"feature {layout.names[column]!r} of clip {member.name!r} is {float(piece[row, column])}",
                key="features",
                frame=first + row,
                expected="finite numbers",
                remedy="Leave the clip out, or score it again.",
            )
        yield piece


def _write_runs(writer: NpzWriter, values: NDArray[Any], lengths: NDArray[np.int_]) -> None:
    """Write `values[i]` `lengths[i]` times, without holding all of it."""
    begin = 0
    while begin < len(values):
        end = begin + max(1, int(np.searchsorted(np.cumsum(lengths[begin : begin + _STEP]), _STEP, side="right")))
        writer.write(np.repeat(values[begin:end], lengths[begin:end]))
        begin = end


def _clip_entry(member: Member, bucket: int, row: int, segment: int, weighted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    segments = []
    for index, ((start, end), tier, worth) in enumerate(zip(member.ranges, member.tiers, weighted, strict=True), segment):
        segments.append({"segment_index": index, "start": int(start), "end": int(end), "row": row, "tier": tier, **worth})
        row += end - start
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
        "quality_metrics": {key: _plain(value, member, key) for key, value in member.quality_metrics.items()},
        "gates": [{key: _plain(value, member, key) for key, value in gate.items()} for gate in member.gates],
    }


def _plain(value: Any, member: Member, key: str) -> Any:
    """`value` as JSON can hold it: numpy scalars become Python's, and what is not finite is refused."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise PhysicsFailed(f"clip {member.name!r} has a metric of {value}", key=key, expected="a finite number or null")
    if isinstance(value, (list, tuple)):
        return [_plain(item, member, key) for item in value]
    return value


def _counts(members: Sequence[Member], scales: Sequence[PhysicsScale]) -> list[dict[str, Any]]:
    """Of each bucket, how many clips and segments it has, and the gates' outcome over them."""
    found = []
    for scale in scales:
        those = [member for member in members if member.scale == scale]
        segments = sum(len(member.ranges) for member in those)
        found.append({"num_clips": len(those), "num_segments": segments, "gates": _outcome(those)})
    return found


def _outcome(members: Sequence[Member]) -> dict[str, Any]:
    """The gates' outcome over the version: clips and taken frames by tier, and for each gate how many clips failed it."""
    tiers: dict[str, int] = {}
    frames: dict[str, int] = {}
    failed: dict[str, int] = {}
    for member in members:
        tiers[str(member.tier)] = tiers.get(str(member.tier), 0) + 1
        for (start, end), tier in zip(member.ranges, member.tiers, strict=True):
            frames[str(tier)] = frames.get(str(tier), 0) + int(end - start)
        for gate in member.gates:
            name = str(gate["name"])
            failed[name] = failed.get(name, 0) + (not gate["passed"])
    return {"clips_by_tier": tiers, "frames_by_tier": frames, "clips_failed_by_gate": failed}


@contextmanager
def _all_or_none(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Partial files to write to, one a name. After an error neither they nor the finished files are left."""
    partial = {name: partial_path(folder / name) for name in names}
    try:
        yield partial
    except BaseException as error:
        for name, path in partial.items():
            path.unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise (DiskFull if error.errno in _FULL else Unavailable)(
                f"the version cannot be written ({error.strerror or error})",
                file=str(folder),
                remedy="Make room there or give another folder, then lock again.",
            ) from error
        raise


def _seal(partial: Path, final: Path) -> BundleFile:
    """Put a finished partial file on disk under its name."""
    with open(partial, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    publish_file(partial, final, durable=True)
    return BundleFile(final, final.name, size, f"sha256:{sha256}")
