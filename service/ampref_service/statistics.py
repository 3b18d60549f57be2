"""Statistics of a version for people: how each feature is spread, which frames lie furthest out, and what the rows are made of.

They are computed once, by one pass over the stored features, in a thread of their own, and kept in the catalog. No other thing
depends on them: they are not among the bytes that the version pins.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from amp_core.dataset.manifest import read_head
from amp_core.dataset.spread import OUTLIER_Z, FeatureSpread, Outlier
from amp_core.errors import Busy, FileGone, Unavailable
from amp_core.npz import locate_arrays
from amp_core.strict_json import read_json
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, statistics
from ampref_service.catalog.records import MemberOrigin, Version, VersionFile
from ampref_service.services import Services

log = structlog.get_logger("ampref_service.statistics")

WAIT_SEC = 10.0
"""How long a request waits for statistics that are being computed."""
_ROWS = 1 << 16
_MOST_SOURCES = 100
_MOST_TAGS = 50


class StatisticsMaker:
    """Computes the statistics of versions, one version at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "ampref-statistics")
        self._futures: dict[str, Future[dict[str, Any]]] = {}
        self._end = threading.Event()

    def close(self) -> None:
        """Give up what is being computed; it is computed again when somebody asks."""
        self._end.set()
        self._pool.shutdown(cancel_futures=True)

    def get(self, version: Version, wait_sec: float | None = None) -> dict[str, Any]:
        """The statistics of a version, computed where nobody asked for them before.

        Args:
          wait_sec: how long to wait for them; by default `WAIT_SEC`.

        Raises:
          FileGone: the version is archived, and nobody asked before.
          Busy: they take longer; they go on being computed.
          IntegrityError: a file of the version is damaged.
        """
        with self._services.catalog.session() as session:
            result = statistics.find_statistics(session, version.id)
        if result is not None:
            return result
        name = f"{version.dataset}=={version.version}"
        if version.archived:
            raise FileGone(
                f"{name} was archived before its statistics were asked for",
                remedy="They are computed from the features: take the archive back, then ask again",
            )
        with self._lock:
            future = self._futures.get(version.id)
            if future is None:
                future = self._futures[version.id] = self._pool.submit(self._make, version)
        try:
            return future.result(WAIT_SEC if wait_sec is None else wait_sec)
        except TimeoutError:
            raise Busy(f"the statistics of {name} are being computed", remedy="Ask again in some seconds") from None

    def _make(self, version: Version) -> dict[str, Any]:
        try:
            result = compute_statistics(self._services, version, self._end.is_set)
            with self._services.catalog.begin() as session:
                statistics.put_statistics(session, version.id, result)
            return result
        finally:
            with self._lock:
                self._futures.pop(version.id, None)


def compute_statistics(services: Services, version: Version, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """The statistics of a version that is not archived, in memory that grows by some bytes a segment alone.

    Args:
      should_stop: asked between parts of the rows.

    Raises:
      IntegrityError: a file of it is damaged.
      Unavailable: it should stop.
    """
    blobs, robot = services.blobs, services.robots.get(version.robot)
    files = {file.name: file for file in version.files}
    manifest = next(file for file in version.files if file.digest == version.manifest_digest)
    with blobs.open_verified(blobs.verify_once(manifest.digest)) as lines:
        head = read_head(lines)
    layout = head["feature_layout"]
    values = read_json(blobs.read_bytes(files[head["files"]["normalization_stats"]["name"]].digest))
    blocks = {block["name"]: (int(block["start"]), int(block["stop"])) for block in layout["blocks"]}
    contacts, channels = blocks["foot_contacts"][0], layout["contact_channels"]
    feet = {channel: [contacts + number] for number, channel in enumerate(channels)}
    if robot is not None and list(robot.channels) == list(channels):
        feet = {foot.name: [contacts + channel for channel in foot.channels] for foot in robot.feet}
    spread = FeatureSpread(values, blocks, feet)
    weights: dict[int, float] = {}
    shards = sorted((file for file in version.files if not file.is_kept), key=lambda file: file.name)
    for rows, segments, sample_weights in _iterate_rows(blobs, shards):
        if should_stop():
            raise Unavailable("the service ends", remedy="Ask again once it is up")
        spread.add(rows, segments)
        numbers, firsts = np.unique(segments, return_index=True)
        weights.update(zip(numbers.tolist(), sample_weights[firsts].tolist(), strict=True))
    outliers = spread.list_outliers()
    control_dt = float(head["robot"]["control_dt"])
    origins, balance = _read_origins(services.catalog, version, weights, outliers, control_dt)
    units = [block["unit"] for block in layout["blocks"] for _ in range(block["start"], block["stop"])]
    block_names = [block["name"] for block in layout["blocks"] for _ in range(block["start"], block["stop"])]
    return {
        "num_frames": version.num_frames,
        "control_dt": control_dt,
        "outlier_z": OUTLIER_Z,
        "features": [
            {"name": name, "unit": unit, "block": block, **facts, "outliers": _name_outliers(furthest, origins)}
            for name, unit, block, facts, furthest in zip(
                layout["names"], units, block_names, spread.describe_features(), outliers, strict=True
            )
        ],
        **spread.describe_motion(),
        "balance": balance,
    }


def _iterate_rows(
    blobs: BlobStore, shards: Sequence[VersionFile]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]]:
    """Some rows at a time: features, numbers of segments, and weights, which are 1 where the version has none."""
    for shard in shards:
        blob = blobs.verify_once(shard.digest)
        names = ("features", "segment_index", "sample_weight")
        with blobs.open_verified(blob) as features, blobs.open_verified(blob) as segments, blobs.open_verified(blob) as weights:
            files = dict(zip(names, (features, segments, weights), strict=True))
            arrays = locate_arrays(features, Path(shard.name))
            count = arrays["features"].shape[0]
            for begin in range(0, count, _ROWS):
                end = min(begin + _ROWS, count)
                parts: list[NDArray[Any]] = []
                for name in names:
                    if name not in arrays:
                        parts.append(np.ones(end - begin, np.float32))
                        continue
                    array = arrays[name]
                    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
                    files[name].seek(array.offset + begin * row_bytes)
                    data = np.frombuffer(files[name].read((end - begin) * row_bytes), array.dtype)
                    parts.append(data.reshape(end - begin, *array.shape[1:]))
                yield parts[0], parts[1], parts[2]


