"""`ampref track`: a policy of motion tracking on a clip, recorded as a clip with its controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.cli.options import Fps, Json, MaxDuration, QuatOrder, Quiet, RobotName
from amp_core.cli.output import Cell, Output
from amp_core.cli.reading import limits_of, read_motions, reading_options
from amp_core.cli.targets import refuse_unwritable
from amp_core.cli.text import number
from amp_core.commands import quote_path, robot_option
from amp_core.errors import AmprefError
from amp_core.files import write_file


def track(
    motion: Annotated[Path, Argument(metavar="CLIP", help="A motion file: .pkl, .npz, .json or .csv.")],
    policy: Annotated[Path, Option(metavar="FILE", help="The policy: an .onnx file.")],
    spec: Annotated[Path, Option(metavar="FILE", help="What it observes and what its actions mean: a YAML file.")],
    out_file: Annotated[Path, Option("--out", "-o", metavar="FILE", help="Write the recording here: an .npz.")],
    robot: RobotName = "wildrobot",
    memory: Annotated[int, Option(min=64, max=1 << 20, metavar="MIB", help="Memory that the policy may use.")] = 1024,
    step_time: Annotated[float, Option(min=0.01, max=3600, metavar="SECONDS", help="Time that one answer may take.")] = 5.0,
    total_time: Annotated[float, Option(min=1, max=1e6, metavar="SECONDS", help="Time that all answers may take.")] = 600.0,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    max_duration: MaxDuration = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run a policy of motion tracking on a clip, and record what it did, as a clip with controls.

    The policy is asked at every control step, in the robot's own model and without a harness. It runs in a process of its own
    with limits on memory and time. Score what was recorded with: ampref score FILE --mode recorded

    Exits with 0 when the clip was recorded, whether or not the robot fell, and with 1 when the policy, its spec or the clip was
    refused.
    """
    if out_file.suffix != ".npz":
        raise BadParameter(f"{out_file} does not end in .npz", param_hint="--out")
    for path in (motion, policy, spec):
        if path.exists() and out_file.exists() and path.samefile(out_file):
            raise BadParameter(f"{out_file} is an input and would be overwritten", param_hint="--out")
    out = Output(json_out, quiet=quiet)
    from amp_core import onnx_policy  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.motion import check_motion, condition  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    loaded_robot, clip_limits = Robot.load(robot), limits_of(max_duration)
    options = reading_options([motion], fps, quat_order, out, clip_limits)
    (clip_motion,) = read_motions([motion], options, lambda clip: check_motion(clip, loaded_robot, clip_limits))
    if isinstance(clip_motion, AmprefError):
        raise clip_motion
    clip = condition(clip_motion, loaded_robot, clip_limits)
    model = onnx_policy.ModelFile.read(policy)
    policy_spec = onnx_policy.read_spec(spec, loaded_robot, model)
    warnings = onnx_policy.check_metadata(model.metadata, str(policy), policy_spec, loaded_robot)
    for warning in warnings:
        out.warn(warning)
    limits = onnx_policy.PolicyLimits(memory_mb=memory, step_sec=step_time, total_sec=total_time)
    with onnx_policy.PolicySession(model, limits) as session, out.progress("tracking", total=clip.num_frames) as progress:
        recording = onnx_policy.record(loaded_robot, clip, policy_spec, model, session, progress.update)
    with refuse_unwritable(out_file):
        write_file(out_file, recording.to_bytes(), durable=True)
    document: dict[str, Any] = {
        "file": str(out_file),
        "name": clip.name,
        "frames": clip.num_frames,
        "duration_sec": clip.num_frames * clip.dt,
        "fell_at_frame": recording.fell_at,
        "joint_rmse_rad": recording.joint_rmse,
        "root_drift_m": recording.root_drift,
        "observation": [dataclasses.asdict(term) for term in recording.slices],
        "from_metadata": list(policy_spec.from_metadata),
        "warnings": warnings,
        "provenance": dict(recording.facts),
    }
    out.print_result(document, [str(out_file)])
    if policy_spec.from_metadata:
        out.note(f"taken from the policy's metadata: {', '.join(policy_spec.from_metadata)}")
    columns: dict[str, Cell] = {
        "Clip": "name",
        ">frames": "frames",
        ">s": lambda row: number(row["duration_sec"]),
        ">fell": lambda row: None if row["fell_at_frame"] is None else f"frame {row['fell_at_frame']}",
        ">joints rad": lambda row: number(row["joint_rmse_rad"], 3),
        ">drift m": lambda row: number(row["root_drift_m"], 3),
    }
    out.print_table(columns, [document])
    out.print(f"\nnext: ampref score {quote_path(out_file)} --mode recorded{robot_option(robot)}")
    out.exit()
