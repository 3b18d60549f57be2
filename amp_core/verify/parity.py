"""Tests 1A, 1B and 1C: does everyone compute the same features, from the same physics, every time?

Where features differ, the usual faults are tried on the states at hand, so that the reason can name the one that explains what
was found (`faults`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from amp_core.motion import condition
from amp_core.tracking import Plan
from amp_core.verify import faults, states
from amp_core.verify.context import NO_JAX, Context, Findings, sample, told
from amp_core.verify.inputs import PATHS, REPLAYED_FRAMES, ROUNDING, SUSPICIOUS, VELOCITIES, PolicyInputs, rows_of, with_rows
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, check
from amp_core.verify.states import Drive, assemble, largest, relative

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

MAE = 1e-4
"""The seed's: mean absolute difference of a dimension between the policy's features and the reference's."""

CORRELATION = 0.99
"""The seed's: correlation of a velocity dimension of both."""

CONSTANT = 1e-3
"""A dimension whose std is below this is constant beside the MAE that is allowed: a correlation would be one of roundings."""

PLANNED_SEC = 12.0
"""s of tracked clips that 1C plans again, in all; plans with more samples count for more."""

PLANNED_PREFIX_SEC = 1.0
"""s of each of them, about: whole stretches of the planner."""


# --- 1A -------------------------------------------------------------------------------------------------------------------


def feature_assembly(context: Context) -> TestReport:
    """1A: the policy's extractor on the recorded states against the recorded features."""
    found = Findings("1A", "feature assembly")
    side, robot, clips = context.policy_side, context.subject.robot, with_rows(context)
    if side is None:
        return found.skipped(NO_JAX)
    if not clips:
        return found.skipped("no clip has a frame")
    layout = robot.layout
    reference = rows_of(clips, "features").astype(np.float64)
    truth = np.concatenate([_of_states(robot, clip) for clip in clips]).astype(np.float64)
    inputs = PolicyInputs.of(side, robot, clips)
    lengths = [clip.frames for clip in clips]
    constant = reference.std(axis=0) < CONSTANT
    # A robot that lies on its back or front has hardly a heading, and float32 then rounds it by as much more.
    shadow = states.heading_length(robot, rows_of(clips, "qpos"))
    dimensions: list[dict[str, Any]] = [{"name": name} for name in layout.names]
    for number, path in enumerate(PATHS):
        context.progress(number / len(PATHS), path)
        policy = side.features(*inputs.of_path(path), robot.control_dt).astype(np.float64)
        difference = np.abs(policy - reference)
        mae = difference.mean(axis=0)
        correlation = _correlations(policy, reference)
        for i, dimension in enumerate(dimensions):
            dimension[f"mae_{path}"] = float(mae[i])
            dimension[f"correlation_{path}"] = None if constant[i] else float(correlation[i])
        for block in layout.blocks:
            worst = block.start + int(np.argmax(np.nan_to_num(mae[block.slice], nan=np.inf)))
            where = f"{path}, worst dimension {layout.names[worst]}"
            fine = found.add(check(f"mae.{block.name}", float(mae[worst]), "<", MAE, unit=block.unit, where=where))
            error = relative(policy[:, block.slice], reference[:, block.slice])
            most = float((error * shadow[:, None]).max() if path == "observe" else error.max())
            note = "more than float32 rounds" if most > SUSPICIOUS else "relative"
            found.add(check(f"max.{block.name}", most, "<=", SUSPICIOUS, warn=True, where=path, note=note))
            if block.name in VELOCITIES:
                fine &= found.add(_correlation_row(path, block, layout.names, correlation, constant))
            if not fine:
                # On the side that is not what the states say, and in the clip where it is worst.
                guilty, name = (
                    (reference, "the reference features")
                    if np.abs(reference[:, block.slice] - truth[:, block.slice]).mean()
                    > np.abs(policy[:, block.slice] - truth[:, block.slice]).mean()
                    else (policy, f"the policy's features ({path})")
                )
                row = int(np.argmax(np.nan_to_num(difference[:, block.slice].max(axis=1), nan=np.inf)))
                number_of, frame = states.clip_of(row, lengths)
                first = sum(lengths[:number_of])
                named = _named(robot, clips[number_of], guilty[first : first + lengths[number_of]], block.name)
                found.because(
                    f"{name} are not what the states say, worst in clip {clips[number_of].name} at frame {frame}: "
                    + (named or f"{block.name}: MAE {mae[worst]:.3g} {block.unit} in {layout.names[worst]}")
                )
    found.figures["dimensions"] = dimensions
    if constant.any() and not found.reasons:
        names = ", ".join(layout.names[i] for i in np.flatnonzero(constant))
        found.figures["constant"] = names
    return found.report(
        f"`observe_host` and `observe` with `extract_amp_features(use_obs_joint_vel=True, foot_contacts_override=…)` on every "
        f"recorded state ({len(reference):,} frames of {len(clips)} clips) against the recorded `features`"
    )


