"""Coverage: which speeds, stances, poses and sources a version's frames cover.

One pass over the rows gathers everything, in memory that hardly grows with them. The figures are the same on every machine:
frames are counted, and sums are exact, of integers. None depends on a BLAS, on the number of threads or on numpy's choice of
kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amp_core.dataset.statistics import STD_FLOOR
from amp_core.features import FeatureLayout

__all__ = ["Coverage", "FootLike"]

SPEED_BIN = 0.1
"""m/s: the width of a bin of forward and of lateral speed."""

TURN_BIN = 0.25
"""rad/s: the width of a bin of the turning rate."""

JOINT_CELL = 0.2
"""rad, about 11°: the width of a cell of joint angles; poses in different cells count as different."""

_MOST_BINS = 50  # To either side: ±5 m/s and ±12.5 rad/s. Values beyond count in the outermost bin.
_BUFFER = 1 << 12  # Rows; with `_LARGEST` it keeps every partial sum of products exact in a float64: 2^12 · 2^40 < 2^53.
_QUANTUM = 1e-4  # Of any feature's unit, in the exact sums.
_LARGEST = 1 << 20  # Quanta: 104 rad, rad/s or m/s, to which larger values are clipped.
_SLOTS = 1 << 16  # For quantiles: a float32's sign, exponent and first 7 bits, hence steps of under 0.8 % of the value.
_LOW, _HIGH = 0.05, 0.95
_DIGITS = 4


class FootLike(Protocol):
    """The part of a `Foot` that coverage needs: the indices of its contact channels."""

    @property
    def channels(self) -> Sequence[int]: ...


@dataclass
class _Source:
    """One source clip with all its variants."""

    name: str
    digest: str
    clips: int = 0
    frames: int = 0
    metres: float = 0.0  # Forward speed summed over frames: m/s.


@dataclass
class _Tier:
    """The frames of a tier, and the digests of the sources that they come from."""

    frames: int = 0
    sources: set[str] = field(default_factory=set)


class Coverage:
    """Gathers the coverage of a version's rows.

    Call `begin_clip` once for each clip, `begin_segment` for each of its frame ranges, then `add` with the range's rows in any
    pieces.

    Args:
      control_dt: s, the duration of a frame.
      feet: which contact channels are on one foot; when empty, each channel is a foot of its own.
    """

    def __init__(self, layout: FeatureLayout, control_dt: float, feet: Sequence[FootLike] = ()) -> None:
        self._layout = layout
        self._dt = float(control_dt)
        contacts = layout.block("foot_contacts")
        groups = [list(foot.channels) for foot in feet] or [[channel] for channel in range(contacts.size)]
        self._feet = [[contacts.start + channel for channel in group] for group in groups]
        self._frames = 0
        self._sources: dict[str, _Source] = {}
        self._tiers: dict[int, _Tier] = {}
        self._source: _Source | None = None
        self._tier: _Tier | None = None
        linear, angular = layout.block("root_lin_vel").start, layout.block("root_ang_vel").start
        self._speeds = {
            "forward_speed": _Histogram(linear, SPEED_BIN, "m/s"),
            "lateral_speed": _Histogram(linear + 1, SPEED_BIN, "m/s"),
            "turning_rate": _Histogram(angular + 2, TURN_BIN, "rad/s"),
        }
        self._forward = linear
        self._stance = np.zeros(3, np.int64)
        self._steps = 0
        self._last_single: int | None = None  # The foot that last stood alone in this segment.
        self._rows = np.empty((_BUFFER, layout.dim), np.float32)
        self._num_buffered = 0
        self._quantiles = _Quantiles(layout.dim)
        self._moments = _Moments(layout.dim)
        self._poses, self._velocities = _Cells(), _Cells()

    def begin_clip(self, name: str, source: str, *, original: bool) -> None:
        """Begin a clip; the next segments are of it.

        Args:
          source: digest of the clip itself, or of the clip that it is a variant of.
          original: whether it is the source itself, which then has this clip's name.
        """
        self._source = self._sources.setdefault(source, _Source(name, source))
        self._source.clips += 1
        if original:
            self._source.name = name

    def begin_segment(self, tier: int) -> None:
        """Begin a frame range of the clip; the next rows are of it and of this tier."""
        self._tier = self._tiers.setdefault(tier, _Tier())
        self._last_single = None

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add the segment's next rows, (k, F) float32 and finite."""
        source, tier = self._source, self._tier
        assert source is not None
        assert tier is not None
        self._frames += len(rows)
        source.frames += len(rows)
        source.metres += math.fsum(rows[:, self._forward].tolist())
        tier.frames += len(rows)
        tier.sources.add(source.digest)
        self._count_stances(rows)
        while len(rows):
            room = _BUFFER - self._num_buffered
            chunk, rows = rows[:room], rows[room:]
            self._rows[self._num_buffered : self._num_buffered + len(chunk)] = chunk
            self._num_buffered += len(chunk)
            if self._num_buffered == _BUFFER:
                self._flush()

    def _flush(self) -> None:
        rows = self._rows[: self._num_buffered]
        self._num_buffered = 0
        if not len(rows):
            return
        self._quantiles.add(rows)
        self._moments.add(rows)
        for histogram in self._speeds.values():
            histogram.add(rows)
        joints = np.rint(rows[:, self._layout.block("joint_pos").slice].astype(np.float64) / JOINT_CELL)
        self._poses.add(np.concatenate([joints, self._find_standing(rows)], axis=1))
        self._velocities.add(np.stack([histogram.bins(rows) for histogram in self._speeds.values()], axis=1))

    def _find_standing(self, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(k, feet) whether each foot touches the ground."""
        return np.stack([(rows[:, columns] > 0.5).any(axis=1) for columns in self._feet], axis=1)

    def _count_stances(self, rows: NDArray[np.float32]) -> None:
        standing = self._find_standing(rows)
        number = standing.sum(axis=1)
        self._stance += np.bincount(np.minimum(number, 2), minlength=3)
        single = standing[number == 1].argmax(axis=1)
        if len(single):
            if self._last_single is not None:
                self._steps += int(single[0] != self._last_single)
            self._steps += int(np.count_nonzero(np.diff(single)))
            self._last_single = int(single[-1])

    def _seconds(self, frames: int) -> float:
        return round(frames * self._dt, 6)

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `coverage`: seconds with six decimals, shares and quantiles with four."""
        self._flush()
        total = self._frames
        if not total:
            raise ValueError("no rows, no coverage")
        # From the most seconds to the least.
        sources = sorted(self._sources.values(), key=lambda source: (-source.frames, source.name, source.digest))
        flight, single, double = (int(count) for count in self._stance)
        return {
            "seconds": self._seconds(total),
            "tiers": [
                {"tier": tier, "seconds": self._seconds(frames.frames), "sources": len(frames.sources)}
                for tier, frames in sorted(self._tiers.items())
            ],
            "sources": [
                {
                    "name": source.name,
                    "digest": source.digest,
                    "clips": source.clips,
                    "seconds": self._seconds(source.frames),
                    "share": round(source.frames / total, _DIGITS),
                    "forward_speed": round(source.metres / source.frames, _DIGITS) + 0.0,
                }
                for source in sources
            ],
            **{name: histogram.to_dict(self._seconds) for name, histogram in self._speeds.items()},
            "stance": {
                "single_share": round(single / total, _DIGITS),
                "double_share": round(double / total, _DIGITS),
                "flight_share": round(flight / total, _DIGITS),
                "steps_per_second": round(self._steps / (total * self._dt), _DIGITS),
            },
            "feature_space": {
                **self._moments.to_dict(self._layout.names),
                "poses": {"joint_cell": JOINT_CELL, **self._poses.to_dict()},
                "velocities": {"speed_cell": SPEED_BIN, "turn_cell": TURN_BIN, **self._velocities.to_dict()},
            },
            "ranges": [
                {"name": name, "p5": low, "p95": high}
                for name, low, high in zip(self._layout.names, self._quantiles.at(_LOW), self._quantiles.at(_HIGH), strict=True)
            ],
        }


class _Histogram:
    """Frames by the value of one column, in bins of one width whose borders are multiples of it."""

    def __init__(self, column: int, width: float, unit: str) -> None:
        self._column = column
        self._width = width
        self._unit = unit
        self._counts = np.zeros(2 * _MOST_BINS, np.int64)

    def bins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(k,) the bin of each row: b holds `b·width` to `(b + 1)·width`."""
        bins: NDArray[np.float64] = np.floor(rows[:, self._column].astype(np.float64) / self._width)
        return np.clip(bins, -_MOST_BINS, _MOST_BINS - 1)

    def add(self, rows: NDArray[np.float32]) -> None:
        self._counts += np.bincount(self.bins(rows).astype(np.intp) + _MOST_BINS, minlength=2 * _MOST_BINS)

    def to_dict(self, seconds: Callable[[int], float]) -> dict[str, Any]:
        """The bins from the first to the last with a frame."""
        used_bins = np.flatnonzero(self._counts)
        first, last = int(used_bins[0]), int(used_bins[-1])
        return {
            "unit": self._unit,
            "bin": self._width,
            "from": round((first - _MOST_BINS) * self._width, _DIGITS),
            "seconds": [seconds(count) for count in self._counts[first : last + 1].tolist()],
        }


class _Quantiles:
    """Quantiles of every column, to within 0.4 % of the value, from counts in constant memory, whatever the order of rows."""

    def __init__(self, dim: int) -> None:
        self._counts = np.zeros(dim * _SLOTS, np.int64)
        self._offset = np.arange(dim, dtype=np.int64) * _SLOTS
        self._min = np.full(dim, np.inf)
        self._max = np.full(dim, -np.inf)

    def add(self, rows: NDArray[np.float32]) -> None:
        bits = (rows + np.float32(0)).view(np.uint32)  # Minus zero becomes zero.
        # As unsigned integers, these bits have the order of the floats.
        ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        np.add.at(self._counts, ((ascending >> 16) + self._offset).ravel(), 1)
        np.minimum(self._min, rows.min(axis=0), out=self._min)
        np.maximum(self._max, rows.max(axis=0), out=self._max)

    def at(self, share: float) -> list[float]:
        """The quantile of every column at `share`: the middle of its slot, within the extremes."""
        values = []
        for column, (least, greatest) in enumerate(zip(self._min.tolist(), self._max.tolist(), strict=True)):
            cumulative = np.cumsum(self._counts[column * _SLOTS : (column + 1) * _SLOTS])
            slot = int(np.searchsorted(cumulative, math.ceil(share * int(cumulative[-1]))))
            ascending = (slot << 16) | (1 << 15)
            bits = ascending & 0x7FFFFFFF if ascending >> 31 else ~ascending & 0xFFFFFFFF
            value = float(np.array(bits, np.uint32).view(np.float32))
            values.append(round(min(max(value, least), greatest), _DIGITS) + 0.0)
        return values


class _Moments:
    """Exact sums and products of the columns, for the number of independent directions that the rows vary in."""

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._sums: NDArray[Any] = np.zeros(dim, object)
        self._products: NDArray[Any] = np.zeros((dim, dim), object)  # Python's integers do not overflow.

    def add(self, rows: NDArray[np.float32]) -> None:
        quanta = np.clip(np.rint(rows.astype(np.float64) / _QUANTUM), -_LARGEST, _LARGEST)
        # Sums of integers below 2^53 are exact in every order.
        self._sums = self._sums + quanta.sum(axis=0).astype(np.int64).astype(object)
        self._products = self._products + (quanta.T @ quanta).astype(np.int64).astype(object)
        self._count += len(rows)

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """The participation ratio `(Σλ)² / Σλ²` of the correlation matrix, whose trace is n and whose squares sum to Σλ²."""
        count, sums = self._count, [int(value) for value in self._sums]
        # n² times the covariance, in quanta squared: exact.
        covariance = [
            [count * int(self._products[i, j]) - sums[i] * sums[j] for j in range(len(sums))] for i in range(len(sums))
        ]
        least = (STD_FLOOR / _QUANTUM * count) ** 2  # A feature with a smaller deviation does not vary.
        varying = [i for i in range(len(sums)) if covariance[i][i] >= least]
        squares = math.fsum(covariance[i][j] ** 2 / (covariance[i][i] * covariance[j][j]) for i in varying for j in varying)
        return {
            "effective_dimensions": round(len(varying) ** 2 / squares, 2) if varying else 0.0,
            "varying_dimensions": len(varying),
            "constant": [name for i, name in enumerate(names) if i not in set(varying)],
        }


class _Cells:
    """Counts rows by cell; a cell is identified by a 64-bit hash of its coordinates."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.uint64)
        self._counts = np.zeros(0, np.int64)
        self._new: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._pending = 0

    def add(self, cells: NDArray[np.float64]) -> None:
        """Add the cells of k frames, (k, d) integers."""
        key = np.zeros(len(cells), np.uint64)
        for column in cells.astype(np.int64).view(np.uint64).T:
            key = _mix_bits(key ^ column)
        keys, counts = np.unique(key, return_counts=True)
        self._new.append((keys, counts))
        self._pending += len(keys)
        # This bound keeps the memory within twice that of the merged counts.
        if self._pending > max(1 << 16, len(self._keys)):
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._new)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._new)])
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._keys, self._counts = keys[first], np.add.reduceat(counts, first)
        self._new, self._pending = [], 0

    def to_dict(self) -> dict[str, Any]:
        """`occupied` cells, and `effective`: e to the entropy of the time spent in them, a number of equally used cells."""
        self._merge()
        sizes, times = np.unique(self._counts, return_counts=True)
        total = int(self._counts.sum())
        spent = math.fsum(
            cells * (size / total) * math.log(total / size) for size, cells in zip(sizes.tolist(), times.tolist(), strict=True)
        )
        return {"occupied": len(self._keys), "effective": round(math.exp(spent), 1)}


def _mix_bits(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele and others, 2014): every bit of the result depends on every bit of the key."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
