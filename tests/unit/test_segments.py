"""Segments: the fast search against the plain one, and what a segment is."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_core.quality import FrameSeries, measure
from amp_core.segments import find_segments
from amp_core.tiers import GATE_PROFILES, GateProfile, GateSpec, classify

PROFILE = GATE_PROFILES["amp-0.11"]
PROFILES = [*GATE_PROFILES]
DT = 0.1  # five frames are half a second


def series(n: int, rng: np.random.Generator, noise: float) -> FrameSeries:
    """Frames around every gate's threshold; `noise` is how often something is wrong."""

    def some(good: Any, bad: Any) -> np.ndarray:
        # Runs, not single frames: faults last a while.
        wrong = np.repeat(rng.random(n) < noise, rng.integers(1, 4, n))[:n]
        return np.where(wrong, bad, good)

    def steps() -> np.ndarray:
        return np.stack([np.repeat(rng.random(n) < 0.7, rng.integers(1, 5, n))[:n] for _ in range(2)], axis=1)

    feet = steps()
    nonfoot = some(False, rng.random() < 0.3).astype(bool)
    in_flight = some(False, rng.random() < 0.5).astype(bool)
    return FrameSeries(
        load=some(rng.uniform(0.7, 1.3, n), rng.uniform(0.0, 0.7, n)),
        stab=some(rng.uniform(0, 0.14, n), rng.uniform(0.1, 0.3, n)),
        height=some(0.45 + rng.choice([0.0, 0.003], n), 0.3 if rng.random() < 0.3 else 0.45),
        pitch=some(rng.uniform(0, 29, n), rng.uniform(25, 60, n)),
        roll=some(rng.uniform(0, 29, n), rng.uniform(25, 60, n)),
        tilt=some(rng.uniform(0, 50, n), 70.0 if rng.random() < 0.3 else 50.0),
        feet=feet,
        nonfoot=nonfoot,
        nonfoot_excess=nonfoot & (rng.random(n) < 0.5),
        standing=np.ones(n, dtype=int),
        slipping=np.zeros(n, dtype=int),
        saturation=np.zeros(n),
        joint_error=some(rng.uniform(0, 0.08, n), 0.2),
        joint_error_raw=some(rng.uniform(0, 0.04, n), 0.1),
        body_error=some(rng.uniform(0, 0.03, n), 0.05),
        body_error_global=np.zeros(n),
        heading_error=some(rng.uniform(0, 19, n), rng.uniform(15, 60, n)),
        tilt_error=some(rng.uniform(0, 14, n), rng.uniform(10, 60, n)),
        height_error=some(rng.uniform(0, 0.02, n), rng.uniform(0, 0.04, n)),
        drift=some(rng.uniform(0, 0.25, n), 0.3 if rng.random() < 0.3 else 0.2),
        travel=some(rng.uniform(0.09, 0.15, n), rng.uniform(0.0, 0.25, n)),
        clip_travel=some(np.full(n, 0.12), 0.0),
        clip_push=some(np.full(n, 0.12), rng.uniform(0.0, 0.2, n)),
        chord=2,
        clip_feet=np.where(rng.random((n, 2)) < 0.85, feet, steps()),
        clip_pitch=rng.uniform(0, 20, n),
        clip_roll=rng.uniform(0, 20, n),
        clip_tilt=some(rng.uniform(10, 50, n), 61.0 if rng.random() < 0.3 else 50.0),
        clip_height=np.full(n, 0.45),
        clip_slide=np.where(in_flight, np.nan, some(rng.uniform(0, 0.2, n), rng.uniform(0, 0.4, n))),
        clip_flight=in_flight,
        clip_still=some(False, rng.random() < 0.7).astype(bool),
        clip_ground=np.where(in_flight, np.nan, some(rng.uniform(0, 0.03, n), rng.uniform(0, 0.055, n))),
        left=(0,),
        right=(1,),
        height_range=(0.35, 0.55),
        dt=DT,
        clip_frames=n,
        solver_warnings=0,
        contact_middle=0.625,
    )


def passes(rows: FrameSeries, start: int, stop: int, mode: str, profile: GateProfile = PROFILE) -> bool:
    return classify(measure(rows, start, stop), profile, mode, height_range=rows.height_range).tier == 0


def plain_search(rows: FrameSeries, mode: str, shortest: int, profile: GateProfile) -> list[tuple[int, int]]:
    """The definition, word for word, with every window measured in full."""

    def falls_soon(frame: int) -> bool:
        ahead = slice(frame, frame + shortest + 1)
        fallen = (rows.tilt[ahead] > 60).any() or (rows.height[ahead] < rows.height_range[0]).any()
        if rows.relative:
            fallen = (rows.tilt - rows.clip_tilt > 30)[ahead].any() or (rows.clip_height - rows.height > 0.1125)[ahead].any()
        return bool(fallen) or (rows.clip_frames > len(rows) and frame + shortest >= len(rows))

    def within(start: int, stop: int) -> list[tuple[int, int]]:
        for length in range(stop - start, shortest - 1, -1):
            for begin in range(start, stop - length + 1):
                falling = any(falls_soon(frame) for frame in range(begin, begin + length))
                if not falling and passes(rows, begin, begin + length, mode, profile):
                    return [*within(start, begin), (begin, begin + length), *within(begin + length, stop)]
        return []

    return within(0, len(rows))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 26),
    st.sampled_from([0.0, 0.03, 0.1, 0.3]),
    st.sampled_from(["rollout", "tracked"]),
    st.sampled_from(PROFILES),
)
def test_the_fast_search_finds_what_the_definition_says(seed: int, n: int, noise: float, mode: str, profile: str) -> None:
    gates = GATE_PROFILES[profile]
    rows = dataclasses.replace(series(n, np.random.default_rng(seed), noise), relative=gates.is_relative)
    found = find_segments(rows, gates, mode, DT)
    assert [(s.start, s.stop) for s in found] == plain_search(rows, mode, 5, gates)