def _of_states(robot: Robot, clip: Clip) -> Floats:
    arrays = clip.arrays
    return assemble(robot, arrays["qpos"], arrays["qvel"], arrays["foot_contacts"])


def _named(robot: Robot, clip: Clip, features: npt.NDArray[Any], block: str = "") -> str:
    """The faults of one clip's features, those that touch a block alone where one is given."""
    arrays = clip.arrays
    sayings = faults.name_faults(robot, features, arrays["qpos"], arrays["qvel"], states.before(clip), arrays["foot_contacts"])
    return "; ".join(saying for saying in sayings if block in saying.partition(":")[0])


def _correlations(one: Array, other: Array) -> Array:
    """(F,) Pearson's; NaN where a column is constant."""
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return found


def _correlation_row(path: str, block: Any, names: Sequence[str], correlation: Array, constant: npt.NDArray[np.bool_]) -> Row:
    moving = [i for i in range(block.start, block.stop) if not constant[i]]
    still = [names[i] for i in range(block.start, block.stop) if constant[i]]
    note = f"constant, no correlation: {', '.join(still)}" if still else ""
    if not moving:
        return Row(f"corr.{block.name}", None, WARN, where=path, note=note)
    worst = min(moving, key=lambda i: np.nan_to_num(correlation[i], nan=-1.0))
    where = f"{path}, worst dimension {names[worst]}"
    return check(f"corr.{block.name}", float(correlation[worst]), ">", CORRELATION, where=where, note=note)


# --- 1B -------------------------------------------------------------------------------------------------------------------


