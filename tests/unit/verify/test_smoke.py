"""The micro-training: it learns on a real reference, and each fault that it is there for makes it fail by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from amp_core.client import STD_FLOOR
from amp_core.dataset import ColumnStats
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, score
from amp_core.verify import FAIL, PASS, SKIP, Artifacts, Clip, Context, PolicySide, Subject, TestReport
from amp_core.verify.environment import Environment, random_policy_rollout
from amp_core.verify.report import Findings
from amp_core.verify.smoke import AUC, LOSS_FALL, REWARD_STD, judge, run
from amp_core.verify.smoke_reference import FEATURE_CLIP, Normalization, Reference
from amp_core.verify.smoke_settings import SmokeSettings
from amp_core.verify.smoke_training import Fault, area_under_curve

QUICK = SmokeSettings(iterations=12, worlds=16, minibatch=128, untrained=2000)


@cache
def robot() -> Robot:
    return Robot.load("wildrobot")


@cache
def marching() -> Score:
    """The bundled march, which is Tier 0 in mode rollout."""
    path = next(path for path in bundled_motions() if path.stem == "march_in_place")
    found = score([read_motion(path, name=path.stem, **reading_options(path))], robot(), Recipe.for_mode("rollout"))[0]
    assert found.tier == 0
    return found


def clip(**changes: Any) -> Clip:
    """The march, with other arrays or other fields."""
    fields = {key: changes.pop(key) for key in ("name", "tier", "ranges", "recipe") if key in changes}
    arrays = {**marching().rollout.arrays(), **changes}
    base = Clip(name="march_in_place", tier=0, recipe=marching().rollout.recipe, load=lambda: arrays)
    return replace(base, **fields)


def context(*clips: Clip, artifacts: Artifacts | None = None, **fields: Any) -> Context:
    return Context(Subject(robot(), clips or (clip(),), artifacts=artifacts), **fields)


def rows(report: TestReport) -> dict[str, Any]:
    return {row.name: row for row in report.rows}


def failed(report: TestReport) -> set[str]:
    return {row.name for row in report.rows if row.status == FAIL}


# --- It learns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["lsgan", "bce"])
def test_it_learns_on_a_real_reference(loss):
    shares: list[float] = []
    report = run(context(progress=lambda share, text: shares.append(share)), replace(QUICK, loss=loss))
    assert report.status == PASS, report.reason
    assert report.name == "smoke micro-train"
    found = rows(report)
    assert found["auc"].value > 0.8
    assert found["auc_untrained"].value > 0.8
    assert found["reward_std"].value > REWARD_STD
    assert found["d_loss.fall"].value > 0.05
    curves = report.figures["curves"]
    assert {len(values) for values in curves.values()} == {12}
    # What was never trained says 0 of everything: chance.
    assert curves["auc"][0] == curves["auc_untrained"][0] == 0.5
    assert curves["d_loss"][0] == pytest.approx(1.0 if loss == "lsgan" else math.log(2), rel=1e-5)
    assert curves["reward_std"][0] < 1e-5
    assert shares == pytest.approx([(i + 1) / 12 for i in range(12)])
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_same_seed_gives_the_same_figures_on_any_number_of_threads():
    few = replace(QUICK, iterations=4)
    one, two = (run(context(seed=3, nthread=n), few) for n in (1, 2))
    assert one.figures == two.figures
    assert one.rows == two.rows
    assert run(context(seed=4), few).figures["curves"] != one.figures["curves"]


def test_windows_of_a_rejected_clip_take_part_and_no_transition_crosses_from_one_to_another():
    found = Reference.of(context(clip(tier=-1, ranges=((10, 60), (100, 140)))).subject)
    assert found is not None
    assert [found.names[i] for i in (0, 49, 50, 89)] == [("march_in_place", f) for f in (10, 59, 100, 139)]
    features = np.asarray(marching().rollout.features)
    assert np.array_equal(found.rows, np.concatenate([features[10:60], features[100:140]]))
    firsts = np.sort(np.concatenate([found.train, found.held_out]))
    assert firsts.tolist() == [*range(49), *range(50, 89)]
    assert 0.1 < len(found.held_out) / len(firsts) < 0.3
    assert np.array_equal(found.starts_qpos[50], marching().rollout.qpos[100])


def test_of_several_physics_it_trains_in_the_one_with_the_most_frames():
    heavy = replace(marching().rollout.recipe, physics=PhysicsScale(mass=1.1))
    found = Reference.of(context(clip(ranges=((0, 60),)), clip(name="heavy", recipe=heavy)).subject)
    assert found is not None
    assert found.physics == PhysicsScale(mass=1.1)
    assert {name for name, _ in found.names} == {"heavy"}
    assert "mass=1.1 physics, the physics with the most frames of 2" in found.description


def test_a_locked_versions_own_statistics_are_used():
    stats = ColumnStats(robot().layout.dim)
    stats.add(marching().rollout.features)
    locked = Artifacts(marching().rollout.features, stats.to_dict(), {})
    report = run(context(artifacts=locked), replace(QUICK, iterations=4))
    assert rows(report)["stats.mean"].value < 1e-5
    assert rows(report)["stats.std"].value < 1e-5
    assert failed(report) & {"stats", "stats.mean", "stats.std"} == set()


# --- What it cannot run ---------------------------------------------------------------------------------------------------


def test_without_tier_0_frames_it_is_skipped():
    report = run(context(clip(tier=1)), QUICK)
    assert report.status == SKIP
    assert "no Tier 0 clip" in report.reason


def test_without_jax_or_optax_it_is_skipped(monkeypatch):
    def missing(robot: Robot) -> PolicySide:
        raise ImportError("no JAX")

    report = run(context(policy=missing), QUICK)
    assert (report.status, report.reason) == (SKIP, "JAX is not installed: install ampref[train]")
    monkeypatch.setitem(sys.modules, "optax", None)
    assert run(context(), QUICK).status == SKIP


def test_it_imports_without_jax_and_runs_on_the_cpu_beside_a_gpu(monkeypatch):
    code = "import sys, amp_core.verify.smoke; sys.exit(any(name in sys.modules for name in ('jax', 'optax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    import jax

    asked: list[Any] = []
    real = jax.local_devices

    def devices(**more: Any) -> Any:
        asked.append(more)
        return real(**more)

    monkeypatch.setattr(jax, "local_devices", devices)
    run(context(), replace(QUICK, iterations=1))
    assert asked == [{"backend": "cpu"}]

    def none(**more: Any) -> Any:
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    report = run(context(), QUICK)
    assert report.status == SKIP
    assert "add cpu to JAX_PLATFORMS" in report.reason


def test_what_progress_raises_is_passed_on():
    class StoppedError(Exception):
        pass

    def stop(share: float, text: str) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(context(progress=stop), QUICK)


# --- Negative twins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_twin_a_reference_that_is_not_finite(value):
    features = marching().rollout.features.copy()
    features[17, 10] = value
    report = run(context(clip(features=features)), QUICK)
    assert report.status == FAIL
    assert "reference's features are not finite: 1 values" in report.reason
    assert f"clip march_in_place, frame 17, {robot().layout.names[10]}" in report.reason


@cache
def recorded_from_noise() -> Clip:
    """A clip whose features are an untrained policy's, while its states are the march's."""
    qpos, qvel = marching().rollout.qpos, marching().rollout.qvel
    noise = random_policy_rollout(robot(), qpos, qvel, frames=10_000, seed=77)
    edges = [0, *(np.flatnonzero(np.diff(noise["episode"])) + 1).tolist(), 10_000]
    repeated = np.arange(10_000) % len(qpos)
    return clip(
        features=noise["features"],
        qpos=qpos[repeated],
        qvel=qvel[repeated],
        foot_contacts=marching().rollout.foot_contacts[repeated],
        ranges=tuple(pairwise(edges)),
    )


# Many worlds and frames, since noise must be told from noise; of one size, so that the code is compiled once.
LARGE = replace(QUICK, worlds=64, untrained=10_000)


def test_twin_a_reference_that_was_recorded_from_a_policy():
    report = run(context(recorded_from_noise()), LARGE)
    assert report.status == FAIL
    assert "the discriminator cannot tell reference from an untrained policy" in report.reason
    assert 0.4 < rows(report)["auc_untrained"].value < AUC


def test_twin_a_policy_that_stays_where_the_reference_was_recorded():
    # Where the policy does not move, the AUC against itself stays at chance, too.
    report = run(context(recorded_from_noise()), replace(LARGE, policy_rate=0.0))
    assert "the discriminator cannot tell reference from policy" in report.reason
    assert "the policy's parameters did not change" in report.reason
    assert {"auc", "auc_untrained", "policy_moved"} <= failed(report)


def test_twin_a_discriminator_that_does_not_learn():
    report = run(context(), replace(QUICK, discriminator_rate=0.0))
    assert report.status == FAIL
    assert failed(report) == {"d_loss.fall", "auc", "auc_untrained", "reward_std"}
    assert "the discriminator's loss does not fall (from 1 to 1)" in report.reason
    assert "learning rate (0)" in report.reason
    assert "the AMP reward is constant" in report.reason


def test_twin_a_policy_that_does_not_learn():
    report = run(context(), replace(QUICK, policy_rate=0.0))
    assert failed(report) == {"policy_moved"}
    assert "the policy's parameters did not change" in report.reason


def locked(**changes: Any) -> Artifacts:
    features = marching().rollout.features
    stats = {"mean": features.mean(axis=0).tolist(), "std": features.std(axis=0).tolist()}
    return Artifacts(features, stats | changes, {})


def test_twin_stale_statistics_that_leave_nothing_of_the_features():
    dim = robot().layout.dim
    report = run(context(artifacts=locked(std=[1e9] * dim)), QUICK)
    assert report.status == FAIL
    assert {"stats.std", "reward_std"} <= failed(report)
    assert "not those of the version's rows (stale?)" in report.reason
    assert "the AMP reward is constant" in report.reason


def test_twin_statistics_of_another_version():
    # Degrees in the joint velocities' statistics, radians in the rows. The discriminator learns from the rest all the same.
    block = robot().layout.block("joint_vel")
    std = marching().rollout.features.std(axis=0)
    std[block.slice] *= 57.3
    report = run(context(artifacts=locked(std=std.tolist())), QUICK)
    assert failed(report) == {"stats.std"}
    assert "joint_vel" in report.reason


@pytest.mark.parametrize(
    "changes",
    [{"std": [0.0] * 3}, {"mean": []}, {"std": [float("nan")] * 27}, {"std": [-1.0] * 27}],
    ids=["short", "empty", "nan", "negative"],
)
def test_twin_statistics_that_cannot_be_used(changes):
    report = run(context(artifacts=locked(**changes)), QUICK)
    assert failed(report) == {"stats"}
    assert "statistics cannot be used" in report.reason
    assert "expected 27 finite numbers" in report.reason


def test_twin_statistics_of_zero_std():
    report = run(context(artifacts=locked(std=[0.0] * robot().layout.dim)), QUICK)
    assert "stats.std" in failed(report)
    assert "the statistics say" in report.reason


def test_twin_physics_that_explodes(monkeypatch):
    real = Environment.step

    def explode(self: Environment, ctrl: Any) -> Any:
        done = real(self, ctrl)
        if self.count == QUICK.worlds and self.age.max() == 2 * QUICK.steps + 3:
            self.qvel[5, 8] = np.nan
        return done

    monkeypatch.setattr(Environment, "step", explode)
    report = run(context(), QUICK)
    assert report.status == FAIL
    assert report.reason.startswith("observations are not finite in iteration 2 of 12")
    assert len(report.figures["curves"]["auc"]) == 2
    json.dumps(report.to_dict(), allow_nan=False)


def faulty(extract: Callable[..., Any]) -> Callable[[Robot], PolicySide]:
    return lambda robot: replace(PolicySide.of(robot), extract=extract)


def test_twin_an_extractor_that_divides_by_zero():
    def extract(obs: Any, *args: Any, **more: Any) -> Any:
        found = PolicySide.of(robot()).extract(obs, *args, **more)
        return found / (found * 0)

    report = run(context(policy=faulty(extract)), QUICK)
    assert report.reason.startswith("the policy's features are not finite in iteration 0")


def test_twin_an_extractor_that_is_not_connected():
    def extract(obs: Any, *args: Any, **more: Any) -> Any:
        return 0 * PolicySide.of(robot()).extract(obs, *args, **more)

    report = run(context(policy=faulty(extract)), QUICK)
    assert "reward_std" in failed(report)
    assert "the AMP reward is constant" in report.reason


def test_twin_learning_rates_that_blow_up():
    report = run(context(), replace(QUICK, discriminator_rate=1e38))
    assert report.status == FAIL
    assert report.reason.startswith("the discriminator's")
    assert "not finite in iteration 0" in report.reason
    report = run(context(), replace(QUICK, policy_rate=1e38))
    assert report.status == FAIL
    assert "policy's" in report.reason
    assert "not finite in iteration 0" in report.reason


# --- The gates ------------------------------------------------------------------------------------------------------------


def judged(fault: Fault | None = None, **changes: Any) -> TestReport:
    """The verdict over 40 iterations that go well, but for the changes."""
    ramp = np.linspace(0.0, 1.0, 40)
    curves = {
        "d_loss": 1.0 - 0.5 * ramp,
        "auc": 0.5 + 0.4 * ramp,
        "auc_untrained": 0.5 + 0.45 * ramp,
        "reward_mean": 0.75 - 0.3 * ramp,
        "reward_std": 0.2 * ramp,
        "policy_loss": np.full(40, -0.02),
        "value_loss": np.full(40, 0.3),
        "policy_moved": 5.0 * ramp,
        "fall_rate": np.full(40, 0.01),
    }
    found = Findings("smoke", "micro-train")
    judge(found, {**curves, **changes}, SmokeSettings(iterations=40), fault)
    return found.report("")


def test_the_gates_pass_what_goes_well():
    assert judged().status == PASS


@pytest.mark.parametrize(
    ("name", "row", "worst", "words"),
    [
        ("d_loss", "d_loss.fall", 1.0 - 0.9 * LOSS_FALL, "does not fall"),
        ("auc", "auc", AUC, "cannot tell reference from policy"),
        ("auc_untrained", "auc_untrained", AUC, "cannot tell reference from an untrained policy"),
        ("reward_std", "reward_std", REWARD_STD, "reward is constant"),
    ],
)
def test_a_gate_is_over_the_last_tenth_of_the_iterations(name, row, worst, words):
    good = {"d_loss": 0.5, "auc": 0.9, "auc_untrained": 0.9, "reward_std": 0.2}[name]
    late = np.full(40, good)
    late[0], late[-4:] = 1.0, worst
    report = judged(**{name: late})
    assert failed(report) == {row}
    assert words in report.reason
    # The other way round it passes: what was bad before does not matter.
    early = np.full(40, worst)
    early[0], early[-4:] = 1.0, good
    assert judged(**{name: early}).status == PASS


def test_a_loss_that_rises_or_stands_still_has_not_fallen():
    assert failed(judged(d_loss=np.ones(40))) == {"d_loss.fall"}
    assert failed(judged(d_loss=np.linspace(1.0, 1.4, 40))) == {"d_loss.fall"}


def test_no_gate_passes_what_is_not_a_number():
    for name in ("d_loss", "auc", "auc_untrained", "reward_std", "policy_loss", "policy_moved"):
        assert judged(**{name: np.full(40, np.nan)}).status == FAIL, name


def test_a_fault_names_quantity_iteration_and_remedy():
    report = judged(Fault(7, "rewards are", "the style reward"))
    assert report.status == FAIL
    assert "rewards are not finite in iteration 7 of 40" in report.reason
    assert "the style reward" in report.reason


def test_the_area_under_the_curve_is_mann_and_whitneys():
    generator = np.random.default_rng(0)
    high, low = generator.integers(0, 9, 50) + 1.0, generator.integers(0, 9, 70) * 1.0
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a in high for b in low]
    assert area_under_curve(high, low) == pytest.approx(np.mean(pairs))
    assert area_under_curve(low, high) == pytest.approx(1 - np.mean(pairs))
    assert area_under_curve([1.0, 2.0], [0.0]) == 1.0
    assert area_under_curve(np.zeros(9), np.zeros(4)) == 0.5


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected 'lsgan' or 'bce'"):
        SmokeSettings(loss="hinge")
    with pytest.raises(ValueError, match="iterations is 0"):
        SmokeSettings(iterations=0)
    with pytest.raises(ValueError, match="no multiple of the minibatch"):
        SmokeSettings(minibatch=300)


def test_features_are_normalized_as_on_a_training_node():
    reference = Reference.of(context().subject)
    assert reference is not None
    normal = Normalization.of(Findings("smoke"), context().subject, reference)
    assert normal is not None
    layout, features = robot().layout, marching().rollout.features
    found = normal.apply(features + 100.0)
    contacts = layout.block("foot_contacts").slice
    assert (found[:, : contacts.start] == FEATURE_CLIP).all()
    assert (found[:, contacts] > 100.0).all()
    plain = normal.apply(features)
    assert np.abs(plain.mean(axis=0)).max() < 0.1
    std = features.std(axis=0)
    wide = (features - features.mean(axis=0)) / np.maximum(std, STD_FLOOR)
    assert np.allclose(plain[:, contacts], wide[:, contacts], atol=1e-4)