@pytest.mark.parametrize(
    "name", [gate.name for gate in GATE_PROFILES["amp-0.12"].gates + GATE_PROFILES["amp-0.12-dynamic"].gates]
)
def test_each_gates_cheap_form_rules_out_no_window_that_passes(name: str) -> None:
    for gate in (gate for profile in GATE_PROFILES.values() for gate in profile.gates if gate.name == name and gate.tier != 1):
        alone = GateProfile("alone", (gate,))
        for seed in range(6):
            rows = series(24, np.random.default_rng(seed), 0.1)
            found = find_segments(rows, alone, "rollout", DT)
            assert [(s.start, s.stop) for s in found] == plain_search(rows, "rollout", 5, alone), gate


def test_the_beginning_of_a_fall_is_in_no_segment() -> None:
    rows = dataclasses.replace(longer_case(), tilt=np.zeros(400), height=0.45 + 0.003 * (np.arange(400) % 2))
    rows = dataclasses.replace(rows, load=np.ones(400), stab=np.zeros(400), pitch=np.zeros(400), roll=np.zeros(400))
    rows = dataclasses.replace(rows, nonfoot=np.zeros(400, dtype=bool), feet=np.tile([[True, False], [False, True]], (200, 1)))
    assert [(s.start, s.stop) for s in find_segments(rows, PROFILE, "rollout", DT)] == [(0, 400)]
    # It passes 60° at frame 200 and gets up again at once: the five frames before were the fall, whatever the gates forgive.
    tilt = np.where(np.arange(400) == 200, 61.0, 0.0)
    fell = dataclasses.replace(rows, tilt=tilt)
    assert [(s.start, s.stop) for s in find_segments(fell, PROFILE, "rollout", DT)] == [(0, 195), (201, 400)]
    given_up = dataclasses.replace(rows, clip_frames=500)
    assert [(s.start, s.stop) for s in find_segments(given_up, PROFILE, "rollout", DT)] == [(0, 395)]


def longer_case(seed: int = 5) -> FrameSeries:
    return series(400, np.random.default_rng(seed), 0.08)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_examples_above_are_not_all_empty(profile: str) -> None:
    gates = GATE_PROFILES[profile]
    counts = [len(find_segments(series(26, np.random.default_rng(seed), 0.03), gates, "rollout", DT)) for seed in range(40)]
    assert min(counts) == 0
    assert max(counts) >= 2


def test_segments_are_disjoint_long_enough_and_pass_on_their_own() -> None:
    rows = longer_case()
    found = find_segments(rows, PROFILE, "rollout", 0.02)
    assert found
    for segment in found:
        assert segment.stop - segment.start >= 25
        assert passes(rows, segment.start, segment.stop, "rollout")
        assert segment.quality_metrics == measure(rows, segment.start, segment.stop)
        assert segment.tier == 0
        assert 0.0 <= segment.score <= 1.0
    assert all(a.stop <= b.start for a, b in pairwise(found))


def test_no_segment_can_be_grown_on_either_side() -> None:
    rows = longer_case()
    found = find_segments(rows, PROFILE, "rollout", 0.02)
    edges = [0, *(edge for s in found for edge in (s.start, s.stop)), len(rows)]
    for i, segment in enumerate(found):
        free_from, free_to = edges[2 * i], edges[2 * i + 3]
        for start in range(free_from, segment.start + 1):
            for stop in {segment.stop, free_to}:
                if (start, stop) != (segment.start, segment.stop):
                    assert not passes(rows, start, stop, "rollout")


def test_a_clip_that_passes_is_one_segment() -> None:
    n = 100
    rows = series(n, np.random.default_rng(0), 0.0)
    rows = dataclasses.replace(
        rows, load=np.ones(n), stab=np.zeros(n), feet=np.stack([np.arange(n) % 10 < 6, np.arange(n) % 10 >= 4], axis=1)
    )
    found = find_segments(rows, PROFILE, "rollout", 0.02)
    assert [(s.start, s.stop) for s in found] == [(0, n)]
    assert found[0].to_dict()["end"] == n


def test_forced_poses_are_never_tier_0() -> None:
    assert find_segments(longer_case(), PROFILE, "rollout", 0.02)
    assert find_segments(longer_case(), PROFILE, "teacher_forced", 0.02) == []


def test_a_gate_that_the_search_knows_no_shortcut_for_is_obeyed() -> None:
    strict = GateProfile("strict", (*PROFILE.gates, GateSpec("p10_sum_fn_over_mg", ">=", 0.72, 0)))
    rows = longer_case()
    found = find_segments(rows, strict, "rollout", 0.02)
    assert found
    assert all(s.quality_metrics["p10_sum_fn_over_mg"] >= 0.72 for s in found)  # type: ignore[operator]
    usual = find_segments(rows, PROFILE, "rollout", 0.02)
    assert any(s.quality_metrics["p10_sum_fn_over_mg"] < 0.72 for s in usual)  # type: ignore[operator]


@pytest.mark.parametrize("n", [0, 1, 24])
def test_a_clip_shorter_than_half_a_second_has_none(n: int) -> None:
    assert find_segments(series(n, np.random.default_rng(0), 0.0), PROFILE, "rollout", 0.02) == []
