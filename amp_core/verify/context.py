"""A test's surroundings: the subject, and exchangeable policy, generator, planner and environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from amp_core.rollout import generate
from amp_core.tracking import plan
from amp_core.verify.environment import random_policy_rollout
from amp_core.verify.policy_side import PolicySide

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip, Subject

REPLAYED_FRAMES = 60_000
"""Frames that 1B and 1C simulate again; a larger version is sampled."""


@dataclass(frozen=True, eq=False)
class Context:
    """One test's surroundings.

    Args:
      subject: the data under test.
      nthread: threads that may be used; no outcome depends on it.
      seed: of a test's random numbers.
      frames: the most frames that a test simulates again or computes one by one; None for each test's own number.
      iterations: of the micro-training; None for the usual number.
      progress: called with the finished share of this test, in [0, 1], and a few words; an exception from it ends the test.
      policy: makes the policy side for a robot; raises ImportError where there is no JAX.
      generate, plan: the generator and the planner.
      random_policy_rollout: of the environment.
    """

    subject: Subject
    nthread: int = 1
    seed: int = 0
    frames: int | None = None
    iterations: int | None = None
    progress: Callable[[float, str], None] = lambda share, text: None
    policy: Callable[[Robot], PolicySide] = PolicySide.of
    generate: Callable[..., Any] = generate
    plan: Callable[..., Any] = plan
    random_policy_rollout: Callable[..., Mapping[str, npt.NDArray[Any]]] = random_policy_rollout

    @cached_property
    def policy_side(self) -> PolicySide | None:
        """The policy side for the subject's robot, or None where JAX is missing."""
        try:
            return self.policy(self.subject.robot)
        except ImportError:
            return None

    def sample(self, clips: Sequence[Clip], budget: int) -> list[tuple[Clip, int]]:
        """`sample`, within the frames that the caller allows."""
        return sample(clips, budget if self.frames is None else min(budget, self.frames))


def sample(clips: Sequence[Clip], budget: int) -> list[tuple[Clip, int]]:
    """Clips, evenly spread over all of them, and a number of frames of each, so that there are at most `budget` frames.

    Every frame of every clip where the budget allows. The choice depends on the clips' order and lengths alone.
    """
    total = sum(clip.frames for clip in clips)
    if total <= budget:
        return [(clip, clip.frames) for clip in clips]
    count = max(1, min(len(clips), int(len(clips) * budget / total)))
    pairs, remaining = [], budget
    for i in range(count):
        clip = clips[int(i * len(clips) / count)]
        frames = min(clip.frames, remaining)
        if frames > 0:
            pairs.append((clip, frames))
        remaining -= frames
    return pairs


def describe_sample(pairs: Sequence[tuple[Clip, int]], clips: Sequence[Clip]) -> str:
    """How many clips and frames were sampled, for a sentence."""
    count, total = sum(frames for _, frames in pairs), sum(clip.frames for clip in clips)
    names = f"all {len(pairs)} clips" if len(pairs) == len(clips) else f"{len(pairs)} of {len(clips)} clips, evenly chosen"
    return f"{names} ({count:,} frames)" if count == total else f"{names} ({count:,} of {total:,} frames)"
