"""The planner of the tracked mode: a receding horizon, linear models fitted to noisy simulations, and feedback.

One round over a horizon of H control steps:

1. Simulate K times from the robot's state with the plan's controls, the plan's feedback and time-correlated noise; the first
   simulation has no noise and is the nominal one.
2. At every step, fit a linear model by ridge regression over the simulations: from the state's and the control's difference to
   the nominal, to the next state's difference and to the cost's residuals. The noise makes this an average over the contacts
   that may or may not happen, which a derivative at one point is not.
3. A Riccati recursion over these models, a Gauss-Newton step in time, gives better controls and feedback gains, for several
   dampings. Each candidate is simulated; the best replaces the plan.

The first few controls of the plan then drive the robot's own model, corrected by the feedback, and the horizon moves on. For a
robot of many joints, a stretch that ends in trouble is planned again (`lookback`).
Fitting linear-Gaussian models to samples for trajectory optimization through contact follows Levine and Abbeel, "Learning
Neural Network Policies with Guided Policy Search under Unknown Dynamics", NeurIPS 2014; the recursion is that of iterative LQR
(Tassa, Erez and Todorov, IROS 2012).

Nothing here depends on the number of threads, on other clips, or on the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.motion import Conditioned
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.tracking.branch import Branch
from amp_core.tracking.lookback import REACH_SEC, LookBack
from amp_core.tracking.scaling import Scaling

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """Planned controls.

    Args:
      ctrl: (N, nu) rad, to hold over each control step.
      fell_at: the frame at which the robot fell, from where on `ctrl` is the clip's joint angles; None if it never did.
      simulated_sec: s of simulated time that planning took.
      parting_rad: how far the robot's joints part from what the planning model expects, from one plan to the next.
    """

    ctrl: Array
    fell_at: int | None
    simulated_sec: float
    parting_rad: float = 0.0


def plan(
    robot: Robot,
    clip: Conditioned,
    recipe: Recipe,
    initial_qvel: Array,
    *,
    attempt: int = 0,
    nthread: int = 1,
    progress: Callable[[int], None] | None = None,
    frames: int | None = None,
) -> Plan:
    """Plan the controls that make the robot follow a clip.

    Args:
      clip: conditioned for this robot.
      initial_qvel: (nv,) the velocity that the rollout starts with.
      attempt: another number draws other noise, and a higher one more of it.
      progress: called with the number of frames that are planned. What it raises stops the work and is passed on.
      frames: stop once as many frames are planned, the whole clip's by default. They are the first ones of the whole plan; the
        clip's joint angles follow them.
    """
    assert recipe.planner is not None
    scaling = Scaling.of(robot)
    count = scaling.count_branches(recipe.planner.branches, attempt)
    branches = [
        Branch(robot, clip, recipe, initial_qvel, (recipe.seed, attempt, branch), max(1, nthread // count))
        for branch in range(count)
    ]
    total = clip.num_frames
    look_back = LookBack(branches, robot.control_dt) if scaling.has_many else None
    # What has come so much farther is not planned again.
    margin = round(REACH_SEC / robot.control_dt) if look_back is not None else 0
    last = total if frames is None else min(frames + margin, total)
    stretch = max(1, round(recipe.planner.branch_sec / robot.control_dt))
    lock, stopping = threading.Lock(), threading.Event()
    steps_done = most_frames = 0

    def count_steps(steps: int) -> None:
        nonlocal steps_done, most_frames
        if stopping.is_set():
            raise PlanningStopped
        with lock:
            steps_done += steps
            most_frames = max(most_frames, min(total, steps_done // count))
            if progress is not None:
                progress(most_frames)

    def advance(until: int) -> None:
        futures = [pool.submit(branch.advance, until, count_steps) for branch in branches]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            # The future that failed first, rather than one that stopped for that reason.
            for future in sorted(futures, key=lambda future: not future.done()):
                future.result()
        except BaseException:
            stopping.set()
            raise

    with ThreadPoolExecutor(min(nthread, count)) as pool:
        best = branches[0]
        while best.frame < last and not best.fell:
            # Every stop is where the whole plan has one, so that the choice among the branches is the same.
            advance(min(total, best.frame + stretch))
            best = min(branches, key=lambda branch: branch.score)  # The first of equals.
            if best.fell:
                # No branch stands: the one that stood the longest is the best there is.
                best = max(branches, key=lambda branch: branch.frame)
            if look_back is not None:
                best = look_back.review(best)
            checkpoint = best.save()
            for branch in branches:
                if branch is not best:
                    branch.restore(checkpoint)
            steps_done = count * best.frame  # A branch that fell has done fewer.
    return Plan(
        ctrl=best.controls(),
        fell_at=best.frame if best.fell else None,
        simulated_sec=sum(branch.simulated_sec for branch in branches),
        parting_rad=best.parting_rad,
    )


class PlanningStopped(Exception):
    """Another branch or another clip's plan has failed, or the caller has stopped this one."""
