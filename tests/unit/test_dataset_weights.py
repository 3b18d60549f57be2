"""Sampling weights: how far a segment is inside its limits decides how often its frames are drawn, within bounds."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_core.dataset import WEIGHT_METRICS, Bundle, Member, RobotFacts, lock_bundle
from amp_core.dataset import weights as rule
from amp_core.errors import InputRefused
from amp_core.features import FeatureLayout
from amp_core.metrics import METRICS
from amp_core.npz import mmap_member
from amp_core.tiers import GATE_PROFILES

LAYOUT = FeatureLayout.for_robot(("knee",), ("left", "right"))
ROBOT = RobotFacts("stick", "sha256:" + "0" * 64, ("knee",), 0.02, LAYOUT)

BEST: dict[str, float | None] = {
    "mean_sum_fn_over_mg": 1.0,
    "unloaded_frame_rate": 0.0,
    "slip_rate": 0.0,
    "p95_pitch_deg": 0.0,
    "p95_roll_deg": 0.0,
    "max_tilt_deg": 0.0,
}
WORST: dict[str, float | None] = {
    "mean_sum_fn_over_mg": 0.85,
    "unloaded_frame_rate": 0.1,
    "slip_rate": 0.1,
    "p95_pitch_deg": 30.0,
    "p95_roll_deg": 30.0,
    "max_tilt_deg": 60.0,
}
MIDDLE = {name: (float(BEST[name] or 0) + float(WORST[name] or 0)) / 2 for name in BEST}


def raw(metrics: dict[str, Any]) -> float:
    return rule.raw_weight(rule.margins(metrics))


def lock(folder: Path, members: list[tuple[str, int, dict[str, Any]]], **changes: Any) -> Bundle:
    folder.mkdir(exist_ok=True)
    made = [
        Member(
            name=name,
            digest=f"sha256:{name:0>64}",
            tier=0,
            mode="rollout",
            recipe_digest="sha256:" + "1" * 64,
            ranges=((0, frames),),
            quality_metrics=metrics,
            load=partial(np.full, (frames, LAYOUT.dim), ord(name[0]), np.float32),
            **changes,
        )
        for name, frames, metrics in members
    ]
    return lock_bundle(made, folder, name="w", version="1.0.0", robot=ROBOT, mujoco_version="4", gate_profile="amp-0.11")


def segments(bundle: Bundle) -> dict[str, dict[str, Any]]:
    clips = json.loads(bundle.manifest.path.read_bytes())["clips"]
    return {clip["name"]: clip["segments"][0] for clip in clips}


def test_the_ends_and_the_middle() -> None:
    assert rule.margins(BEST) == {"load": 1.0, "slip": 1.0, "tilt": 1.0}
    assert rule.margins(WORST) == {"load": 0.0, "slip": 0.0, "tilt": 0.0}
    assert rule.margins(MIDDLE) == {"load": 0.5, "slip": 0.5, "tilt": 0.5}
    assert (raw(BEST), raw(WORST), raw(MIDDLE)) == (1.0, 0.25, 0.625)
    assert rule.margins(BEST | {"p95_roll_deg": 24.0})["tilt"] == 0.2, "the limit with the least margin decides"


def test_every_limit_is_one_of_the_gates_and_every_metric_is_measured() -> None:
    assert set(WEIGHT_METRICS) == set(BEST) <= {metric.name for metric in METRICS}
    gates = {gate.name: gate for gate in GATE_PROFILES["amp-0.11"].gates if gate.tier != 1}
    for bounds in rule.ASPECTS.values():
        for bound in bounds:
            if bound.metric != "slip_rate":
                gate = gates[bound.metric]
                assert (bound.threshold, bound.ideal) == (gate.threshold, gate.ideal)


@settings(max_examples=200, deadline=None)
@given(
    place=st.dictionaries(st.sampled_from(sorted(BEST)), st.floats(-0.5, 1.5)),
    worse=st.sampled_from(sorted(BEST)),
    by=st.floats(0.0, 2.0),
)
def test_more_margin_is_never_less_weight_and_all_weights_are_bounded(place: dict[str, float], worse: str, by: float) -> None:
    def at(name: str, share: float) -> float:
        ideal, threshold = float(BEST[name] or 0), float(WORST[name] or 0)
        return threshold + share * (ideal - threshold)

    shares = {name: place.get(name, 0.7) for name in BEST}
    before = raw({name: at(name, share) for name, share in shares.items()})
    after = raw({name: at(name, share - by * (name == worse)) for name, share in shares.items()})
    assert 0.25 <= after <= before <= 1.0


@pytest.mark.parametrize("aspect", ["load", "slip", "tilt"])
def test_each_aspect_weighs_the_same(aspect: str) -> None:
    worse = {bound.metric: bound.threshold for bound in rule.ASPECTS[aspect]}
    assert raw(BEST | worse) == pytest.approx(0.75)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", sorted(BEST))
def test_a_metric_without_a_value_has_no_margin(name: str, value: float | None) -> None:
    missing = {key: good for key, good in BEST.items() if key != name}
    assert raw(missing) == raw(BEST | {name: value}) == pytest.approx(0.75)


def test_beyond_a_limit_is_no_less_than_at_it() -> None:
    """A Tier 1 clip in a curriculum lies beyond the limits of Tier 0; it is still drawn."""
    beyond = {"mean_sum_fn_over_mg": 0.6, "unloaded_frame_rate": 0.3, "slip_rate": 0.9, "max_tilt_deg": 90.0}
    assert raw(WORST | beyond) == raw(WORST) == 0.25


def test_the_mean_over_frames_is_1(tmp_path: Path) -> None:
    bundle = lock(tmp_path / "out", [("a", 100, BEST), ("b", 700, WORST), ("c", 13, MIDDLE)])
    weights = mmap_member(bundle.features.path, "sample_weight")
    assert weights.dtype == np.float32
    assert float(np.mean(weights, dtype=np.float64)) == pytest.approx(1.0, abs=1e-6)
    found = segments(bundle)
    assert found["a"]["weight"] / found["b"]["weight"] == pytest.approx(4.0, rel=1e-6)
    assert found["c"]["margins"] == {"load": 0.5, "slip": 0.5, "tilt": 0.5}
    # The manifest has the very numbers of the array.
    assert set(np.unique(weights).tolist()) == {entry["weight"] for entry in found.values()}
    assert (weights[:100] == np.float32(found["a"]["weight"])).all()


def test_the_manifest_says_how_weights_are_made_and_what_they_cost(tmp_path: Path) -> None:
    bundle = lock(tmp_path / "out", [("a", 100, BEST), ("b", 400, WORST)])
    said = json.loads(bundle.manifest.path.read_bytes())["weighting"]
    assert (said["rule"], said["least_raw_weight"]) == ("margins/1", 0.25)
    assert said["aspects"]["slip"] == [{"metric": "slip_rate", "threshold": 0.1, "ideal": 0.0}]
    weights = mmap_member(bundle.features.path, "sample_weight").astype(float)
    assert (said["least"], said["greatest"]) == (weights.min(), weights.max())
    # Frames 4 to 1 and weights 1 to 4: the worst there can be.
    assert said["effective_share"] == 0.64 == round(weights.sum() ** 2 / (len(weights) * (weights**2).sum()), 4)


def test_what_a_segment_weighs_beside_another_does_not_depend_on_the_rest(tmp_path: Path) -> None:
    few = segments(lock(tmp_path / "few", [("a", 50, BEST), ("b", 50, MIDDLE)]))
    many = segments(lock(tmp_path / "many", [("b", 50, MIDDLE), ("c", 900, WORST), ("a", 50, BEST)]))
    assert few["a"]["margins"] == many["a"]["margins"]
    assert few["a"]["weight"] / few["b"]["weight"] == pytest.approx(many["a"]["weight"] / many["b"]["weight"], rel=1e-6)


@pytest.mark.parametrize("metrics", [BEST, WORST, MIDDLE, {}])
def test_segments_that_are_alike_all_weigh_exactly_1(metrics: dict[str, Any], tmp_path: Path) -> None:
    bundle = lock(tmp_path / "out", [("a", 3, metrics), ("b", 7, metrics), ("c", 11, metrics)])
    assert (mmap_member(bundle.features.path, "sample_weight") == 1).all()


def test_a_window_is_weighed_by_its_own_metrics(tmp_path: Path) -> None:
    """The clip falls; its windows do not."""
    windows = Member(
        name="falls",
        digest="sha256:" + "2" * 64,
        tier=-1,
        mode="rollout",
        recipe_digest="sha256:" + "1" * 64,
        ranges=((0, 10), (20, 30)),
        quality_metrics=WORST,
        load=lambda: np.zeros((30, LAYOUT.dim), np.float32),
        range_tiers=(0, 0),
        range_metrics=(BEST, MIDDLE),
    )
    bundle = lock_bundle(
        [windows], tmp_path, name="w", version="1.0.0", robot=ROBOT, mujoco_version="4", gate_profile="amp-0.11"
    )
    found = json.loads(bundle.manifest.path.read_bytes())["clips"][0]["segments"]
    assert [entry["margins"]["load"] for entry in found] == [1.0, 0.5]
    assert found[0]["weight"] / found[1]["weight"] == pytest.approx(1 / 0.625, rel=1e-6)


def test_metrics_that_do_not_fit_the_ranges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        lock(tmp_path / "out", [("a", 5, BEST)], range_metrics=(BEST, BEST))
    assert caught.value.key == "range_metrics"
