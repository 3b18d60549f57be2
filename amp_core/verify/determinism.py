"""Test 1C: does the generator give the same bytes again, and do its controls alone give the recorded velocities?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from amp_core.consistency import find_faults
from amp_core.errors import IntegrityError
from amp_core.formats import WIDE_LIMITS
from amp_core.motion import condition
from amp_core.quality import FrameSeries, measure
from amp_core.recipe import PLANNED_MODES
from amp_core.reference import META, decode_meta
from amp_core.rollout.simulation import start_velocity
from amp_core.tracking import Plan
from amp_core.verify.context import REPLAYED_FRAMES, Context, describe_sample
from amp_core.verify.report import FAIL, SKIP, Findings, Peak, Row, TestReport
from amp_core.verify.states import VELOCITIES, Drive, compute_features, simulate

if TYPE_CHECKING:
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

PLANNED_SEC = 12.0
"""s of tracked clips that are planned again, in all; plans with more samples count for more."""

PLANNED_PREFIX_SEC = 1.0
"""s of each of them, rounded to the planner's branches."""


@dataclass(frozen=True, eq=False)
class Source:
    """A clip under test and the motion that it is generated again from.

    Args:
      motion: conditioned.
      frames: to generate again, from the first.
    """

    clip: Clip
    motion: Conditioned
    frames: int

    @property
    def is_planned(self) -> bool:
        return self.clip.recipe.mode in PLANNED_MODES

    @property
    def is_whole(self) -> bool:
        """Whether the simulation runs to its end, be that its failure.

        The plan of a simulation that failed midway is recorded up to there alone.
        """
        return self.frames == self.clip.frames and not (self.is_planned and self.frames < self.motion.num_frames)


def generator_determinism(context: Context) -> TestReport:
    """1C: generating a clip again gives the same bytes, and replaying its controls without overwrites the same velocities."""
    findings = Findings("1C")
    clips = context.subject.nonempty_clips
    if not clips:
        return findings.skip("no clip has a frame")
    sentences = [check_replay(findings, context, clips)]
    sources = [
        Source(clip, condition(clip.motion(), context.subject.robot, WIDE_LIMITS, mode=clip.recipe.mode), frames)
        for clip, frames in context.sample([clip for clip in clips if clip.motion is not None], REPLAYED_FRAMES)
        if clip.motion is not None
    ]
    results: dict[Clip, Arrays] = {}
    if sources:
        sentence, results = check_generation(findings, context, sources)
        sentences.insert(0, sentence)
    sentences.append(check_metrics(findings, context.subject.robot, clips, results))
    missing = [clip.name for clip in clips if clip.motion is None]
    if missing:
        names = ", ".join(missing[:5]) + f" and {len(missing) - 5} more" * (len(missing) > 5)
        note = f"the motions of {len(missing)} of {len(clips)} clips are not at hand ({names})"
        findings.add(Row("generated.source", len(clips) - len(missing), SKIP, note=note))
        if all(row.status != FAIL for row in findings.rows):
            findings.add_reason(
                f"{note}: their controls were replayed, but nothing says that they come of these motions; give their folder "
                "with --motions (ampref dataset build)"
            )
    return findings.report("; ".join(sentences), is_open=bool(missing))


def check_replay(findings: Findings, context: Context, clips: Sequence[Clip]) -> str:
    """The recorded controls without any overwrite of the pose, through the same physics."""
    robot = context.subject.robot
    pairs = context.sample(clips, REPLAYED_FRAMES)
    peaks: dict[str, Peak] = {}
    for number, (clip, frames) in enumerate(pairs):
        context.progress(0.5 + 0.5 * number / len(pairs), f"replaying {clip.name}")
        model, drive = robot.scaled_model(clip.recipe.physics), replace(Drive.of(clip, frames), forced=None)
        replay = simulate(robot, model, drive, with_loads=False)
        no_contacts = np.zeros_like(clip.arrays["foot_contacts"][:frames])
        features, recorded_features = (
            compute_features(robot, qpos[:frames], qvel[:frames], no_contacts).astype(np.float64)
            for qpos, qvel in ((replay.qpos, replay.qvel), (clip.arrays["qpos"], clip.arrays["qvel"]))
        )
        for name in VELOCITIES:
            block, place = robot.layout.block(name), f"clip {clip.name}"
            mae = float(np.abs(features[:, block.slice] - recorded_features[:, block.slice]).mean())
            if clip.recipe.mode == "teacher_forced":
                note = "teacher_forced: the pose was overwritten, and without that the robot moves otherwise"
                findings.check(f"replay.mae.{name}", mae, "<", 0.1, warn=True, unit=block.unit, where=place, note=note)
            else:
                peaks.setdefault(name, Peak()).record(mae, place)
    for name, peak in peaks.items():
        unit, note = robot.layout.block(name).unit, "without overwrites; the specification asks < 0.1"
        reason = f"{peak.place}: replaying its controls gives other velocities (MAE {peak.value:.3g} {unit} in {name})"
        findings.check(f"replay.mae.{name}", peak.value, "==", 0.0, unit=unit, where=peak.place, note=note, reason=reason)
    return f"the controls of {describe_sample(pairs, clips)} replayed without overwrites, against the recorded velocities"