@dataclass
class _Share:
    """What a version has of one kind. The members of a clip follow each other: the last clip is enough to count them."""

    frames: int = 0
    weight: float = 0.0
    clips: int = 0
    last_clip: str = ""

    def add(self, clip_id: str, frames: int, weight: float) -> None:
        self.frames += frames
        self.weight += weight
        self.clips += clip_id != self.last_clip
        self.last_clip = clip_id


def _read_origins(
    catalog: Catalog,
    version: Version,
    weights: Mapping[int, float],
    outliers: Iterable[Iterable[Outlier]],
    control_dt: float,
) -> tuple[dict[int, MemberOrigin], dict[str, Any]]:
    """The members that outliers are in, by position, and the balance of the version."""
    positions = {outlier.segment for column in outliers for outlier in column}
    origins: dict[int, MemberOrigin] = {}
    groups: dict[str, dict[Any, _Share]] = {name: defaultdict(_Share) for name in _GROUPS}
    source_names: dict[Any, str] = {}
    total_frames, total_weight = 0, 0.0
    with catalog.session() as session:
        for origin in statistics.iterate_origins(session, version.id):
            if origin.position in positions:
                origins[origin.position] = origin
            frames = origin.end - origin.start
            weight = frames * weights.get(origin.position, 1.0)
            total_frames += frames
            total_weight += weight
            source_names.setdefault(origin.lineage, origin.name)
            for name, list_values in _GROUPS.items():
                for value in list_values(origin):
                    groups[name][value].add(origin.clip_id, frames, weight)
        sources = _sort_shares(groups["sources"])
        originals = statistics.find_originals(session, [digest for digest, _ in sources[:_MOST_SOURCES] if digest])

    def describe(name: Any, share: _Share) -> dict[str, Any]:
        return {
            "name": name,
            "clips": share.clips,
            "seconds": round(share.frames * control_dt, 6),
            "share": round(share.frames / max(total_frames, 1), 6),
            "weight_share": round(share.weight / max(total_weight, 1e-12), 6),
        }

    balance: dict[str, Any] = {"num_sources": len(sources), "sources": []}
    for digest, share in sources[:_MOST_SOURCES]:
        clip_id, clip_name = originals.get(digest, (None, source_names[digest]))
        balance["sources"].append(describe(clip_name, share) | {"digest": digest, "clip_id": clip_id})
    for name in groups.keys() - {"sources"}:
        balance[name] = [describe(value, share) for value, share in _sort_shares(groups[name])[:_MOST_TAGS]]
    return origins, balance


def _name_kind(origin: MemberOrigin) -> str | None:
    """The augmentation without its parameters, such as `mirror+warp`."""
    if origin.lineage is None:
        return None
    return re.sub(r"=[^+]*", "", origin.augmentation) if origin.augmentation else "original"


_GROUPS: dict[str, Callable[[MemberOrigin], Sequence[Any]]] = {
    "sources": lambda origin: [origin.lineage],
    "augmentations": lambda origin: [_name_kind(origin)],
    "tags": lambda origin: origin.tags,
    "modes": lambda origin: [origin.mode],
    "buckets": lambda origin: [origin.bucket],
    "tiers": lambda origin: [origin.tier],
}
"""What a version is divided by. A clip with several tags counts in each."""


def _sort_shares(shares: Mapping[Any, _Share]) -> list[tuple[Any, _Share]]:
    return sorted(shares.items(), key=lambda item: (-item[1].frames, str(item[0])))


def _name_outliers(outliers: Iterable[Outlier], origins: Mapping[int, MemberOrigin]) -> list[dict[str, Any]]:
    rows = []
    for outlier in outliers:
        origin = origins[outlier.segment]
        facts = {"clip_id": origin.clip_id, "rollout_id": origin.rollout_id, "name": origin.name}
        rows.append(facts | {"frame": origin.start + outlier.offset, "value": outlier.value, "z": outlier.z})
    return rows
