"""A locked version in memory: mapped arrays, statistics, sampling, parts."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from amp_core.client.download import Progress
from amp_core.client.http import Retry
from amp_core.client.readiness import Readiness
from amp_core.client.sampling import Sampler, check_draw
from amp_core.client.split import check_fractions, divide_lineages
from amp_core.client.versions import PulledVersion, pull_ready
from amp_core.dataset.manifest import read_json_object
from amp_core.dataset.statistics import STD_FLOOR
from amp_core.errors import IntegrityError
from amp_core.npz import mmap_shards
from amp_core.strict_json import format_json

__all__ = ["STD_FLOOR", "Dataset", "DatasetBucket", "DatasetPart", "load_dataset"]

log = logging.getLogger("amp_core.client")

_HASH_ROWS = 1 << 16
_LARGEST = float(np.finfo(np.float32).max)


def load_dataset(
    spec: str,
    url: str | None = None,
    manifest_sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    *,
    allow_not_ready: bool = False,
    progress: Progress | None = None,
    token: str | None = None,
    retry: Retry | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> Dataset:
    """A locked version, downloaded once, verified, memory-mapped.

    Every load verifies the files as `pull` does and computes `dataset_hash` again from the mapped rows; what was
    downloaded is on the disk when it returns. Without `manifest_sha256` the service decides what the version is, and a log line
    gives the digest to pin.

    Args: as for `pull`, and
      allow_not_ready: load a version that is not ready for training as well, with a `DatasetWarning`.
    Raises: as `pull`, and
      NotReady: the checklist of the version does not permit training; the message has the reasons.
    """
    version = pull_ready(
        spec,
        allow_not_ready=allow_not_ready,
        url=url,
        manifest_sha256=manifest_sha256,
        cache_dir=cache_dir,
        offline=offline,
        to=None,
        progress=progress,
        token=token,
        retry=retry,
        transport=transport,
    )
    if manifest_sha256 is None:
        log.info('%s==%s: pin it with manifest_sha256="%s"', version.name, version.version, version.manifest_sha256)
    try:
        data = Dataset(version)
    except FileNotFoundError:
        version.wait_for_disk()  # Raises the reason where the disk did not take a file.
        raise
    # Only now: the disk has worked while the rows were hashed.
    version.wait_for_disk()
    return data


class _RowSampler(ABC):
    """Rows that can be sampled: those of a version, or of a part of it."""

    _mapped: NDArray[np.float32]  # (N, F): all rows of the version.
    _label: str  # What messages call these rows.

    @abstractmethod
    def bucket(self, name: str) -> DatasetPart:
        """The rows that are in the bucket of this name."""

    @property
    @abstractmethod
    def _rows(self) -> Sampler:
        """Draws rows."""

    @property
    @abstractmethod
    def _transitions(self) -> Sampler:
        """Draws rows whose next row is the next frame of the same segment."""

    def sample(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> NDArray[np.float32]:
        """`n` rows drawn with replacement: (n, F) float32, not normalized.

        Args:
          weighted: in proportion to `sample_weight`; otherwise all rows are equally likely.
          bucket: only rows of this bucket, such as `friction=0.7`.
        Raises:
          TypeError, ValueError: `rng` is no `numpy.random.Generator`, or `n` no whole number from 1 to `MOST_ROWS`.
          KeyError: there is no such bucket.
        """
        if bucket is not None:
            return self.bucket(bucket).sample(rng, n, weighted=weighted)
        rows = self._rows.draw(rng, check_draw(rng, n), weighted=weighted)
        return np.asarray(self._mapped[rows])

    def sample_transitions(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`n` pairs of consecutive frames `(s, s')`, each (n, F) float32, one control step apart.

        No pair crosses the border of a segment. A pair is drawn in proportion to the weight of its first frame.

        Args:
          weighted, bucket: as for `sample`.
        Raises:
          TypeError, ValueError, KeyError: as for `sample`; or there are no two consecutive frames.
        """
        if bucket is not None:
            return self.bucket(bucket).sample_transitions(rng, n, weighted=weighted)
        n = check_draw(rng, n)
        if not self._transitions.count:
            raise ValueError(f"{self._label} has no segment of two frames, so it holds no transition")
        rows = self._transitions.draw(rng, n, weighted=weighted)
        return np.asarray(self._mapped[rows]), np.asarray(self._mapped[rows + 1])