def check_metrics(findings: Findings, robot: Robot, clips: Sequence[Clip], results: Mapping[Clip, Arrays]) -> str:
    """The recorded quality metrics, and those in an export's `meta`, against what the arrays give; equal to the last bit.

    Args:
      results: the arrays of the clips that were generated again; of the others the recorded ones are measured.
    """
    differing, old, count = "", 0, 0
    odd_places: list[str] = []
    for clip in clips:
        records = [] if clip.metrics is None else [("recorded", clip.metrics)]
        if META in clip.arrays:
            records.append(("exported", decode_meta(clip.arrays[META], clip.name)["quality_metrics"]))
        if not records:
            continue
        try:
            values = measure(FrameSeries.from_export(results.get(clip, clip.arrays), clip.recipe, robot))
        except IntegrityError:
            old += 1
            continue
        count += 1
        if META in clip.arrays and (faults := find_faults(clip.arrays, robot, clip.name)):
            odd_places.append(f"clip {clip.name}")
            more = f" and {len(faults) - 1} more" * (len(faults) > 1)
            findings.add_reason(
                f"clip {clip.name}: its export contradicts itself ({faults[0].explain()}{more}): it was changed after it was "
                "written, or is of another robot; score the clip again"
            )
        for kind, metrics in records:
            names = [name for name, value in values.items() if metrics.get(name) != value]
            if names:
                differing = differing or f"clip {clip.name}"
                texts = ", ".join(f"{name} {metrics.get(name)} for {values[name]}" for name in names[:3])
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                findings.add_reason(
                    f"clip {clip.name}: the {kind} quality metrics are not what its arrays give ({texts}{more}): they were "
                    "changed after they were measured, or measured by other code; score the clip again"
                )
    note = "exports whose arrays or meta contradict each other, the recipe or the robot"
    findings.check("export.contradicted", len(odd_places), "==", 0, where=odd_places[0] if odd_places else "", note=note)
    wrong = sum("quality metrics are not" in reason for reason in findings.reasons)
    note = f"of {count} clips whose quality metrics were measured again, to the last bit"
    findings.check("metrics.differing", wrong, "==", 0, where=differing, note=note)
    if old:
        note = "exports of an older release, which lack arrays that the metrics are measured from"
        findings.add(Row("metrics.old", old, SKIP, note=note))
    return f"the quality metrics of {count} clips measured again"


def check_generation(findings: Findings, context: Context, sources: Sequence[Source]) -> tuple[str, dict[Clip, Arrays]]:
    """The clips generated again from their motions, every exported array against the recorded one.

    Returns:
      A sentence, and the new arrays of the clips that were generated as a whole.
    """
    results = generate_again(context, sources)
    differing = {
        i: keys
        for i, (source, arrays) in enumerate(zip(sources, results, strict=True))
        if (keys := find_differing(source.clip.arrays, arrays, None if source.is_whole else source.frames))
    }
    place = f"clip {sources[next(iter(differing))].clip.name}" if differing else ""
    note = "clips with an exported array that differs in any byte"
    findings.check("generated.differing", len(differing), "==", 0, where=place, note=note)
    for i, keys in list(differing.items())[:3]:
        repetition = generate_again(context, [sources[i]])[0]
        is_deterministic = all(np.array_equal(array, repetition[key]) for key, array in results[i].items())
        cause = (
            "this machine makes the same bytes twice, so they were recorded by other code, from another motion or recipe, "
            "or on a processor that rounds otherwise: generate the clip again with the code that is installed"
            if is_deterministic
            else "two generations on this machine differ, too: the generator is not deterministic (a seed that is not "
            "fixed, or state that is kept from one clip to the next)"
        )
        findings.add_reason(f"clip {sources[i].clip.name}: {', '.join(keys)} differ from the recorded bytes; {cause}")
    plan_text = check_plans(findings, context, sources)
    sample_text = describe_sample([(source.clip, source.frames) for source in sources], context.subject.nonempty_clips)
    sentence = f"{sample_text} generated again from their motions, every exported array byte for byte{plan_text}"
    whole_results = {source.clip: arrays for source, arrays in zip(sources, results, strict=True) if source.is_whole}
    return sentence, whole_results


