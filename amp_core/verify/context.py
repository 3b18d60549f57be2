"""What a test is given: the subject, and the seams through which it reaches the policy, the generator and the environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.rollout import generate
from amp_core.tracking import plan
from amp_core.verify.report import FAIL, SKIP, Row, TestReport, worst

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Arrays, Clip, Subject

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CHUNK = 1024
"""Rows that go through the policy's compiled code at a time: one shape, so that it is compiled once."""

NO_JAX = "JAX is not installed: install ampref[train]"


@dataclass(frozen=True)
class PolicySide:
    """The policy's own code for one robot: the functions of `amp_core.policy`, and its config.

    Tests reach it through this value, so that a faulty one can be put in its place.
    """

    config: Any
    observe: Callable[..., Any]
    observe_host: Callable[..., Any]
    extract: Callable[..., Any]
    estimate_contacts: Callable[..., Any]

    @classmethod
    def of(cls, robot: Robot) -> PolicySide:
        """The real one.

        Raises:
          ImportError: JAX is not installed.
        """
        from amp_core import policy

        return cls(
            config=policy.AMPFeatureConfig.for_robot(robot),
            observe=policy.observe,
            observe_host=policy.observe_host,
            extract=policy.extract_amp_features,
            estimate_contacts=policy.estimate_contacts,
        )

    def on_host(self, qpos: Array, qvel: Array) -> Floats:
        """(N, O) the observations from (N, nq) and (N, nv), in float64 and rounded once."""
        return np.asarray(self.observe_host(self.config, qpos, qvel), dtype=np.float32)

    def on_device(self, qpos: Array, qvel: Array) -> Floats:
        """(N, O) the observations as training makes them, all in float32."""
        return in_chunks(_observer(self.observe, self.config), qpos.astype(np.float32), qvel.astype(np.float32))

    def features(self, obs: Floats, height: Floats, before: Floats, contacts: Floats, dt: float) -> Floats:
        """(N, F) from observations (N, O), root heights (N,), the joints a frame before (N, n) and contacts (N, C)."""
        return in_chunks(_assembler(self.extract, self.config, dt, False), obs, height, before, contacts)

    def features_one_by_one(self, obs: Floats, height: Floats, before: Floats, contacts: Floats, dt: float) -> Floats:
        """The same, each row on its own."""
        return in_chunks(_assembler(self.extract, self.config, dt, True), obs, height, before, contacts)

    def contacts(self, obs: Floats, height: Floats) -> Floats:
        """(N, C) 0/1: which channels forward kinematics takes to be in contact."""
        return in_chunks(_estimator(self.estimate_contacts, self.config), obs, height)


