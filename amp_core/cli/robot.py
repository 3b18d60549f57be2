"""`ampref robot`: a first robot.yaml for a model, and what of a robot will not work, and why."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer

from amp_core.cli.group import SummaryGroup
from amp_core.cli.options import Fps, Json, QuatOrder, Quiet
from amp_core.cli.output import Output
from amp_core.cli.targets import refuse_unwritable
from amp_core.commands import quote_path
from amp_core.errors import InputRefused, MotionRefused
from amp_core.files import write_file
from amp_core.formats import read_motion
from amp_core.robot_setup import Inspection, draft_robot, inspect_robot

_SUMMARY = "Make a robot.yaml for a model, or say what of a robot will not work, and why."
robot = Typer(cls=SummaryGroup, help=_SUMMARY, no_args_is_help=True, rich_markup_mode=None)


@robot.command("init")
def init(
    model: Annotated[Path, Argument(metavar="MODEL.xml", exists=True, dir_okay=False, help="An MJCF file.")],
    joints_from: Annotated[
        Path | None,
        Option(metavar="CLIP", exists=True, dir_okay=False, help="A clip that names its joints: these, in this order."),
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", metavar="FILE", help="Default: robot.yaml beside the model.")] = None,
    force: Annotated[bool, Option("--force", help="Replace the file if it is there.")] = False,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write a robot.yaml for a model, with every guess as a comment, and check the robot.

    Feet are the lowest bodies of the standing pose (a keyframe, else the model's zero pose). Joints are the model's, or those
    of a clip, and the others are fixed. A model without servos gets guessed gains: put in those of your controller. Exits with
    1 when the robot that was written cannot be loaded yet.
    """
    output = Output(json_out, quiet=quiet)
    target = out or model.parent / "robot.yaml"
    if target.exists() and not force:
        raise InputRefused(f"{target} is there already", remedy="Give another file with --out, or replace it with --force")
    joints = None if joints_from is None else _read_joints(joints_from, fps, quat_order)
    draft = draft_robot(model, joints, target.parent)
    with refuse_unwritable(target):
        write_file(target, draft.to_yaml().encode(), durable=True)
    guesses = [{"key": key, "guess": text} for key, texts in draft.guesses.items() for text in texts]
    document: dict[str, Any] = {"file": str(target), "guesses": guesses, "inspection": None}
    output.print(f"wrote {target}")
    output.print_table(("Key", "Guess"), [(guess["key"], guess["guess"]) for guess in guesses])
    with output.refusing(target):
        inspection = inspect_robot(target)
        document["inspection"] = _describe(inspection)
        _print_notices(output, inspection)
    output.print_result(document, [str(target)])
    output.print(f"\nnext: ampref robot check {quote_path(target)}")
    output.exit()


@robot.command("check")
def check(
    source: Annotated[str, Argument(metavar="ROBOT", help="A robot.yaml, its folder, or a bundled name.")],
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Load a robot, and say what of it will not work, and why.

    It prints every servo with its gains, limit and ω·dt, which says whether the model's step can follow it. Exits with 1 when
    the robot cannot be loaded.
    """
    output = Output(json_out, quiet=quiet)
    inspection = inspect_robot(source)
    model = inspection.robot
    output.print_result(_describe(inspection), [model.name])
    output.print(
        f"{model.name}: {len(model.joint_names)} joints, {model.mass:.3f} kg, root {inspection.standing_height:.3f} m above "
        f"the soles, control every {1000 * model.control_dt:g} ms in {model.substeps} steps of {1000 * model.sim_dt:g} ms"
    )
    output.print(f"feet: {', '.join(foot.name for foot in model.feet)}; channels: {', '.join(model.channels)}")
    rows = [
        (
            servo.joint,
            f"{servo.kp:.4g}",
            f"{servo.kd:.4g}",
            "none" if math.isinf(servo.limit) else f"{servo.limit:.4g}",
            f"{servo.armature:.4g}",
            "none" if math.isinf(servo.low) else f"{servo.low:.2f} … {servo.high:.2f}",
            f"{servo.frequency * model.sim_dt:.2f}",
        )
        for servo in inspection.servos
    ]
    output.print_table(("Joint", ">kp N·m/rad", ">kd", ">limit N·m", ">armature", ">range rad", ">ω·dt"), rows)
    _print_notices(output, inspection)
    output.exit()


def _read_joints(path: Path, fps: float | None, quat_order: str | None) -> tuple[str, ...]:
    # Neither has a part in the names; a CSV is not read without them.
    is_csv = path.suffix == ".csv"
    motion = read_motion(path, fps=fps or (30.0 if is_csv else None), quat_order=quat_order or ("xyzw" if is_csv else None))
    if motion.joint_names is None:
        raise MotionRefused(
            "the clip does not name its joints",
            file=str(path),
            key="joint_names",
            expected="joint_names, or a CSV header with a name for each column",
            remedy="Leave out --joints-from, and put `joints` of the file in the order of the clip's columns",
        )
    return motion.joint_names


def _print_notices(output: Output, inspection: Inspection) -> None:
    output.print()
    for notice in inspection.notices:
        output.print(f"{notice.severity}: {notice.message}" + (f". {notice.remedy}" if notice.remedy else ""))
    if not any(notice.severity == "warns" for notice in inspection.notices):
        output.print(f"{inspection.robot.name} can be used")


def _describe(inspection: Inspection) -> dict[str, Any]:
    model = inspection.robot
    servos = [
        {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in asdict(servo).items()}
        | {"omega_dt": servo.frequency * model.sim_dt}
        for servo in inspection.servos
    ]
    return {
        "name": model.name,
        "digest": model.digest,
        "mass_kg": float(model.mass),
        "standing_height_m": inspection.standing_height,
        "control_dt": model.control_dt,
        "timestep": model.sim_dt,
        "joint_names": list(model.joint_names),
        "channels": list(model.channels),
        "feet": [foot.name for foot in model.feet],
        "servos": servos,
        "notices": [asdict(notice) for notice in inspection.notices],
    }
