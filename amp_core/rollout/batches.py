"""Generation of many rollouts: plans on several threads, then simulations in batches of clips of like length."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from threadpoolctl import threadpool_limits

from amp_core.motion import Conditioned
from amp_core.progress import Progress
from amp_core.recipe import GENERATED_MODES, PLANNED_MODES, Recipe
from amp_core.robot import Robot
from amp_core.rollout.record import Rollout
from amp_core.rollout.simulation import Simulation, start_velocity
from amp_core.tracking import Plan, plan
from amp_core.tracking.planner import PlanningStopped

BATCH_SIZE = 64
"""Clips that are simulated side by side. More would cost memory and gain nothing."""

_TICK = 0.1  # s between two reports on planning
_CLIPS_REPORTED = 3  # of the clips that are being planned, in one report


def generate(
    robot: Robot,
    clips: Sequence[Conditioned],
    recipes: Recipe | Sequence[Recipe],
    *,
    nthread: int = 1,
    progress: Progress | None = None,
    attempt: int | Sequence[int] = 0,
    plans: Sequence[Plan | None] | None = None,
    frames: Sequence[int | None] | None = None,
) -> list[Rollout]:
    """Simulate every clip, in batches; in modes `tracked` and `assisted`, plan its controls first.

    Args:
      clips: conditioned for this robot.
      recipes: one for each clip, or one for all.
      nthread: threads that step the physics; the result does not depend on it.
      progress: called now and then; what it raises stops the work and is passed on.
      attempt: one for all clips, or one for each; another number plans with other noise and, in mode `assisted`, with another
        harness.
      plans: one for each clip, made earlier and perhaps for other physics: they are simulated, and nothing is planned.
      frames: of each clip, simulate so many from its first, or None for all. They are the first rows of the whole rollout.

    Returns:
      One rollout a clip, in order. A simulation that fails gives a rollout with its `failure`, not an exception.

    Raises:
      ValueError: recipes that are not as many as the clips, or one of mode `auto`.
    """
    recipes = [recipes] * len(clips) if isinstance(recipes, Recipe) else list(recipes)
    attempts = [attempt] * len(clips) if isinstance(attempt, int) else list(attempt)
    if len(recipes) != len(clips):
        raise ValueError(f"{len(clips)} motions but {len(recipes)} recipes")
    if any(recipe.mode not in GENERATED_MODES for recipe in recipes):
        raise ValueError(f"a rollout's mode is one of {', '.join(GENERATED_MODES)}; `amp_core.score` chooses for mode auto")
    if plans is None:
        plans = _plan_clips(robot, clips, recipes, attempts, nthread, progress)
        if progress is not None and any(plan is not None for plan in plans):
            progress(1.0, "planned")
            progress = None  # Simulating is quick beside planning.
    lengths = [
        clip.num_frames if limit is None else min(limit, clip.num_frames)
        for clip, limit in zip(clips, frames or [None] * len(clips), strict=True)
    ]
    total = sum(lengths)
    finished_frames = 0

    def report(count: int) -> None:
        if progress is not None:
            progress(min(1.0, (finished_frames + count) / total), f"{finished_frames + count} of {total} frames")

    # Clips of like length side by side: a batch is only full until its shortest clip ends.
    order = sorted(range(len(clips)), key=lambda i: -lengths[i])
    rollouts: dict[int, Rollout] = {}
    for first in range(0, len(order), BATCH_SIZE):
        batch = order[first : first + BATCH_SIZE]
        simulation = Simulation(
            robot,
            [clips[i] for i in batch],
            [recipes[i] for i in batch],
            [plans[i] for i in batch],
            [lengths[i] for i in batch],
            nthread,
            [attempts[i] for i in batch],
        )
        simulation.run(report)
        rollouts |= {i: simulation.rollout(slot) for slot, i in enumerate(batch)}
        finished_frames += sum(lengths[i] for i in batch)
    return [rollouts[i] for i in range(len(clips))]


def _plan_clips(
    robot: Robot,
    clips: Sequence[Conditioned],
    recipes: Sequence[Recipe],
    attempts: Sequence[int],
    nthread: int,
    progress: Progress | None,
) -> list[Plan | None]:
    """A plan for each clip of a mode that plans, None for the others."""
    tracked_clips = [i for i, recipe in enumerate(recipes) if recipe.mode in PLANNED_MODES]
    if not tracked_clips:
        return [None] * len(clips)
    total = sum(clips[i].num_frames for i in tracked_clips)
    planned_frames = dict.fromkeys(tracked_clips, 0)  # frames
    # A clip a thread: while one waits for its simulations, another computes. Even a single clip has its own thread, so that the
    # caller's can be interrupted and then stops the others.
    threads = max(1, nthread // len(tracked_clips))
    stopping = threading.Event()

    def plan_clip(i: int) -> Plan:
        def advance(frames: int) -> None:
            if stopping.is_set():
                raise PlanningStopped
            planned_frames[i] = frames

        velocity = start_velocity(clips[i], recipes[i])
        result = plan(robot, clips[i], recipes[i], velocity, attempt=attempts[i], nthread=threads, progress=advance)
        planned_frames[i] = clips[i].num_frames  # Also where the robot fell earlier.
        return result

    # Linear algebra on several threads adds in another order, and is slower for matrices of this size.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(nthread, len(tracked_clips))) as pool:
        # The longest first, so that none is left for last.
        futures = {i: pool.submit(plan_clip, i) for i in sorted(tracked_clips, key=lambda i: -clips[i].num_frames)}
        try:
            while wait(futures.values(), timeout=_TICK).not_done:
                if any(future.done() and future.exception() for future in futures.values()):
                    break
                if progress is not None:
                    frames = [(clips[i].name, planned_frames[i], clips[i].num_frames) for i in tracked_clips]
                    progress(sum(planned_frames.values()) / total, describe_planning(frames))
        finally:
            stopping.set()  # Of no effect on those that have ended.
            for future in futures.values():
                future.cancel()
    for future in futures.values():
        error = None if future.cancelled() else future.exception()
        # The error that stopped the others, not their own `PlanningStopped`.
        if error is not None and not isinstance(error, PlanningStopped):
            raise error
    return [futures[i].result() if i in futures else None for i in range(len(clips))]


def describe_planning(clips: Sequence[tuple[str, int, int]]) -> str:
    """How far planning has come, in a few words, from each clip's name, planned frames and frames."""
    if len(clips) == 1:
        return f"planned {clips[0][1]} of {clips[0][2]} frames"
    complete = sum(planned_frames == frames for _, planned_frames, frames in clips)
    active = [f"{name} {planned_frames / frames:.0%}" for name, planned_frames, frames in clips if 0 < planned_frames < frames]
    names = ", ".join(active[:_CLIPS_REPORTED]) + (", …" if len(active) > _CLIPS_REPORTED else "")
    return f"{complete} of {len(clips)} clips planned" + (f"; {names}" if names else "")