@lru_cache(maxsize=16)
def _observer(observe: Callable[..., Any], config: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(lambda qpos, qvel: observe(config, qpos, qvel))


@lru_cache(maxsize=16)
def _assembler(extract: Callable[..., Any], config: Any, dt: float, singly: bool) -> Callable[..., Any]:
    import jax

    def assemble(obs: Any, height: Any, before: Any, contacts: Any) -> Any:
        return extract(obs, config, height, before, dt, foot_contacts_override=contacts, use_obs_joint_vel=True)

    return jax.jit((lambda *rows: jax.lax.map(lambda row: assemble(*row), rows)) if singly else assemble)


@lru_cache(maxsize=16)
def _estimator(estimate: Callable[..., Any], config: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(lambda obs, height: estimate(obs, config, height))


def in_chunks(function: Callable[..., Any], *arrays: Floats) -> Floats:
    """`function` over rows, `CHUNK` at a time; the last chunk is filled up with its last row."""
    found = []
    for start in range(0, len(arrays[0]), CHUNK):
        parts = [array[start : start + CHUNK] for array in arrays]
        rows = len(parts[0])
        if rows < CHUNK:
            parts = [np.concatenate([part, np.repeat(part[-1:], CHUNK - rows, axis=0)]) for part in parts]
        found.append(np.asarray(function(*parts), dtype=np.float32)[:rows])
    return np.concatenate(found)


def _silent(share: float, text: str) -> None:
    """No progress is told."""


def _random_rollout(*args: Any, **more: Any) -> Mapping[str, npt.NDArray[Any]]:
    from amp_core.verify.environment import random_policy_rollout

    return random_policy_rollout(*args, **more)


@dataclass(frozen=True, eq=False)
class Context:
    """One test's surroundings.

    Args:
      subject: what is tested.
      nthread: threads that may be used; no outcome depends on it.
      seed: of what a test draws.
      progress: called with the share of this test that is done, in [0, 1], and a few words; what it raises stops the test.
      policy: makes the policy's side for a robot; raises ImportError where there is no JAX.
      generate, plan: the generator and the planner.
      random_policy_rollout: of the environment.
    """

    subject: Subject
    nthread: int = 1
    seed: int = 0
    progress: Callable[[float, str], None] = _silent
    policy: Callable[[Robot], PolicySide] = PolicySide.of
    generate: Callable[..., Any] = generate
    plan: Callable[..., Any] = plan
    random_policy_rollout: Callable[..., Mapping[str, npt.NDArray[Any]]] = _random_rollout

    @cached_property
    def policy_side(self) -> PolicySide | None:
        """The policy's side for the subject's robot, or None where JAX is missing."""
        try:
            return self.policy(self.subject.robot)
        except ImportError:
            return None


@dataclass(frozen=True)
class Test:
    """One test of the seed's.

    Args:
      id: `1A` … `7`, `smoke`.
      run: looks at a context's subject.
    """

    __test__ = False  # not a test of pytest's

    id: str
    title: str
    run: Callable[[Context], TestReport]


@dataclass
class Findings:
    """What one test collects on its way to a report."""

    id: str
    title: str
    rows: list[Row] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def add(self, *rows: Row) -> bool:
        """Take rows in; whether none of them is a FAIL."""
        self.rows += rows
        return all(row.status != FAIL for row in rows)

    def because(self, reason: str) -> None:
        """Say something once."""
        if reason and reason not in self.reasons:
            self.reasons.append(reason)

    def report(self, measured: str) -> TestReport:
        """The report; a row that failed or warned and that no reason speaks of is named in the reason."""
        status = worst([row.status for row in self.rows])
        if not self.reasons and status not in ("PASS", SKIP):
            worse = [row for row in self.rows if row.status == status]
            self.reasons += [_say(row) for row in worse[:3]]
            if len(worse) > 3:
                self.reasons.append(f"and {len(worse) - 3} more rows")
        return TestReport(
            id=self.id,
            title=self.title,
            status=status,
            reason="; ".join(self.reasons),
            measured=measured,
            rows=tuple(self.rows),
            figures=self.figures,
            wall_sec=time.perf_counter() - self.began,
        )

    def skipped(self, reason: str) -> TestReport:
        """A report of a test that could not run."""
        return TestReport(id=self.id, title=self.title, status=SKIP, reason=reason, wall_sec=time.perf_counter() - self.began)


def _say(row: Row) -> str:
    where = f" ({row.where})" if row.where else ""
    note = f": {row.note}" if row.note else ""
    if row.value is None:
        return f"{row.name}{where}{note or ' has no value'}"
    value = f"{row.value:.4g}" if isinstance(row.value, float) else str(row.value)
    limit = "" if row.op is None else f", asked {row.op} {row.threshold:g}"
    return f"{row.name} is {value}{limit}{where}{note}"


def sample(clips: Sequence[Clip], budget: int) -> list[tuple[Clip, int]]:
    """Clips, evenly spread over all of them, and how many frames of each, so that there are `budget` frames at most.

    Every frame of every clip where the budget allows. The choice depends on the clips' order and lengths alone.
    """
    total = sum(clip.frames for clip in clips)
    if total <= budget:
        return [(clip, clip.frames) for clip in clips]
    count = max(1, min(len(clips), int(len(clips) * budget / total)))
    chosen = [clips[int(i * len(clips) / count)] for i in range(count)]
    found, left = [], budget
    for clip in chosen:
        frames = min(clip.frames, left)
        if frames > 0:
            found.append((clip, frames))
        left -= frames
    return found


def told(chosen: Iterable[Any], clips: Sequence[Clip]) -> str:
    """How many clips were looked at, for a sentence."""
    count = len(list(chosen))
    return f"all {count} clips" if count == len(clips) else f"{count} of {len(clips)} clips, evenly chosen"


def heights(robot: Robot, arrays: Arrays) -> Floats:
    """(N,) m, the root's height as the policy gets it."""
    height: Floats = arrays["qpos"][:, robot.root_qpos_adr + 2].astype(np.float32)
    return height
