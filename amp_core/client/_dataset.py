"""A locked version in memory: mapped arrays, statistics, sampling."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from amp_core.client._download import Progress
from amp_core.client._http import Retry
from amp_core.client._pull import PulledVersion, pull
from amp_core.client._split import DatasetBucket, DatasetPart, buckets, split
from amp_core.errors import IntegrityError
from amp_core.npz import mmap_member
from amp_core.strict_json import read_json

__all__ = ["STD_FLOOR", "Dataset", "load_dataset"]

log = logging.getLogger("amp_core.client")

STD_FLOOR = 0.01
"""The smallest deviation that `normalize` divides by: below it the seed's distribution test calls a dimension constant."""

MOST_ROWS = 1 << 28
"""The most rows that one call draws: 29 GB of 27 features. More is a mistake, which is better told than met as no memory."""

_HASH_ROWS = 1 << 16


def load_dataset(
    spec: str,
    url: str | None = None,
    manifest_sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    *,
    progress: Progress | None = None,
    retry: Retry | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> Dataset:
    """A locked version, downloaded once, verified, memory-mapped.

    Every load verifies the three files as `pull` does and computes `dataset_hash` again from the mapped rows; what was
    downloaded is on the disk when it returns. Without
    `manifest_sha256` the service's word is taken for what the version is, and a log line gives the digest to pin.

    Args and Raises: as for `pull`.
    """
    pulled = pull(
        spec,
        url=url,
        manifest_sha256=manifest_sha256,
        cache_dir=cache_dir,
        offline=offline,
        progress=progress,
        retry=retry,
        transport=transport,
    )
    if manifest_sha256 is None:
        log.info('%s==%s: pin it with manifest_sha256="%s"', pulled.name, pulled.version, pulled.manifest_sha256)
    try:
        data = Dataset(pulled)
    except FileNotFoundError:
        pulled.wait_for_disk()  # Which tells why it is gone.
        raise
    # Here, because the disk has worked while the rows were hashed.
    pulled.wait_for_disk()
    return data


class Dataset:
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
        self.manifest: dict[str, Any] = _read_json(pulled.manifest)
        self.stats: dict[str, Any] = _read_json(pulled.normalization_stats)
        self.layout: dict[str, Any] = self.manifest["feature_layout"]
        self.features: NDArray[np.float32] = mmap_member(pulled.features, "features")
        self.clip_index: NDArray[np.int32] = mmap_member(pulled.features, "clip_index")
        self.segment_index: NDArray[np.int32] = mmap_member(pulled.features, "segment_index")
        self.sample_weight: NDArray[np.float32] = mmap_member(pulled.features, "sample_weight")
        self._check()

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        rows, dim = self.features.shape
        return f"<Dataset {self.name}=={self.version}: {rows:,} frames of {dim} features, {self.manifest['num_clips']} clips>"

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

        One, `canonical`, for a version of the robot's own physics; none for one that was locked before buckets were recorded.
        """
        return buckets(self)

    def bucket(self, name: str) -> DatasetBucket:
        """The bucket of this name, such as `friction=0.7`; `KeyError` lists the buckets there are."""
        for found in self.buckets:
            if found.name == name:
                return found
        there = ", ".join(found.name for found in self.buckets) or "none: it was locked before buckets were recorded"
        raise KeyError(f"{self.name}=={self.version} has no bucket {name!r}; there are {there}")

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """(F,) mean of every feature."""
        return _frozen(np.asarray(self.stats["mean"], np.float64))

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """(F,) what `normalize` divides by: the standard deviation, and `STD_FLOOR` where it is smaller."""
        return _frozen(np.maximum(np.asarray(self.stats["std"], np.float64), STD_FLOOR))

    def normalize(self, x: ArrayLike, *, clip: bool = False) -> NDArray[np.float32]:
        """`(x - mean) / max(std, STD_FLOOR)`, per feature.

        A feature that is constant in the reference comes out as 0 there, and finite for a policy that deviates. Contacts are
        treated like every other feature: the discriminator sees two values, a constant distance apart.

        Args:
          x: (…, F) features, from this dataset or from a policy.
          clip: limit the result to ±3, the seed's `clip_low` and `clip_high`. Contacts are not clipped: they are bounded
            already, and a contact that is nearly always on would lose its meaning.
        Returns: (…, F) float32, a new array.
        """
        values = self._rows(x)
        normal = (values - self.mean) / self.scale
        if clip:
            contacts = self.block("foot_contacts")
            kept = normal[..., contacts].copy()
            np.clip(normal, -3.0, 3.0, out=normal)
            normal[..., contacts] = kept
        return normal

    def denormalize(self, z: ArrayLike) -> NDArray[np.float32]:
        """The inverse of `normalize` without clipping, (…, F) float32."""
        result: NDArray[np.float32] = self._rows(z) * self.scale + self.mean
        return result

    def sample(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> NDArray[np.float32]:
        """`n` rows drawn with replacement: (n, F) float32, not normalized.

        Args:
          weighted: in proportion to `sample_weight`; otherwise every row is as likely as any other.
          bucket: only rows of this bucket, such as `friction=0.7`.
        Raises:
          TypeError, ValueError: `rng` is no `numpy.random.Generator`, or `n` no whole number from 1 to `MOST_ROWS`.
          KeyError: there is no such bucket.
        """
        if bucket is not None:
            return self.bucket(bucket).sample(rng, n, weighted=weighted)
        n = _check_draw(rng, n)
        cumulative = self._cumulative if weighted else None
        rows = rng.integers(0, len(self), n) if cumulative is None else _draw(rng, cumulative, n)
        return np.asarray(self.features[rows])

    def sample_transitions(
        self, rng: np.random.Generator, n: int, *, weighted: bool = True, bucket: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`n` pairs of consecutive frames `(s, s')`, each (n, F) float32, one control step apart.

        No pair crosses the border of a segment. A pair is drawn in proportion to the weight of its first frame.

        Args:
          weighted, bucket: as for `sample`.
        Raises:
          TypeError, ValueError, KeyError: as for `sample`; or the version has no two consecutive frames.
        """
        if bucket is not None:
            return self.bucket(bucket).sample_transitions(rng, n, weighted=weighted)
        n = _check_draw(rng, n)
        rows = self._transition_rows(rng, n, weighted)
        return np.asarray(self.features[rows]), np.asarray(self.features[rows + 1])

    def split(self, fractions: Sequence[float], *, seed: int = 0) -> tuple[DatasetPart, ...]:
        """The version divided into parts, for example for training and evaluation, by lineage.

        A clip and all variants made from it, in every bucket, are in one part, so nothing held out was seen mirrored, slower or
        in other physics. Groups are dealt out whole, each to the part that lacks most frames, in an order that `seed` decides;
        the same everywhere. The shares are met as nearly as whole groups allow, and no part is empty.

        Args:
          fractions: share of the frames of each part; they add up to 1.
          seed: another one, another division.
        Raises:
          ValueError: fractions that do not add up to 1, or fewer lineage groups than parts.
        """
        return split(self, fractions, seed)

    def _transition_rows(self, rng: np.random.Generator, n: int, weighted: bool) -> NDArray[np.int64]:
        starts, before = self._runs
        if before[-1] == 0:
            raise ValueError(f"{self.name}=={self.version} has no segment of two frames, so it holds no transition")
        weights = self._cumulative_transitions if weighted else None
        if weights is not None:
            return _draw(rng, weights, n)
        drawn = rng.integers(0, before[-1], n)
        segment = np.searchsorted(before, drawn, side="right") - 1
        rows: NDArray[np.int64] = starts[segment] + (drawn - before[segment])
        return rows

    @cached_property
    def _runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row of every segment, and the number of transitions before it (with the total as the last one)."""
        borders = np.flatnonzero(np.diff(self.segment_index)) + 1
        starts = np.concatenate(([0], borders)).astype(np.int64)
        lengths = np.diff(np.concatenate((starts, [len(self)])))
        return starts, np.concatenate(([0], np.cumsum(lengths - 1))).astype(np.int64)

    @cached_property
    def _cumulative(self) -> NDArray[np.float64] | None:
        """Running sum of the weights; None when all are equal, which is drawn faster and in no memory."""
        if np.all(self.sample_weight == self.sample_weight[0]):
            return None
        return np.cumsum(self.sample_weight, dtype=np.float64)

    @cached_property
    def _cumulative_transitions(self) -> NDArray[np.float64] | None:
        if self._cumulative is None:
            return None
        weights = np.array(self.sample_weight, np.float64)
        weights[:-1][np.diff(self.segment_index) != 0] = 0.0
        weights[-1] = 0.0
        return np.cumsum(weights)

    def _rows(self, x: ArrayLike) -> NDArray[np.float32]:
        values = np.asarray(x, dtype=np.float32)
        if values.ndim == 0 or values.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} features in the last dimension, not shape {values.shape}")
        return values

    def _check(self) -> None:
        """That the three files tell the same story, and that the rows have the hash that names them."""
        rows = self.manifest["num_frames"]
        expected = {
            "features": ((rows, self.manifest["feature_layout"].get("dim")), np.float32),
            "clip_index": ((rows,), np.int32),
            "segment_index": ((rows,), np.int32),
            "sample_weight": ((rows,), np.float32),
        }
        for key, (shape, dtype) in expected.items():
            array: NDArray[Any] = getattr(self, key)
            if array.shape != shape or array.dtype != dtype:
                raise self._differs(self.pulled.features, key, f"{np.dtype(dtype)} {shape}", f"{array.dtype} {array.shape}")
        for key in ("version", "dataset_hash", "feature_code_hash", "num_clips", "num_frames"):
            if self.stats.get(key) != self.manifest[key]:
                raise self._differs(self.pulled.normalization_stats, key, self.manifest[key], self.stats.get(key))
        for key in ("mean", "std", "min", "max", "clip_low", "clip_high"):
            if len(self.stats.get(key, ())) != self.dim:
                raise self._differs(self.pulled.normalization_stats, key, f"{self.dim} values", "another number")
        sha = hashlib.sha256()
        for start in range(0, rows, _HASH_ROWS):
            sha.update(np.ascontiguousarray(self.features[start : start + _HASH_ROWS]).data)
        if (found := f"sha256:{sha.hexdigest()}") != self.manifest["dataset_hash"]:
            raise self._differs(self.pulled.features, "dataset_hash", self.manifest["dataset_hash"], found)

    def _differs(self, path: Path, key: str, expected: object, found: object) -> IntegrityError:
        return IntegrityError(
            f"this file of {self.name}=={self.version} has {found} where the manifest says otherwise",
            file=str(path),
            key=key,
            expected=str(expected),
            remedy="The version was not locked properly: do not train on it, and ask the service's operator.",
        )


def _check_draw(rng: object, n: object) -> int:
    """`n` as an int, once both are known to be what `sample` takes."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {_named(rng)}; expected a numpy Generator, such as numpy.random.default_rng(0)")
    # A bool is an int to Python, but nobody means to draw True rows.
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n is {_named(n)}; expected a whole number of rows, such as 4096")
    rows = int(n)
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"n is {rows if abs(rows) < 1 << 64 else 'far more'}; expected 1 to {MOST_ROWS:,} rows")
    return rows


def _named(value: object) -> str:
    text = (
        repr(value) if isinstance(value, float | bool | str | np.generic) or value is None else f"a {type(value).__qualname__}"
    )
    return text if len(text) <= 80 else text[:79] + "…"


def _draw(rng: np.random.Generator, cumulative: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """`n` indices in proportion to the weights whose running sum is given; an index of weight 0 is never drawn."""
    drawn = rng.random(n) * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))
    rows: NDArray[np.int64] = np.minimum(np.searchsorted(cumulative, drawn, side="right"), last).astype(np.int64)
    return rows


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float32]:
    result = values.astype(np.float32)
    result.flags.writeable = False
    return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path.read_bytes())
    except ValueError as error:
        raise IntegrityError("the file is not JSON", file=str(path), remedy="Lock the version again.") from error
    if not isinstance(value, dict):
        raise IntegrityError("the file is not a JSON object", file=str(path), remedy="Lock the version again.")
    return value
