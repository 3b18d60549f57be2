"""`ampref render`: a picture, an animation or a video of a clip or a rollout, where there is no browser."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.cli.clips import find_clip
from amp_core.cli.cut import FrameRange, parse_frames
from amp_core.cli.options import Fps, Json, QuatOrder, Quiet, Url
from amp_core.cli.output import Output
from amp_core.cli.reading import read_motions, reading_options
from amp_core.cli.remote import connect
from amp_core.cli.targets import MOTION_SUFFIXES, check_file, refuse_unwritable
from amp_core.cli.text import size
from amp_core.errors import AmprefError, InputRefused, NotFound
from amp_core.files import is_special, replace_file
from amp_core.formats import WIDE_LIMITS

if TYPE_CHECKING:
    from amp_core.render.takes import Take
    from amp_core.robot import Robot

_KINDS = {".png": "a filmstrip", ".webp": "an animation", ".mp4": "a video"}
_MAX_SIDE = 4096


@dataclass(frozen=True)
class PictureSize:
    """Pixels of a pose or a frame."""

    width: int
    height: int


@dataclass(frozen=True)
class Angles:
    """Where the camera stands, in degrees."""

    azimuth: float = 40.0
    elevation: float = 12.0


def parse_size(text: str) -> PictureSize:
    """`640x480`, pixels."""
    match = re.fullmatch(r"(\d{2,4})[x×](\d{2,4})", text.strip().lower())
    if match is None or not all(16 <= int(side) <= _MAX_SIDE for side in match.groups()):
        raise BadParameter(f"{text!r} is no size; write WIDTHxHEIGHT in pixels, such as 640x480, at most {_MAX_SIDE} each")
    return PictureSize(int(match[1]), int(match[2]))


def parse_camera(text: str) -> Angles:
    """`40,12` or `40`: degrees around the robot and above the horizon."""
    match = re.fullmatch(r"(-?\d{1,3}(?:\.\d+)?)(?:,(-?\d{1,2}(?:\.\d+)?))?", text.strip())
    if match is None or not 0 < float(match[2] or 1) <= 89:
        raise BadParameter(
            f"{text!r} is no camera; write AZIMUTH,ELEVATION in degrees, such as 90,10: 0 is before the robot, 90 at its left, "
            "and the elevation is above 0 and at most 89"
        )
    return Angles(float(match[1]), float(match[2] or Angles.elevation))


def render(
    source: Annotated[
        str,
        Argument(metavar="CLIP|FILE", help="A clip's id or name at the service, a motion file, or the export of a rollout."),
    ],
    target: Annotated[
        Path,
        Option("--out", "-o", metavar="FILE", help="What to write: .png a filmstrip, .webp an animation, .mp4 a video."),
    ],
    robot: Annotated[
        str | None, Option(help="A bundled robot's name, or a path to a robot.yaml. Default: the rollout's, else wildrobot.")
    ] = None,
    rollout: Annotated[str | None, Option(metavar="ID", help="Of a CLIP: this rollout instead of its best.")] = None,
    frames: Annotated[
        FrameRange | None, Option(metavar="A:B", parser=parse_frames, help="The frames A to B − 1 alone, from 0.")
    ] = None,
    count: Annotated[int, Option(min=1, max=64, help="Poses of a filmstrip.")] = 8,
    picture_size: Annotated[
        PictureSize | None,
        Option(
            "--size",
            metavar="WxH",
            parser=parse_size,
            help="Pixels of a pose or frame; default 256x320 (.png), 320x400 (.webp), 640x640 (.mp4).",
        ),
    ] = None,
    rate: Annotated[
        float | None, Option("--rate", min=1, max=120, help="Frames a second that are drawn; default 12.5 (.webp), 25 (.mp4).")
    ] = None,
    camera: Annotated[
        Angles | None,
        Option(
            metavar="AZ[,EL]",
            parser=parse_camera,
            help="Degrees around the robot (0 before it, 90 at its left) and above the horizon; default 40,12.",
        ),
    ] = None,
    ghost: Annotated[bool, Option("--ghost/--no-ghost", help="Draw a rollout's clip as a translucent ghost.")] = True,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Draw a clip or a rollout: poses side by side, an animation, or a video.

    A rollout is drawn as it was simulated, with its clip as a ghost; a motion file as it is, without a simulation. It needs no
    screen and no graphics card: EGL or OSMesa draw, or what MUJOCO_GL names.
    """
    out = Output(json_out, quiet=quiet)
    ending, angles = _check_target(target), camera or Angles()
    from amp_core.render.gl import GlProbe  # noqa: PLC0415 - --help needs no MuJoCo

    # What this machine can draw with is found out while the poses are read.
    probe = GlProbe()
    try:
        from amp_core.render import pictures  # noqa: PLC0415 - as above

        with (
            out.progress("drawing", total=1.0) as progress,
            _open_take(source, robot, rollout, fps, quat_order, url, out) as take,
        ):
            if frames is not None:
                take = take.cut(frames.start, frames.stop)
            style = pictures.Style(
                pictures.DEFAULT_SIZES[ending] if picture_size is None else (picture_size.width, picture_size.height),
                count=count,
                fps=rate or pictures.DEFAULT_FPS.get(ending, 25.0),
                has_ghost=ghost,
                azimuth=angles.azimuth,
                elevation=angles.elevation,
            )
            with refuse_unwritable(target), replace_file(target) as partial_file:
                pictures.write_picture(take, partial_file, ending, style, probe.find_platform, progress.update)
    finally:
        probe.close()
    document: dict[str, Any] = {
        "file": str(target),
        "bytes": target.stat().st_size,
        "clip_name": take.name,
        "robot": take.robot.name,
        "frames": [take.first_frame, take.first_frame + len(take.qpos)],
        "fell_at_frame": take.fell_at,
    }
    out.print_result(document, [str(target)])
    out.print(f"{_KINDS[ending]} of {take.name}: {target} ({size(document['bytes'])})")


