"""Tests 2 and 3: what must not matter: where the robot faces, and which of two signs its quaternion has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.motion import condition
from amp_core.verify import states
from amp_core.verify.context import NO_JAX, Context, Findings, sample, told
from amp_core.verify.inputs import PATHS, REPLAYED_FRAMES, ROUNDING, SUSPICIOUS, PolicyInputs, rows_of, with_rows
from amp_core.verify.report import PASS, SKIP, Row, TestReport, check
from amp_core.verify.states import Drive, Loop, assemble, largest, relative

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

YAW_SIMULATED = 1e-5
"""The seed's: a turned simulation's features from the original's, until contact chaos."""

SPAN = 50
"""Frames that a turned simulation must agree for, without a break, on one clip at least (or that clip's whole length)."""

ANEW_FRAMES = 50
"""Frames after which a turned simulation is turned anew: rounding grows to 1e-5 within some 300, so this long it cannot."""

TURNED_FRAMES = 6_000
"""Frames that test 2 simulates in each heading; a larger version is sampled."""

_HALF_TURN = 180.0
_QUARTER_TURNS = (90.0, -90.0)
_HEADINGS = (37.0, -123.4)
_STILL_ROUNDING = 1e-6  # relative, of float32 features: two simulations that differ by no more are the same until then


# --- 2 --------------------------------------------------------------------------------------------------------------------


def yaw_invariance(context: Context) -> TestReport:
    """2: features do not know where north is, neither in their assembly nor in a simulation that starts turned."""
    found = Findings("2", "yaw invariance")
    clips = with_rows(context)
    if not clips:
        return found.skipped("no clip has a frame")
    _turned_states(found, context, clips)
    said = _turned_simulations(found, context, clips)
    path = "" if context.policy_side is not None else f" (the policy's paths were left out: {NO_JAX})"
    return found.report(
        f"every recorded state of {len(clips)} clips turned by {_degrees((*_QUARTER_TURNS, _HALF_TURN, *_HEADINGS))} and "
        f"assembled again{path}; {said}"
    )


def _degrees(angles: Sequence[float]) -> str:
    return ", ".join(f"{angle:g}°" for angle in angles)


def _turned_states(found: Findings, context: Context, clips: Sequence[Clip]) -> None:
    robot, side = context.subject.robot, context.policy_side
    qpos, qvel, contacts = (rows_of(clips, key) for key in ("qpos", "qvel", "foot_contacts"))
    inputs = PolicyInputs.of(side, robot, clips) if side is not None else None
    plain: dict[str, Floats] = {"extract": assemble(robot, qpos, qvel, contacts)}
    if side is not None and inputs is not None:
        for path in PATHS:
            plain[path] = side.features(*inputs.of_path(path), robot.control_dt)
    shadow = states.heading_length(robot, qpos)
    worst = {path: (0.0, "") for path in plain}
    for angle in (*_QUARTER_TURNS, _HALF_TURN, *_HEADINGS):
        moved, moving = states.turned(robot, qpos, qvel, math.radians(angle))
        turned = {"extract": assemble(robot, moved, moving, contacts)}
        if side is not None and inputs is not None:
            for path in PATHS:
                obs = side.on_host(moved, moving) if path == "observe_host" else side.on_device(moved, moving)
                _, height, start, touching = inputs.of_path(path)
                turned[path] = side.features(obs, height, start, touching, robot.control_dt)
        for path, features in turned.items():
            error = relative(features, plain[path])
            if path == "observe":
                error *= shadow[:, None]
            most = float(error.max())
            if not most <= worst[path][0]:
                dimension = robot.layout.names[int(np.argmax(np.nan_to_num(error, nan=np.inf).max(axis=0)))]
                worst[path] = (most, f"turned by {angle:g}°, dimension {dimension}")
    for path, (value, where) in worst.items():
        limit = SUSPICIOUS if path == "observe" else ROUNDING
        note = "relative; in float32, times the heading's length on the ground" if path == "observe" else "relative"
        if not found.add(check(f"assembly.{path}", value, "<=", limit, where=where, note=note)):
            found.because(
                f"the features of {path} change when the robot is {where}: they depend on the heading. Is a velocity left in "
                "the world frame, or the yaw taken from something that knows only some headings?"
            )