def physics_integration(context: Context) -> TestReport:
    """1B: the recorded controls through a plain `mj_step` loop give the recorded states, contacts and features."""
    found = Findings("1B", "physics integration")
    robot = context.subject.robot
    chosen = sample(with_rows(context), REPLAYED_FRAMES)
    if not chosen:
        return found.skipped("no clip has a frame")
    layout = robot.layout
    worst: dict[str, tuple[float, str]] = {}
    errors: dict[str, list[Array]] = {}
    flips = 0

    def note(name: str, value: float, clip: Clip) -> None:
        if name not in worst or not value <= worst[name][0]:
            worst[name] = (value, f"clip {clip.name}")

    for number, (clip, frames) in enumerate(chosen):
        context.progress(number / len(chosen), f"replaying {clip.name}")
        arrays = clip.arrays
        model = robot.scaled_model(clip.recipe.physics)
        again = states.simulate(robot, model, Drive.of(clip, frames))
        qpos, qvel, start = arrays["qpos"][:frames], arrays["qvel"][:frames], states.before(clip)[:frames]
        given = np.asarray(arrays["features"][:frames], dtype=np.float64)
        contacts = again.contacts(clip.recipe.force_threshold)
        truth = assemble(robot, again.qpos, again.qvel, contacts).astype(np.float64)
        # The same poses, but velocities from their differences.
        other = assemble(
            robot, again.qpos, states.finite_differences(robot, _replayed_start(start, again.qpos, clip), again.qpos), contacts
        )
        for block in layout.blocks:
            here = block.slice
            note(f"features.{block.name}", float(relative(given[:, here], truth[:, here]).max()), clip)
            if block.name in VELOCITIES:
                errors.setdefault(f"{block.name}.true", []).append(given[:, here] - truth[:, here])
                errors.setdefault(f"{block.name}.differences", []).append(given[:, here] - other[:, here])
                errors.setdefault(f"{block.name}.between", []).append(truth[:, here] - other[:, here])
        note("qpos", largest(qpos - again.qpos), clip)
        note("qvel", largest(qvel - again.qvel), clip)
        if "channel_loads" in arrays:
            note("channel_loads", largest(arrays["channel_loads"][:frames] - again.loads), clip)
        note("sum_fn_per_frame", largest(arrays["sum_fn_per_frame"][:frames] - again.loads.sum(axis=1)), clip)
        flips += int((arrays["foot_contacts"][:frames] != contacts).sum())
        _say_what_differs(found, robot, clip, frames, again, contacts, start)

    for name in ("qpos", "qvel"):
        value, where = worst[name]
        found.add(check(f"replay.{name}", value, "==", 0.0, where=where, note="bit for bit"))
    for block in layout.blocks:
        value, where = worst[f"features.{block.name}"]
        found.add(check(f"features.{block.name}", value, "<=", ROUNDING, where=where, note="relative"))
    for name in VELOCITIES:
        unit = layout.block(name).unit
        true, differences, between = (
            float(np.abs(np.concatenate(errors[f"{name}.{kind}"])).mean()) for kind in ("true", "differences", "between")
        )
        found.add(
            Row(f"finite_differences.{name}", between, PASS, unit=unit, note="MAE of finite differences from the true qvel")
        )
        if between <= ROUNDING:
            found.add(
                Row(f"true_velocity.{name}", None, WARN, note="finite differences are the same here: nothing to tell apart")
            )
        else:
            share = true / between
            said = "MAE from the true qvel, over the MAE between true qvel and finite differences"
            found.add(check(f"true_velocity.{name}", share, "<", 0.01, note=said))
            if not share < 0.01 and differences < true:
                found.because(f"{name}: {faults.DIFFERENCES}")
    found.add(check("contacts.flips", flips, "==", 0, note="entries of foot_contacts that mj_contactForce contradicts"))
    for name in ("channel_loads", "sum_fn_per_frame"):
        if name in worst:
            value, where = worst[name]
            found.add(check(f"loads.{name}", value, "<=", 1e-6, unit="N", where=where, note="mean over the substeps"))
    frames = sum(count for _, count in chosen)
    return found.report(
        f"{told(chosen, context.subject.clips)}, {frames:,} frames, simulated again from the recorded start and controls by "
        "`mujoco.mj_step` on the robot's own model, contacts by `mj_contactForce`; against the recorded states and features"
    )


def _replayed_start(start: Array, qpos: Array, clip: Clip) -> Array:
    """The poses that a replay's frames started from."""
    return start if clip.recipe.mode == "teacher_forced" else np.concatenate([start[:1], qpos[:-1]])


