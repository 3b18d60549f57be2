"""How features are spread and which frames lie furthest out, beside plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from amp_core.dataset.spread import FeatureSpread
from amp_core.dataset.statistics import ColumnStats
from amp_core.features import FeatureLayout

LAYOUT = FeatureLayout.for_robot(("knee",), ("left_heel", "left_toe", "right_sole"))
BLOCKS = {block.name: (block.start, block.stop) for block in LAYOUT.blocks}
CONTACTS = BLOCKS["foot_contacts"][0]
FEET = {"left": [CONTACTS, CONTACTS + 1], "right": [CONTACTS + 2]}


def make_rows(count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(count, LAYOUT.dim)).astype(np.float32)
    rows[:, BLOCKS["root_height"][0]] = 0.45
    rows[:, CONTACTS:] = rng.random((count, 3)) < [0.5, 0.2, 0.7]
    return rows, np.repeat(np.arange(count // 100, dtype=np.int32), 100)


def gather(rows: np.ndarray, segments: np.ndarray, size: int) -> FeatureSpread:
    stats = ColumnStats(LAYOUT.dim)
    stats.add(rows)
    spread = FeatureSpread(stats.to_dict(), BLOCKS, FEET)
    for begin in range(0, len(rows), size):
        spread.add(rows[begin : begin + size], segments[begin : begin + size])
    return spread


def test_quantiles_and_bins_are_those_of_the_rows() -> None:
    rows, segments = make_rows()
    facts = gather(rows, segments, 7_777).describe_features()
    for column, fact in enumerate(facts):
        values = rows[:, column].astype(np.float64)
        assert (fact["mean"], fact["std"]) == (pytest.approx(values.mean(), abs=1e-9), pytest.approx(values.std(), abs=1e-9))
        assert [fact[name] for name in ("p01", "p50", "p99")] == pytest.approx(
            np.quantile(values, [0.01, 0.5, 0.99], method="inverted_cdf"), abs=1e-3
        )
        bins = fact["histogram"]
        if column == BLOCKS["root_height"][0]:
            assert bins is None
            continue
        assert len(bins["counts"]) == 32
        assert sum(bins["counts"]) + bins["below"] + bins["above"] == len(rows)
        assert bins["below"] + bins["above"] < 0.005 * len(rows)
        edges = np.array(bins["edges"])
        assert np.array(bins["counts"]) == pytest.approx(np.histogram(values, edges)[0], abs=3)


def test_the_frames_furthest_out_are_named_one_a_segment() -> None:
    rows, segments = make_rows()
    for row, value in ((12_345, 50.0), (12_346, 60.0), (39_999, -90.0), (0, 40.0), (16_384, 30.0), (777, 25.0), (20_000, 20.0)):
        rows[row, 1] = value
    expected = [(399, 99, -90.0), (123, 46, 60.0), (0, 0, 40.0), (163, 84, 30.0), (7, 77, 25.0)]
    for size in (997, 16_384, 40_000):
        outliers = gather(rows, segments, size).list_outliers()
        assert [(outlier.segment, outlier.offset, outlier.value) for outlier in outliers[1]] == expected
        assert all(not column for number, column in enumerate(outliers) if number != 1)
    first = outliers[1][0]
    assert first.z == pytest.approx((-90.0 - rows[:, 1].mean(dtype=np.float64)) / rows[:, 1].std(dtype=np.float64))


def test_motion_is_counted_by_speed_turning_and_feet() -> None:
    rows, segments = make_rows(1_000)
    rows[0, BLOCKS["root_lin_vel"][0]] = 99.0
    motion = gather(rows, segments, 64).describe_motion()
    grid = np.array(motion["turning"]["frames"])
    assert grid.sum() == 1_000
    assert motion["turning"]["speed"]["from"] + 0.1 * len(grid) == pytest.approx(5.0), "the last cell holds what lies beyond"
    forward, turn = rows[1:, BLOCKS["root_lin_vel"][0]], rows[1:, BLOCKS["root_ang_vel"][0] + 2]
    cell = int(np.sum((forward >= 0) & (forward < 0.1) & (turn >= 0) & (turn < 0.5)))
    place = (round(-motion["turning"]["speed"]["from"] / 0.1), round(-motion["turning"]["turn"]["from"] / 0.5))
    assert grid[place] in (cell, cell + 1)
    left, right = rows[:, CONTACTS : CONTACTS + 2].any(axis=1), rows[:, CONTACTS + 2] > 0.5
    assert {tuple(phase["feet"]): phase["frames"] for phase in motion["phases"]} == {
        ("left", "right"): int((left & right).sum()),
        ("left",): int((left & ~right).sum()),
        ("right",): int((~left & right).sum()),
        (): int((~left & ~right).sum()),
    }