@dataclass(frozen=True)
class _Turn:
    """How a turned simulation went on one clip.

    Args:
      frames: compared. agreed: of them within the tolerance.
      span: the longest run of those without a break.
      alone: frames until a simulation that is turned once and then left alone differs.
      chaos: breaks after contacts that collision detection chose otherwise, while the states still agreed.
      crosswise: breaks after geoms of the robot touched each other, in a heading that turns a friction pyramid between them.
      unexplained: (frame, difference, dimension) of the first other break, or None.
    """

    frames: int
    agreed: int
    span: int
    alone: int
    chaos: int
    crosswise: int
    unexplained: tuple[int, float, str] | None


def _turned_simulations(found: Findings, context: Context, clips: Sequence[Clip]) -> str:
    robot = context.subject.robot
    chosen = sample(clips, TURNED_FRAMES)
    own_pyramid = states.pyramidal(robot.model)
    plans: list[tuple[str, float, bool]] = [("own", angle, True) for angle in (_HALF_TURN, *_QUARTER_TURNS)]
    plans += [("own", angle, not own_pyramid) for angle in _HEADINGS]
    if own_pyramid:
        plans += [("elliptic", angle, True) for angle in (_QUARTER_TURNS[0], *_HEADINGS)]
    evidence: list[dict[str, Any]] = []
    for number, (cone, angle, decides) in enumerate(plans):
        turns = []
        for n, (clip, frames) in enumerate(chosen):
            context.progress((number + n / len(chosen)) / len(plans), f"{clip.name} turned by {angle:g}°")
            model = robot.scaled_model(clip.recipe.physics)
            model = states.elliptic(model) if cone == "elliptic" else model
            turn = _turn(robot, model, Drive.of(clip, frames), math.radians(angle), anew=decides)
            turns.append(turn)
            counts = {"frames": turn.frames, "alone_until": turn.alone, "longest_span": turn.span}
            causes = {"contact_chaos": turn.chaos, "robot_touching_itself": turn.crosswise}
            evidence.append({"clip": clip.name, "cone": cone, "heading_deg": angle, **counts, **causes})
        name = f"simulated.{cone}.{angle:g}deg"
        alone = float(np.median([turn.alone for turn in turns]))
        note = "frames until a simulation that was turned once and left alone differs; rounding grows, too"
        if not decides:
            note = (
                "told, not asked: the sides of MuJoCo's friction pyramid lie in fixed directions of the world, so that a robot "
                "turned by other than quarter turns meets other friction"
            )
        found.add(Row(f"{name}.alone", alone, PASS, unit="frame", where=f"median of {len(turns)} clips", note=note))
        if decides:
            _ask_turns(found, name, angle, chosen, turns)
    found.figures["turned"] = evidence
    elsewhere = ", with the elliptic cone on both sides where the pyramid has a direction" if own_pyramid else ""
    return (
        f"{told(chosen, context.subject.clips)} simulated again in every heading, turned anew every {ANEW_FRAMES} frames and "
        f"after every break{elsewhere}"
    )


def _ask_turns(found: Findings, name: str, angle: float, chosen: Sequence[tuple[Clip, int]], turns: Sequence[_Turn]) -> None:
    """Rows of one heading."""
    bad = next(((clip, turn) for (clip, _), turn in zip(chosen, turns, strict=True) if turn.unexplained), None)
    count = sum(turn.unexplained is not None for turn in turns)
    chaos, crosswise = sum(turn.chaos for turn in turns), sum(turn.crosswise for turn in turns)
    note = f"clips that leave {YAW_SIMULATED:g} where no contact explains it; explained: {chaos} breaks by contacts"
    note += f", {crosswise} after the robot touched itself" if crosswise else ""
    where = f"clip {bad[0].name}" if bad else ""
    spoken = any("simulated again" in reason for reason in found.reasons)
    if not found.add(check(f"{name}.unexplained", count, "==", 0, where=where, note=note)) and bad is not None and not spoken:
        assert bad[1].unexplained is not None
        frame, difference, dimension = bad[1].unexplained
        found.because(
            f"clip {bad[0].name}, turned by {angle:g}° and simulated again, differs by {difference:.2g} in {dimension} at "
            f"frame {frame}, and no contact explains it: the physics or the controls know a direction (wind, a tilted floor, a "
            "force that pulls sideways?)"
        )
    agreed = sum(turn.agreed for turn in turns) / max(1, sum(turn.frames for turn in turns))
    longest, asked = max(turn.span for turn in turns), min(SPAN, max(turn.frames for turn in turns))
    note = f"the longest run of frames within {YAW_SIMULATED:g}; {agreed:.1%} of all frames agree"
    fine = found.add(check(f"{name}.span", longest, ">=", asked, unit="frame", note=note, warn=crosswise > 0))
    if not fine and not count:
        found.because(f"turned by {angle:g}°, no clip agrees for {asked} frames: too little to tell")