def _say_what_differs(
    found: Findings, robot: Robot, clip: Clip, frames: int, again: states.States, contacts: Floats, start: Array
) -> None:
    """Reasons for one clip whose recorded states, contacts or features are not the replay's."""
    arrays = clip.arrays
    qpos, qvel, given = (np.asarray(arrays[key][:frames]) for key in ("qpos", "qvel", "features"))
    begin = _replayed_start(start, again.qpos, clip)
    if not np.array_equal(qpos, again.qpos) or not np.array_equal(qvel, again.qvel):
        named = faults.name_velocity_fault(robot, qvel, again.qvel, again.qpos, begin)
        differs = (qpos != again.qpos).any(axis=1) | (qvel != again.qvel).any(axis=1)
        frame = int(np.argmax(differs))
        found.because(
            f"clip {clip.name}: "
            + (named or "the recorded states are not what its controls do: other controls, another start, or other physics")
            + f", from frame {frame} on"
        )
    truth = assemble(robot, again.qpos, again.qvel, contacts)
    if relative(given, truth).max() <= ROUNDING:
        return
    sayings = faults.name_faults(robot, given, again.qpos, again.qvel, begin, contacts)
    touching = np.asarray(arrays["foot_contacts"][:frames])
    wrong = [robot.channels[c] for c in np.flatnonzero((touching != contacts).any(axis=0))]
    if wrong and not any("foot_contacts" in saying for saying in sayings):
        sayings.append(f"foot_contacts: {', '.join(wrong)} are not what the forces say")
    if sayings:
        found.because(f"clip {clip.name}: {'; '.join(sayings)}")


# --- 1C -------------------------------------------------------------------------------------------------------------------


def generator_determinism(context: Context) -> TestReport:
    """1C: generating a clip again gives the same bytes, and replaying its controls without overwrites the same velocities."""
    found = Findings("1C", "generator determinism")
    robot, clips = context.subject.robot, with_rows(context)
    if not clips:
        return found.skipped("no clip has a frame")
    sources = [clip for clip in clips if clip.motion is not None]
    missing = [clip.name for clip in clips if clip.motion is None]
    said = [_replay_half(found, context, clips)]
    motions: list[tuple[Clip, Motion]] = []
    for clip in (clip for clip, frames in sample(sources, REPLAYED_FRAMES) if frames == clip.frames):
        motion = clip.motion() if clip.motion is not None else None
        if motion is None:
            missing.append(clip.name)
        else:
            motions.append((clip, motion))
    if motions:
        said.insert(0, _generate_half(found, context, motions))
    if missing:
        whose = "no clip's source is" if not motions else f"the source of {len(missing)} of {len(clips)} clips is not"
        note = (
            f"{whose} at hand: generated again were the others" if motions else f"{whose} at hand: nothing was generated again"
        )
        found.add(Row("generated.source", len(motions), SKIP, note=note))
        if all(row.status != FAIL for row in found.rows):
            found.because(note)
    del robot
    return found.report("; ".join(said))


def _replay_half(found: Findings, context: Context, clips: Sequence[Clip]) -> str:
    """The recorded controls without any overwrite of the pose, through the same physics."""
    robot = context.subject.robot
    chosen = sample(clips, REPLAYED_FRAMES)
    names = ("joint_vel", "root_lin_vel", "root_ang_vel")
    worst = dict.fromkeys(names, (0.0, ""))
    forced = 0
    for number, (clip, frames) in enumerate(chosen):
        context.progress(0.5 + 0.5 * number / len(chosen), f"replaying {clip.name}")
        model = robot.scaled_model(clip.recipe.physics)
        overwrites = clip.recipe.mode == "teacher_forced"
        forced += overwrites
        drive = replace(Drive.of(clip, frames), forced=None)
        qpos, qvel = states.run(robot, model, drive)
        arrays = clip.arrays
        nothing = np.zeros_like(arrays["foot_contacts"][:frames])
        again = assemble(robot, qpos, qvel, nothing).astype(np.float64)
        recorded = assemble(robot, arrays["qpos"][:frames], arrays["qvel"][:frames], nothing).astype(np.float64)
        for name in names:
            here = robot.layout.block(name).slice
            mae = float(np.abs(again[:, here] - recorded[:, here]).mean())
            if not overwrites:
                if not mae <= worst[name][0]:
                    worst[name] = (mae, f"clip {clip.name}")
            else:
                note = "teacher_forced: the pose was overwritten, and without that the robot moves otherwise"
                where = f"clip {clip.name}"
                found.add(
                    check(
                        f"replay.mae.{name}",
                        mae,
                        "<",
                        0.1,
                        warn=True,
                        unit=robot.layout.block(name).unit,
                        where=where,
                        note=note,
                    )
                )
    if forced < len(chosen):
        for name, (value, where) in worst.items():
            unit = robot.layout.block(name).unit
            row = check(
                f"replay.mae.{name}",
                value,
                "==",
                0.0,
                unit=unit,
                where=where,
                note="without overwrites; the specification asks < 0.1",
            )
            if not found.add(row):
                found.because(f"{where}: replaying its controls gives other velocities (MAE {value:.3g} {unit} in {name})")
    return f"the controls of {told(chosen, clips)} replayed without overwrites, against the recorded velocities"