class Dataset(_RowSampler):
    """The rows of a locked version and what belongs to them.

    Attributes:
      features: (N, F) float32, read-only and memory-mapped; one row a frame at the robot's control rate.
      clip_index: (N,) int32, into `manifest["clips"]`.
      segment_index: (N,) int32; rows with the same value are consecutive frames of one rollout.
      sample_weight: (N,) float32; the same for all rows of a segment, mean 1.
      stats: the normalization statistics, as locked.
      manifest: the manifest, as locked.
      layout: the feature layout: `dim`, `names`, `blocks` with units and frames.
    """

    def __init__(self, pulled: PulledVersion) -> None:
        self.pulled = pulled
        self.name = pulled.name
        self.version = pulled.version
        self.manifest_sha256 = pulled.manifest_sha256
        self._label = f"{pulled.name}=={pulled.version}"
        self.manifest = read_json_object(pulled.manifest)
        self.stats = read_json_object(pulled.normalization_stats)
        self.layout: dict[str, Any] = self.manifest["feature_layout"]
        self.features: NDArray[np.float32] = mmap_shards(pulled.shards, "features")
        self._mapped = self.features
        self.clip_index: NDArray[np.int32] = mmap_shards(pulled.shards, "clip_index")
        self.segment_index: NDArray[np.int32] = mmap_shards(pulled.shards, "segment_index")
        self.sample_weight: NDArray[np.float32] = mmap_shards(pulled.shards, "sample_weight")
        self._check()

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        rows, dim = self.features.shape
        return f"<Dataset {self._label}: {rows:,} frames of {dim} features, {self.manifest['num_clips']} clips>"

    @property
    def readiness(self) -> Readiness:
        """Whether the version's checklist permits training, as of its lock, and what it lacks."""
        return self.pulled.readiness

    @property
    def dim(self) -> int:
        """F, the number of features."""
        return int(self.features.shape[1])

    def block(self, name: str) -> slice:
        """The columns of one block of the layout, such as `joint_vel`; `KeyError` lists the blocks there are."""
        blocks: list[Mapping[str, Any]] = self.layout["blocks"]
        for block in blocks:
            if block["name"] == name:
                return slice(block["start"], block["stop"])
        raise KeyError(f"no feature block {name!r}; there are {', '.join(block['name'] for block in blocks)}")

    @cached_property
    def buckets(self) -> tuple[DatasetBucket, ...]:
        """The version's rows by the physics that they were generated in, the robot's own first.

        One, `canonical`, for a version of the robot's own physics; none for a version from before buckets were recorded.
        """
        return tuple(DatasetBucket(self, entry, index) for index, entry in enumerate(self.manifest.get("buckets", ())))

    def bucket(self, name: str) -> DatasetBucket:
        """The bucket of this name, such as `friction=0.7`; `KeyError` lists the buckets there are."""
        for bucket in self.buckets:
            if bucket.name == name:
                return bucket
        names = ", ".join(bucket.name for bucket in self.buckets) or "none: it was locked before buckets were recorded"
        raise KeyError(f"{self._label} has no bucket {name!r}; there are {names}")

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """(F,) mean of every feature."""
        return _freeze(np.asarray(self.stats["mean"], np.float64))

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """(F,) what `normalize` divides by: the standard deviation, and `STD_FLOOR` where it is smaller."""
        return _freeze(np.maximum(np.asarray(self.stats["std"], np.float64), STD_FLOOR))

    def normalize(self, x: ArrayLike, *, clip: bool = False) -> NDArray[np.float32]:
        """`(x - mean) / max(std, STD_FLOOR)`, per feature.

        A feature that is constant in the reference comes out as 0 there, and finite for a policy that deviates. Contacts are
        treated like every other feature: the discriminator sees two values, a constant distance apart.

        Args:
          x: (…, F) features, from this dataset or from a policy.
          clip: limit the result to ±3, the statistics' `clip_low` and `clip_high`. Contacts are not clipped: they are bounded
            already, and a contact that is nearly always on would lose its meaning.
        Returns: (…, F) float32, a new array.
        """
        normal = (self._check_features(x) - self.mean) / self.scale
        if clip:
            contacts = self.block("foot_contacts")
            normal_contacts = normal[..., contacts].copy()
            np.clip(normal, -3.0, 3.0, out=normal)
            normal[..., contacts] = normal_contacts
        return normal

    def denormalize(self, z: ArrayLike) -> NDArray[np.float32]:
        """The inverse of `normalize` without clipping, (…, F) float32."""
        features: NDArray[np.float32] = self._check_features(z) * self.scale + self.mean
        return features

    def split(self, fractions: Sequence[float], *, seed: int = 0) -> tuple[DatasetPart, ...]:
        """The version divided into parts, for example for training and evaluation, by lineage.

        A clip and all variants made from it, in every bucket, are in one part, so that evaluation sees no clip of the training
        mirrored, slower or in other physics. Groups stay complete; each goes to the part that lacks most frames, in an order
        that `seed` decides, the same everywhere. The shares are met as nearly as complete groups allow, and no part is empty.

        Args:
          fractions: share of the frames of each part; they add up to 1.
          seed: another seed, another division.
        Raises:
          ValueError: fractions that do not add up to 1, or fewer lineage groups than parts.
        """
        shares = check_fractions(fractions, seed)
        clips: dict[str, list[int]] = {}
        for index in range(len(self.manifest["clips"])):
            clips.setdefault(self._find_lineage(index), []).append(index)
        if len(clips) < len(shares):
            raise ValueError(
                f"{self._label} has {len(clips)} lineage groups, too few for {len(shares)} parts: "
                "a clip, its variants and its buckets cannot be divided"
            )
        frames = np.bincount(self.clip_index, minlength=len(self.manifest["clips"]))
        totals = {lineage: int(frames[members].sum()) for lineage, members in clips.items()}
        parts = divide_lineages(totals, shares, seed)
        return tuple(DatasetPart(self, [clip for lineage in lineages for clip in clips[lineage]]) for lineages in parts)

    @cached_property
    def _weights(self) -> NDArray[np.float32] | None:
        return None if np.all(self.sample_weight == self.sample_weight[0]) else self.sample_weight

    @cached_property
    def _rows(self) -> Sampler:
        return Sampler(len(self), None, self._weights)

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """The first rows of all transitions, ascending."""
        return np.flatnonzero(self.segment_index[:-1] == self.segment_index[1:]).astype(np.int64)

    @cached_property
    def _transitions(self) -> Sampler:
        return Sampler(len(self._firsts), self._firsts, None if self._weights is None else self._weights[self._firsts])

    def _find_lineage(self, clip: int) -> str:
        entry = self.manifest["clips"][clip]
        # A version from before lineage was recorded has originals alone.
        return str(entry.get("lineage") or entry["digest"])

    def _check_features(self, x: ArrayLike) -> NDArray[np.float32]:
        values = np.asarray(x, dtype=np.float32)
        if values.ndim == 0 or values.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} features in the last dimension, not shape {values.shape}")
        return values

    def _check(self) -> None:
        """Check that the files agree and can be trained on, and that the rows have the hash in the manifest."""
        rows = self.manifest["num_frames"]
        arrays = {
            "features": ((rows, self.layout.get("dim")), np.float32),
            "clip_index": ((rows,), np.int32),
            "segment_index": ((rows,), np.int32),
            "sample_weight": ((rows,), np.float32),
        }
        for key, (shape, dtype) in arrays.items():
            array: NDArray[Any] = getattr(self, key)
            if array.shape != shape or array.dtype != dtype:
                raise self._disagree(self.pulled.shards[0], key, f"{np.dtype(dtype)} {shape}", f"{array.dtype} {array.shape}")
        for key in ("version", "dataset_hash", "feature_code_hash", "num_clips", "num_frames"):
            if self.stats.get(key) != self.manifest[key]:
                raise self._disagree(self.pulled.normalization_stats, key, self.manifest[key], self.stats.get(key))
        for key in ("mean", "std", "min", "max", "clip_low", "clip_high"):
            self._check_statistic(key, self.stats.get(key))
        self._check_segments(rows)
        sha = hashlib.sha256()
        for start in range(0, rows, _HASH_ROWS):
            sha.update(np.ascontiguousarray(self.features[start : start + _HASH_ROWS]).data)
        if (digest := f"sha256:{sha.hexdigest()}") != self.manifest["dataset_hash"]:
            raise self._disagree(self.pulled.shards[0], "dataset_hash", self.manifest["dataset_hash"], digest)

    def _check_statistic(self, key: str, values: object) -> None:
        """Check a statistic: a float32 for each feature. No deviation is negative."""
        least = 0.0 if key == "std" else -_LARGEST
        expected = f"{self.dim} finite numbers" + " from 0 on" * (key == "std")
        if not isinstance(values, list) or len(values) != self.dim:
            actual = f"a list of {len(values)}" if isinstance(values, list) else f"the value {_show(values)}"
            raise self._disagree(self.pulled.normalization_stats, key, expected, actual)
        for value in values:
            if type(value) not in (int, float) or not least <= value <= _LARGEST:
                raise self._disagree(self.pulled.normalization_stats, key, expected, f"the value {_show(value)}")

    def _check_segments(self, rows: int) -> None:
        """Check that the rows are the manifest's segments one after the other, and that their weights can be drawn by."""
        clips = self.manifest["clips"]
        lengths = [segment["end"] - segment["start"] for clip in clips for segment in clip["segments"]]
        if min(lengths, default=0) < 1 or sum(lengths) != rows:
            raise self._disagree(self.pulled.manifest, "clips", f"segments of {rows:,} frames together", "segments of others")
        ends = np.cumsum(lengths)
        owners = np.repeat(np.arange(len(clips)), [len(clip["segments"]) for clip in clips])
        greatest_weight = 0.0
        for start in range(0, rows, _HASH_ROWS):
            piece = slice(start, min(start + _HASH_ROWS, rows))
            segments = np.searchsorted(ends, np.arange(piece.start, piece.stop), side="right")
            for key, expected in (("segment_index", segments), ("clip_index", owners[segments])):
                wrong = np.flatnonzero(getattr(self, key)[piece] != expected)
                if len(wrong):
                    row = int(wrong[0])
                    actual = f"{getattr(self, key)[start + row]} in row {start + row:,}"
                    raise self._disagree(self.pulled.shards[0], key, f"{expected[row]}, as in the manifest", actual)
            least, greatest = float(self.sample_weight[piece].min()), float(self.sample_weight[piece].max())
            if not 0.0 <= least <= greatest <= _LARGEST:  # NaN is neither.
                actual = f"a weight of {least if not least >= 0.0 else greatest}"
                raise self._disagree(self.pulled.shards[0], "sample_weight", "finite numbers from 0 on", actual)
            greatest_weight = max(greatest_weight, greatest)
        if not greatest_weight:
            raise self._disagree(self.pulled.shards[0], "sample_weight", "rows that are drawn", "a weight of 0 for every row")

    def _disagree(self, path: Path, key: str, expected: object, actual: object) -> IntegrityError:
        return IntegrityError(
            f"{actual} in this file of {self._label} cannot be right",
            file=str(path),
            key=key,
            expected=str(expected),
            remedy="The version was not locked properly: do not train on it, and ask the service's operator.",
        )