def _turn(robot: Robot, model: Any, drive: Drive, angle: float, anew: bool) -> _Turn:
    """Simulate a drive and, in lockstep, the same turned.

    Args:
      anew: turn the state anew every `ANEW_FRAMES` frames, so that rounding has no time to grow, and after every break; else
        the comparison ends with the first one.
    """
    straight = Loop(robot, model, drive)
    alone: Loop | None = Loop(robot, model, drive.turned(robot, angle))
    turned = Loop(robot, model, drive.turned(robot, angle)) if anew else None
    frames = len(drive.ctrl)
    cross_matters = states.pyramidal(model) and abs(math.cos(angle)) < 1.0 - 1e-12
    agreed = span = longest = chaos = crosswise = since = 0
    until = frames
    unexplained: tuple[int, float, str] | None = None
    flipped = touched = False
    none = np.zeros((1, len(robot.channels)))
    last = robot.layout.dim - len(robot.channels)

    def features(qpos: Array, qvel: Array) -> Floats:
        return assemble(robot, qpos[None], qvel[None], none)[0, :last]

    for k in range(frames):
        running = [loop for loop in (straight, turned, alone) if loop is not None]
        for loop in running:
            loop.begin_frame()
        for _ in range(robot.substeps):
            was = [(loop.data.qpos.copy(), loop.data.qvel.copy()) for loop in running[:2]] if turned is not None else []
            for loop in running:
                loop.substep()
            if turned is not None:
                if not flipped and not states.same_contacts(straight, turned):
                    # What differs already does not excuse the contacts that it makes.
                    one, other = (features(*state) for state in was)
                    flipped = float(relative(other, one).max()) <= _STILL_ROUNDING
                touched = touched or (cross_matters and straight.touches_itself())
        one = features(straight.data.qpos, straight.data.qvel)
        if alone is not None and not float(relative(features(alone.data.qpos, alone.data.qvel), one).max()) <= YAW_SIMULATED:
            until, alone = k, None
            if turned is None:
                return _Turn(k + 1, k, k, until, 0, 0, None)
        if turned is None:
            continue
        error = relative(features(turned.data.qpos, turned.data.qvel), one)
        since += 1
        if float(error.max()) <= YAW_SIMULATED:
            agreed += 1
            span += 1
            longest = max(longest, span)
            if since < ANEW_FRAMES:
                continue
        else:
            span = 0
            if flipped:
                chaos += 1
            elif touched:
                crosswise += 1
            elif unexplained is None:
                worst = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
                unexplained = (k, float(error[worst]), robot.layout.names[worst])
        data = straight.data
        onward = drive.later(k + 1, data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())
        turned = Loop(robot, model, onward.turned(robot, angle))
        since, flipped, touched = 0, False, False
    if not anew:
        agreed = longest = frames
    return _Turn(frames, agreed, longest, until, chaos, crosswise, unexplained)


# --- 3 --------------------------------------------------------------------------------------------------------------------