def _generate_half(found: Findings, context: Context, motions: Sequence[tuple[Clip, Motion]]) -> str:
    """The clips generated again from their motions, every exported array against the recorded one."""
    robot = context.subject.robot
    conditioned = [condition(motion, robot) for _, motion in motions]
    clips = [clip for clip, _ in motions]

    def generated(which: Iterable[int]) -> dict[int, dict[str, npt.NDArray[Any]]]:
        # A clip at a time has its own attempt; those of one attempt go together.
        arrays: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for attempt in sorted({clips[i].attempt for i in which}):
            batch = [i for i in which if clips[i].attempt == attempt]
            # What was tracked is driven by the plan that was recorded; the planner is asked below.
            plans = [
                Plan(np.asarray(clips[i].arrays["ctrl"]), None, 0.0)
                if clips[i].recipe.mode == "tracked" and clips[i].frames == len(conditioned[i].dof_pos)
                else None
                for i in batch
            ]
            ready = [i for i, made in zip(batch, plans, strict=True) if made is not None or clips[i].recipe.mode != "tracked"]
            made = [one for i, one in zip(batch, plans, strict=True) if i in ready]
            rollouts = context.generate(
                robot, [conditioned[i] for i in ready], [clips[i].recipe for i in ready],
                nthread=context.nthread, attempt=attempt, plans=made,
            )  # fmt: skip
            arrays.update({i: rollout.arrays() for i, rollout in zip(ready, rollouts, strict=True)})
        return arrays

    everyone = range(len(clips))
    first = generated(everyone)
    differing = {i: _differing(clips[i], arrays) for i, arrays in first.items()}
    differing = {i: keys for i, keys in differing.items() if keys}
    where = f"clip {clips[next(iter(differing))].name}" if differing else ""
    note = "clips with an exported array that differs in any byte"
    found.add(check("generated.differing", len(differing), "==", 0, where=where, note=note))
    left_out = [clips[i].name for i in everyone if i not in first]
    if left_out:
        note = (
            f"tracked clips whose simulation failed midway, so that their whole plan is not recorded: {', '.join(left_out[:5])}"
        )
        found.add(Row("generated.left_out", len(left_out), WARN, note=note))
    if differing:
        second = generated(differing)
        for i, keys in list(differing.items())[:3]:
            same_again = all(np.array_equal(first[i][key], second[i][key]) for key in first[i])
            why = (
                "this machine makes the same bytes twice, so they were recorded by other code, from another motion or recipe, "
                "or on a processor that rounds otherwise: generate the clip again with the code that is installed"
                if same_again
                else "two generations on this machine differ, too: the generator is not deterministic (a seed that is not "
                "fixed, or state that is kept from one clip to the next)"
            )
            found.because(f"clip {clips[i].name}: {', '.join(keys)} differ from the recorded bytes; {why}")
    planned = _plan_prefixes(found, context, clips, conditioned)
    return (
        f"{len(first)} of {len(context.subject.clips)} clips generated again from their motions, every exported array byte for "
        f"byte{planned}"
    )