def find_differing(recorded_arrays: Arrays, arrays: Arrays, frames: int | None = None) -> list[str]:
    """The names of recorded arrays that differ in any byte from those of another generation.

    Args:
      frames: the other generation stopped after so many, which are compared; None if it did not.
    """

    def to_bytes(array: npt.NDArray[Any] | None) -> tuple[Any, ...] | None:
        return None if array is None else (array.dtype, array.shape, np.ascontiguousarray(array).tobytes())

    differing = []
    for key, recorded_array in recorded_arrays.items():
        # `check_metrics` compares what is in `meta`; the engine may have warned after the frames that are compared.
        if key == META or (frames is not None and key == "solver_warnings"):
            continue
        is_series = recorded_array.ndim > 0 and not key.startswith("initial_")
        if to_bytes(recorded_array[:frames] if is_series else recorded_array) != to_bytes(arrays.get(key)):
            differing.append(key)
    return differing


def generate_again(context: Context, sources: Sequence[Source]) -> list[Arrays]:
    """The exported arrays of each source."""
    # Planned clips follow the recorded controls; `check_plans` runs the planner.
    rollouts = context.generate(
        context.subject.robot,
        [source.motion for source in sources],
        [source.clip.recipe for source in sources],
        nthread=context.nthread,
        attempt=[source.clip.attempt for source in sources],
        plans=[Plan(np.asarray(source.clip.arrays["ctrl"]), None, 0.0) if source.is_planned else None for source in sources],
        frames=[None if source.is_whole else source.frames for source in sources],
    )
    return [rollout.arrays() for rollout in rollouts]


def check_plans(findings: Findings, context: Context, sources: Sequence[Source]) -> str:
    """The beginnings of some tracked clips planned again; their controls bit for bit."""
    control_dt = context.subject.robot.control_dt
    tracked_clips: list[int] = []
    lengths: dict[int, int] = {}
    costs: dict[int, float] = {}
    for i, source in enumerate(sources):
        planner = source.clip.recipe.planner
        if source.is_planned and planner is not None:
            branch = max(1, round(planner.branch_sec / control_dt))
            frames = max(1, round(PLANNED_PREFIX_SEC / control_dt / branch)) * branch
            lengths[i] = min(frames, source.frames)
            costs[i] = lengths[i] * control_dt * planner.samples_of(source.clip.attempt) / planner.samples
            tracked_clips.append(i)
    if not tracked_clips:
        return ""
    # Evenly over the clips, as many as the budget has time for, and one at least.
    count = len(tracked_clips)
    selection = tracked_clips
    while count > 1 and sum(costs[i] for i in selection) > PLANNED_SEC:
        count -= 1
        selection = [tracked_clips[int(n * len(tracked_clips) / count)] for n in range(count)]
    differing: list[str] = []
    for number, i in enumerate(selection):
        source, clip = sources[i], sources[i].clip
        context.progress(0.5 * number / len(selection), f"planning {clip.name} again")
        recorded_ctrl = clip.arrays["ctrl"][: lengths[i]]
        planned_ctrl = _plan_beginning(context, source, lengths[i])
        if np.array_equal(planned_ctrl, recorded_ctrl):
            continue
        differing.append(clip.name)
        if len(differing) > 1:
            continue  # The first one gets a reason; planning costs seconds.
        frame = int(np.argmax((planned_ctrl != recorded_ctrl).any(axis=1)))
        cause = (
            "this machine plans the same twice, so the recording comes of another seed, attempt or recipe than it names, of "
            "other code, or of a processor whose linear algebra rounds otherwise: score the clip again here"
            if np.array_equal(planned_ctrl, _plan_beginning(context, source, lengths[i]))
            else "two plans on this machine differ, too: the planner is not deterministic (a seed that is not fixed)"
        )
        findings.add_reason(f"clip {clip.name}: its controls are planned otherwise from frame {frame} on; {cause}")
    place = f"clip {differing[0]}" if differing else ""
    note = f"of {len(selection)} tracked clips whose beginning was planned again"
    findings.check("planned.differing", len(differing), "==", 0, where=place, note=note)
    seconds = sum(lengths[i] for i in selection) * control_dt
    return (
        f"; the beginnings of {len(selection)} of {len(tracked_clips)} tracked clips ({seconds:.1f} s) planned again and their "
        "controls compared bit for bit, what follows simulated with the recorded controls"
    )


def _plan_beginning(context: Context, source: Source, frames: int) -> Array:
    """(frames, nu) the first controls of a clip, planned again."""
    clip, motion = source.clip, source.motion
    start = start_velocity(motion, clip.recipe)
    # As in the generator: linear algebra on several threads adds in another order.
    with threadpool_limits(1, user_api="blas"):
        plan = context.plan(
            context.subject.robot, motion, clip.recipe, start, attempt=clip.attempt, nthread=context.nthread, frames=frames
        )
    return np.asarray(plan.ctrl[:frames])