def quaternion_sign(context: Context) -> TestReport:
    """3: q and −q are the same rotation, and give the same features in every path."""
    found = Findings("3", "quaternion sign flip")
    clips = with_rows(context)
    if not clips:
        return found.skipped("no clip has a frame")
    robot, side = context.subject.robot, context.policy_side
    qpos, qvel, contacts = (rows_of(clips, key) for key in ("qpos", "qvel", "foot_contacts"))
    other = states.flipped(robot, qpos)

    def ask(name: str, one: npt.NDArray[Any], two: npt.NDArray[Any], names: Sequence[str] = ()) -> None:
        error = relative(one, two)
        worst = int(np.argmax(np.nan_to_num(error, nan=np.inf).max(axis=0)))
        where = f"dimension {names[worst]}" if names else f"column {worst}"
        if not found.add(check(name, float(error.max()), "==", 0.0, where=where)):
            found.because(
                f"{name} gives other numbers for −q than for q, worst in {where}: the quaternion is used where only its "
                "rotation may be (a lone w or z, a half angle, an unsigned acos)"
            )

    names = robot.layout.names
    ask("extract", assemble(robot, qpos, qvel, contacts), assemble(robot, other, qvel, contacts), names)
    if side is None:
        found.add(Row("policy", None, SKIP, note=NO_JAX))
    else:
        inputs = PolicyInputs.of(side, robot, clips)
        host, device = side.on_host(other, qvel), side.on_device(other, qvel)
        ask("observe_host", inputs.host, host)
        ask("observe", inputs.device, device)
        for path, obs in (("observe_host", host), ("observe", device)):
            _, *rest = inputs.of_path(path)
            height, start, touching = rest
            plain = side.features(*inputs.of_path(path), robot.control_dt)
            ask(f"{path}+extract", plain, side.features(obs, height, start, touching, robot.control_dt), names)
        ask("estimate_contacts", side.contacts(inputs.host, inputs.height), side.contacts(host, inputs.height))
    _flipped_motions(found, context, clips)
    chosen = sample(clips, TURNED_FRAMES)
    worst, where = 0.0, ""
    for number, (clip, frames) in enumerate(chosen):
        context.progress(number / len(chosen), f"simulating {clip.name} from −q")
        model = robot.scaled_model(clip.recipe.physics)
        drive = Drive.of(clip, frames)
        plain_states, flipped_states = (states.run(robot, model, one) for one in (drive, drive.flipped(robot)))
        touching = clip.arrays["foot_contacts"][:frames]
        error = float(relative(assemble(robot, *flipped_states, touching), assemble(robot, *plain_states, touching)).max())
        if not error <= worst:
            worst, where = error, f"clip {clip.name}"
    if not found.add(check("simulation", worst, "==", 0.0, where=where, note="started from −q")):
        found.because(f"{where}: a simulation that starts from −q moves otherwise (by {worst:.2g})")
    path = "" if side is not None else f" (the policy's paths were left out: {NO_JAX})"
    if side is None:
        found.because(f"the numpy path alone was tested: {NO_JAX}")
    return found.report(
        f"−q for q in every recorded state of {len(clips)} clips through every path{path}, in the motions that were "
        f"conditioned, and in the start of {told(chosen, context.subject.clips)} simulated again"
    )


def _flipped_motions(found: Findings, context: Context, clips: Sequence[Clip]) -> None:
    """The motions with the signs of some or all of their quaternions turned round, conditioned again."""
    robot = context.subject.robot
    motions = [(clip, clip.motion()) for clip, _ in sample(clips, REPLAYED_FRAMES) if clip.motion is not None]
    pairs = [(clip, motion) for clip, motion in motions if motion is not None]
    if not pairs:
        found.add(Row("conditioning", None, SKIP, note="no clip's source is at hand"))
        return
    worst, where = 0.0, ""
    q = robot.root_qpos_adr
    for clip, motion in pairs:
        plain = condition(motion, robot)
        signs = np.where(np.arange(motion.num_frames) % 3 == 1, -1.0, 1.0)
        for sign in (-np.ones_like(signs), signs):
            other = condition(replace(motion, root_rot=motion.root_rot * sign[:, None]), robot)
            turn = other.root_rot * np.sign((other.root_rot * plain.root_rot).sum(axis=1, keepdims=True))
            start = other.initial_qpos.copy()
            start[q + 3 : q + 7] *= np.sign(start[q + 3 : q + 7] @ plain.initial_qpos[q + 3 : q + 7])
            error = max(
                largest(turn - plain.root_rot),
                largest(other.root_pos - plain.root_pos),
                largest(other.dof_pos - plain.dof_pos),
                largest(start - plain.initial_qpos),
                largest(other.initial_qvel - plain.initial_qvel),
            )
            if not error <= worst:
                worst, where = error, f"clip {clip.name}"
    if not found.add(
        check("conditioning", worst, "==", 0.0, where=where, note="all signs turned, and those of every third frame")
    ):
        found.because(f"{where}: conditioning a motion with other signs gives another clip (by {worst:.2g})")
