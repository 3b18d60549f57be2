"""Parts of a version: by lineage, so that a clip and its variants stay on one side, and by bucket."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from amp_core.client._dataset import Dataset

__all__ = ["DatasetBucket", "DatasetPart", "buckets", "split"]


class DatasetPart:
    """Some whole clips of a version. Normalized with the whole version's statistics, so that parts compare.

    Attributes:
      dataset: the version.
      clips: indices into `dataset.manifest["clips"]`, ascending.
      lineages: the lineage groups in it; no other part of the same split holds any of them.
      rows: (M,) int64, its rows in `dataset.features`, ascending.
    """

    def __init__(self, dataset: Dataset, clips: Sequence[int], lineages: Iterable[str]) -> None:
        self.dataset = dataset
        self.clips = tuple(sorted(clips))
        self.lineages = tuple(sorted(lineages))
        self.rows: NDArray[np.int64] = np.flatnonzero(np.isin(dataset.clip_index, self.clips)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        whole = f"{self.dataset.name}=={self.dataset.version}"
        return f"<DatasetPart of {whole}: {len(self):,} frames, {len(self.clips)} clips, {len(self.lineages)} lineages>"

    @property
    def features(self) -> NDArray[np.float32]:
        """(M, F) float32, a copy of its rows."""
        return np.asarray(self.dataset.features[self.rows])

    def normalize(self, x: ArrayLike, *, clip: bool = False) -> NDArray[np.float32]:
        """As `Dataset.normalize`."""
        return self.dataset.normalize(x, clip=clip)

    def denormalize(self, z: ArrayLike) -> NDArray[np.float32]:
        """As `Dataset.denormalize`."""
        return self.dataset.denormalize(z)

    def bucket(self, name: str) -> DatasetPart:
        """Those of these clips that are in one bucket; the whole version's statistics normalize them, too.

        Raises:
          KeyError: the version has no such bucket.
          ValueError: this part has none of its clips.
        """
        if name not in self._buckets:
            whole = self.dataset.bucket(name)
            clips = [clip for clip in whole.clips if clip in set(self.clips)]
            if not clips:
                raise ValueError(f"this part has no clip in the bucket {name!r}")
            self._buckets[name] = DatasetPart(self.dataset, clips, _lineages(self.dataset, clips))
        return self._buckets[name]

    def sample(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> NDArray[np.float32]:
        """As `Dataset.sample`, from these rows."""
        from amp_core.client._dataset import _check_draw, _draw

        if bucket is not None:
            return self.bucket(bucket).sample(rng, n, weighted=weighted)
        n = _check_draw(rng, n)
        drawn = _draw(rng, self._cumulative, n) if weighted else rng.integers(0, len(self), n)
        return np.asarray(self.dataset.features[self.rows[drawn]])

    def sample_transitions(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `Dataset.sample_transitions`, from these rows."""
        from amp_core.client._dataset import _check_draw, _draw

        if bucket is not None:
            return self.bucket(bucket).sample_transitions(rng, n, weighted=weighted)
        n = _check_draw(rng, n)
        if not len(self._firsts):
            raise ValueError("this part has no segment of two frames, so it holds no transition")
        if weighted:
            drawn = _draw(rng, np.cumsum(self.dataset.sample_weight[self._firsts], dtype=np.float64), n)
        else:
            drawn = rng.integers(0, len(self._firsts), n)
        rows = self._firsts[drawn]
        return np.asarray(self.dataset.features[rows]), np.asarray(self.dataset.features[rows + 1])

    @cached_property
    def _buckets(self) -> dict[str, DatasetPart]:
        return {}

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        return np.cumsum(self.dataset.sample_weight[self.rows], dtype=np.float64)

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """The rows whose next row is the next frame of the same segment."""
        inside = self.rows[self.rows + 1 < len(self.dataset)]
        segment = self.dataset.segment_index
        firsts: NDArray[np.int64] = inside[segment[inside] == segment[inside + 1]]
        return firsts


class DatasetBucket(DatasetPart):
    """The clips of a version in one bucket of physics.

    Attributes:
      name: `canonical` for the robot's own physics, or its factors, `friction=0.7,mass=1.1`.
      physics: the factors on `friction`, `mass` and `damping`.
      stats: statistics of these rows alone, with the keys of `Dataset.stats`. `normalize` uses the whole version's, so that one
        discriminator can see every bucket.
      dataset_hash: SHA-256 of these rows.
    """

    def __init__(self, dataset: Dataset, facts: Mapping[str, Any], index: int) -> None:
        clips = [i for i, clip in enumerate(dataset.manifest["clips"]) if clip["bucket"] == index]
        super().__init__(dataset, clips, _lineages(dataset, clips))
        self.name: str = facts["name"]
        self.physics: dict[str, float] = dict(facts["physics"])
        self.stats: dict[str, list[float]] = dict(facts["statistics"])
        self.dataset_hash: str = facts["dataset_hash"]

    def __repr__(self) -> str:
        whole = f"{self.dataset.name}=={self.dataset.version}"
        return f"<DatasetBucket {self.name} of {whole}: {len(self):,} frames, {len(self.clips)} clips>"


def buckets(dataset: Dataset) -> tuple[DatasetBucket, ...]:
    """See `Dataset.buckets`."""
    return tuple(DatasetBucket(dataset, facts, index) for index, facts in enumerate(dataset.manifest.get("buckets", ())))


def _lineage(clip: Mapping[str, Any]) -> str:
    # A version from before lineage was recorded has originals alone.
    return str(clip.get("lineage") or clip["digest"])


def _lineages(dataset: Dataset, clips: Sequence[int]) -> set[str]:
    return {_lineage(dataset.manifest["clips"][clip]) for clip in clips}


def split(dataset: Dataset, fractions: Sequence[float], seed: int) -> tuple[DatasetPart, ...]:
    """See `Dataset.split`."""
    shares = [float(share) for share in fractions]
    if not shares or any(not share > 0.0 for share in shares) or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"the fractions are {list(fractions)}; expected positive numbers that add up to 1, such as (0.9, 0.1)")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError("seed is no whole number")
    groups: dict[str, list[int]] = {}
    for index, clip in enumerate(dataset.manifest["clips"]):
        groups.setdefault(_lineage(clip), []).append(index)
    if len(groups) < len(shares):
        raise ValueError(
            f"{dataset.name}=={dataset.version} has {len(groups)} lineage groups, too few for {len(shares)} parts: "
            "a clip, its variants and its buckets cannot be divided"
        )
    frames = np.bincount(dataset.clip_index, minlength=len(dataset.manifest["clips"]))
    # An order by hash is the same on every machine and with every numpy.
    order = sorted(groups, key=lambda lineage: hashlib.sha256(f"{seed}:{lineage}".encode()).digest())
    taken: list[list[str]] = [[] for _ in shares]
    missing = [share * len(dataset) for share in shares]
    for place, lineage in enumerate(order):
        empty = [part for part, lineages in enumerate(taken) if not lineages]
        among = empty if len(order) - place <= len(empty) else range(len(shares))
        part = max(among, key=lambda one: missing[one])
        taken[part].append(lineage)
        missing[part] -= int(sum(frames[clip] for clip in groups[lineage]))
    return tuple(DatasetPart(dataset, [clip for one in lineages for clip in groups[one]], lineages) for lineages in taken)