class DatasetPart(_RowSampler):
    """Some complete clips of a version. Normalized with the version's own statistics, so that parts compare.

    Attributes:
      dataset: the version.
      clips: indices into `dataset.manifest["clips"]`, ascending.
      lineages: the lineage groups in it; no other part of the same split holds any of them.
      rows: (M,) int64, its rows in `dataset.features`, ascending.
    """

    def __init__(self, dataset: Dataset, clips: Iterable[int]) -> None:
        self.dataset = dataset
        self.clips = tuple(sorted(clips))
        self.lineages = tuple(sorted({dataset._find_lineage(clip) for clip in self.clips}))
        self.rows: NDArray[np.int64] = np.flatnonzero(np.isin(dataset.clip_index, self.clips)).astype(np.int64)
        self._mapped = dataset.features
        self._label = "this part"
        self._buckets: dict[str, DatasetPart] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        counts = f"{len(self):,} frames, {len(self.clips)} clips, {len(self.lineages)} lineages"
        return f"<DatasetPart of {self.dataset._label}: {counts}>"

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
        """The clips of this part that are in one bucket; the version's own statistics normalize them, too.

        Raises:
          KeyError: the version has no such bucket.
          ValueError: this part has none of its clips.
        """
        if name not in self._buckets:
            clips = set(self.clips).intersection(self.dataset.bucket(name).clips)
            if not clips:
                raise ValueError(f"this part has no clip in the bucket {name!r}")
            self._buckets[name] = DatasetPart(self.dataset, clips)
        return self._buckets[name]

    @cached_property
    def _rows(self) -> Sampler:
        return Sampler(len(self), self.rows, self.dataset.sample_weight[self.rows])

    @cached_property
    def _transitions(self) -> Sampler:
        firsts = self.dataset._firsts
        firsts = firsts[np.isin(self.dataset.clip_index[firsts], self.clips)]
        return Sampler(len(firsts), firsts, self.dataset.sample_weight[firsts])