def _check_target(target: Path) -> str:
    """The ending of the file to write; refuses what cannot be written before anything is drawn."""
    ending = target.suffix.lower()
    if ending not in _KINDS:
        kinds = ", ".join(f"{ending} for {kind}" for ending, kind in _KINDS.items())
        raise BadParameter(f"{target} says by its ending what it is to be: {kinds}", param_hint="--out")
    if is_special(target):
        raise InputRefused("is no file, and a picture is written as a whole", file=str(target), remedy="Name a file")
    check_file(target)
    return ending


@contextmanager
def _open_take(
    source: str, robot: str | None, rollout: str | None, fps: float | None, quat_order: str | None, url: str | None, out: Output
) -> Iterator[Take]:
    """What is to be drawn of a file or a clip of the service."""
    from amp_core.render import takes  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - as above

    path = Path(source)
    if not path.exists() and path.suffix.lower() not in (*MOTION_SUFFIXES, ".json"):
        with _fetch_rollout(source, rollout, url, out) as (export, facts):
            yield _read_export(export, robot, facts, out, f"the clip {source}")
        return
    if rollout is not None:
        raise BadParameter("a file is one rollout or none; --rollout is for a CLIP of the service", param_hint="--rollout")
    if path.is_file() and takes.is_export(path):
        yield _read_export(path, robot, {}, out, str(path))
        return
    loaded_robot = Robot.load(robot or "wildrobot")
    options = reading_options([path], fps, quat_order, out, WIDE_LIMITS)
    [motion] = read_motions([path], options, lambda motion: None)
    if isinstance(motion, AmprefError):
        raise motion
    yield takes.make_take(motion, loaded_robot)


def _read_export(path: Path, robot: str | None, facts: dict[str, Any], out: Output, label: str) -> Take:
    from amp_core.render import takes  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - as above

    files = [file for file in os.environ.get("AMPREF_ROBOTS", "").split(os.pathsep) if file]
    loaded_robot: Robot = Robot.load(robot) if robot else takes.find_robot_of(path, label, files)
    if takes.differs_in_model(path, loaded_robot):
        out.warn(f"the rollout was simulated with another model of the robot {loaded_robot.name}; it is drawn with this one")
    return takes.read_export(path, loaded_robot, facts)


@contextmanager
def _fetch_rollout(clip: str, rollout: str | None, url: str | None, out: Output) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The export of a clip's best rollout, or of the one that is asked for, in a temporary file."""
    with connect(url, out) as api, tempfile.TemporaryDirectory(prefix="ampref-render-") as folder:
        details = api.get_clip(find_clip(api, clip))
        rollouts = {entry["id"]: entry for entry in details["rollouts"]}
        if rollout is not None and rollout not in rollouts:
            raise NotFound(
                f"the clip {details['name']!r} has no rollout {rollout!r}",
                expected=f"one of {', '.join(rollouts) or 'none yet'}",
                remedy=f"See them with: ampref clip {details['id']}",
            )
        if not rollouts:
            raise NotFound(
                f"the clip {details['name']!r} has no rollout yet", remedy=f"See its jobs with: ampref clip {details['id']}"
            )
        entry = rollouts[rollout] if rollout else details["rollouts"][0]
        path = Path(folder) / f"{details['name']}.npz"
        api.download_arrays(entry["id"], path)
        fell_at = entry["quality_metrics"].get("fell_at_frame")
        yield path, {"name": details["name"], "tier": entry["tier"], "mode": entry["mode"], "fell_at": fell_at}
