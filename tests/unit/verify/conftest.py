"""One sound subject for all tests of the verification, and what puts faults into it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

from amp_core.formats import Motion, read_motion
from amp_core.motion import Conditioned
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score
from amp_core.tracking import Plan, plan
from amp_core.verify import TESTS, Subject, TestReport, symmetry, verify
from amp_core.verify.environment import random_policy_rollout

IDS = tuple(test.id for test in TESTS if test.id != "smoke")

Arrays = dict[str, npt.NDArray[Any]]


def motion(name: str, start: int, stop: int) -> Motion:
    """Some frames of a bundled motion."""
    path = next(path for path in bundled_motions() if path.stem == name)
    whole = read_motion(path, name=name, **reading_options(path))
    rows = slice(start, stop)
    return replace(whole, root_pos=whole.root_pos[rows], root_rot=whole.root_rot[rows], dof_pos=whole.dof_pos[rows])


@pytest.fixture(scope="session")
def robot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="session")
def tracked_recipe() -> Recipe:
    """A planner that takes a second: small, but of the real kind."""
    usual = Recipe.for_mode("tracked")
    assert usual.planner is not None
    small = replace(usual.planner, samples=24, horizon_sec=0.3, first_rounds=2, attempts=1)
    return replace(usual, planner=small)


@pytest.fixture(scope="session")
def sound(robot: Robot, tracked_recipe: Recipe) -> Subject:
    """Three short Tier 0 rollouts and a tracked clip, as the generator made them."""
    motions = [motion("walk", 50, 85), motion("side_step", 0, 52), motion("walk_backward", 50, 102)]
    plain = score(motions, robot, Recipe.for_mode("rollout"))
    step = replace(motion("walk", 0, 35), name="tracked_step")
    tracked = score([step], robot, tracked_recipe)
    subject = Subject.of_scores([*plain, *tracked], [*motions, step], robot)
    assert [clip.tier for clip in subject.clips] == [0] * 4, "the tests are about Tier 0 clips"
    return subject


@pytest.fixture(scope="session")
def random_rollout(sound: Subject) -> Callable[..., Mapping[str, Any]]:
    """A random policy's rollout that is made once for all subjects of the same physics, as it has no part in the faults."""
    made: dict[Any, Mapping[str, Any]] = {}

    def rollout(robot: Robot, qpos: Any, qvel: Any, **more: Any) -> Mapping[str, Any]:
        key = more["scale"]
        if key not in made:
            starts = [np.concatenate([clip.arrays[name] for clip in sound.clips]) for name in ("qpos", "qvel")]
            made[key] = random_policy_rollout(sound.robot, *starts, **more | {"frames": 2000})
        return made[key]

    return rollout


@pytest.fixture(scope="session")
def planned_once() -> Callable[..., Plan]:
    """The planner, which plans the same thing once only, as few faults have to do with it."""
    made: dict[Any, Plan] = {}

    def planned(robot: Robot, clip: Conditioned, recipe: Recipe, start: Any, **more: Any) -> Plan:
        key = (robot.digest, clip.source_digest, clip.name, recipe, start.tobytes(), *sorted(more.items()))
        if key not in made:
            made[key] = plan(robot, clip, recipe, start, **more)
        return made[key]

    return planned


@pytest.fixture(scope="session")
def compared_once() -> Callable[..., Any]:
    """The comparison of a simulation in two headings, made once for the same robot, physics, start and controls."""
    made: dict[Any, Any] = {}
    compare_rotated = symmetry.compare_rotated

    def compared(original: Any, angle: float, restart: bool) -> Any:
        model, drive = original.model, original.drive
        values = [drive.qpos, drive.qvel, drive.ctrl, drive.stab, drive.forced, model.geom_friction, model.body_mass]
        values += [model.opt.gravity, model.opt.wind, model.opt.cone, angle, restart]
        key = (original.robot.digest, *(None if value is None else np.asarray(value).tobytes() for value in values))
        if key not in made:
            made[key] = compare_rotated(original, angle, restart)
        return copy.copy(made[key])

    return compared


@pytest.fixture(scope="session")
def run(
    random_rollout: Callable[..., Mapping[str, Any]], planned_once: Callable[..., Plan], compared_once: Callable[..., Any]
) -> Callable[..., dict[str, TestReport]]:
    """Runs the tests but the training, and returns their reports by id."""

    def run(subject: Subject, *only: str, **seams: Any) -> dict[str, TestReport]:
        seams = {"random_policy_rollout": random_rollout, "plan": planned_once} | seams
        with mock.patch.object(symmetry, "compare_rotated", compared_once):
            found = verify(subject, only=only or IDS, nthread=1, **seams)
        return {test.id: test for test in found.tests if test.id in (only or IDS)}

    return run


@pytest.fixture(scope="session")
def changed() -> Callable[..., Subject]:
    """A subject whose clips' arrays a function has changed."""

    def changed(subject: Subject, change: Callable[[Arrays], None], *names: str, sources: bool = True) -> Subject:
        clips = []
        for clip in subject.clips:
            if names and clip.name not in names:
                clips.append(clip)
                continue
            arrays = {key: np.array(array) for key, array in clip.arrays.items()}
            change(arrays)
            clips.append(replace(clip, load=lambda arrays=arrays: arrays, motion=clip.motion if sources else None))
        return replace(subject, clips=tuple(clips))

    return changed