def _differing(clip: Clip, arrays: dict[str, npt.NDArray[Any]]) -> list[str]:
    """The names of the recorded arrays that were not generated again byte for byte."""
    found = []
    for key, recorded in clip.arrays.items():
        again = arrays.get(key)
        if (
            again is None
            or again.dtype != recorded.dtype
            or again.shape != recorded.shape
            or np.ascontiguousarray(again).tobytes() != np.ascontiguousarray(recorded).tobytes()
        ):
            found.append(key)
    return found


def _plan_prefixes(found: Findings, context: Context, clips: Sequence[Clip], conditioned: Sequence[Conditioned]) -> str:
    """The beginnings of some tracked clips planned again; their controls bit for bit."""
    robot = context.subject.robot
    tracked = [i for i, clip in enumerate(clips) if clip.recipe.mode == "tracked"]
    if not tracked:
        return ""
    wanted: dict[int, int] = {}
    cost: dict[int, float] = {}
    for i in tracked:
        planner = clips[i].recipe.planner
        assert planner is not None
        stretch = max(1, round(planner.branch_sec / robot.control_dt))
        whole = max(1, round(PLANNED_PREFIX_SEC / robot.control_dt / stretch)) * stretch
        wanted[i] = min(whole, clips[i].frames)
        cost[i] = wanted[i] * robot.control_dt * planner.samples_of(clips[i].attempt) / planner.samples
    # Evenly over the clips, as many as the budget has time for, and one at least.
    count = len(tracked)
    while count > 1 and sum(cost[tracked[int(n * len(tracked) / count)]] for n in range(count)) > PLANNED_SEC:
        count -= 1
    chosen = [tracked[int(n * len(tracked) / count)] for n in range(count)]
    bad = []
    for number, i in enumerate(chosen):
        clip, motion = clips[i], conditioned[i]
        context.progress(0.5 * number / len(chosen), f"planning {clip.name} again")
        first = _prefix(context, clip, motion, wanted[i])
        if np.array_equal(first, clip.arrays["ctrl"][: wanted[i]]):
            continue
        bad.append(i)
        if len(bad) > 1:
            continue  # One is told why; planning costs seconds.
        again = _prefix(context, clip, motion, wanted[i])
        frame = int(np.argmax((first != clip.arrays["ctrl"][: wanted[i]]).any(axis=1)))
        why = (
            "this machine plans the same twice, so the recording comes of another seed, attempt or recipe than it names, of "
            "other code, or of a processor whose linear algebra rounds otherwise: score the clip again here"
            if np.array_equal(first, again)
            else "two plans on this machine differ, too: the planner is not deterministic (a seed that is not fixed)"
        )
        found.because(f"clip {clip.name}: its controls are planned otherwise from frame {frame} on; {why}")
    where = f"clip {clips[bad[0]].name}" if bad else ""
    note = f"of {len(chosen)} tracked clips whose beginning was planned again"
    found.add(check("planned.differing", len(bad), "==", 0, where=where, note=note))
    seconds = sum(wanted[i] for i in chosen) * robot.control_dt
    return (
        f"; the beginnings of {len(chosen)} of {len(tracked)} tracked clips ({seconds:.1f} s) planned again and their controls "
        "compared bit for bit, what follows simulated with the recorded controls"
    )


def _prefix(context: Context, clip: Clip, motion: Conditioned, frames: int) -> Array:
    """(frames, nu) the controls that the planner begins a clip with."""
    start = np.zeros_like(motion.initial_qvel) if clip.recipe.initial_velocity == "zero" else motion.initial_qvel
    # As in the generator: linear algebra on several threads adds in another order.
    with threadpool_limits(1, user_api="blas"):
        made = context.plan(
            context.subject.robot, motion, clip.recipe, start, attempt=clip.attempt, nthread=context.nthread, frames=frames
        )
    return np.asarray(made.ctrl[:frames])