class DatasetBucket(DatasetPart):
    """The clips of a version in one bucket of physics.

    Attributes:
      name: `canonical` for the robot's own physics, or its factors, `friction=0.7,mass=1.1`.
      physics: the factors on `friction`, `mass` and `damping`.
      stats: statistics of these rows alone, with the keys of `Dataset.stats`. `normalize` uses the version's own, so that one
        discriminator can see every bucket.
      dataset_hash: SHA-256 of these rows.
    """

    def __init__(self, dataset: Dataset, entry: Mapping[str, Any], index: int) -> None:
        super().__init__(dataset, [i for i, clip in enumerate(dataset.manifest["clips"]) if clip["bucket"] == index])
        self.name: str = entry["name"]
        self.physics: dict[str, float] = dict(entry["physics"])
        self.stats: dict[str, list[float]] = dict(entry["statistics"])
        self.dataset_hash: str = entry["dataset_hash"]

    def __repr__(self) -> str:
        return f"<DatasetBucket {self.name} of {self.dataset._label}: {len(self):,} frames, {len(self.clips)} clips>"


def _show(value: object) -> str:
    """A value of a JSON document, cut short."""
    text = format_json(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _freeze(values: NDArray[np.float64]) -> NDArray[np.float32]:
    result = values.astype(np.float32)
    result.flags.writeable = False
    return result
