"""`ampref augment`: variants of clips, as files or on a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet, number
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import check_mode
from amp_core.cli.remote import Url, connect
from amp_core.errors import AmprefError, InputRefused
from amp_core.files import write_file

if TYPE_CHECKING:
    from amp_core.augment import Augmentation


def augment(
    motions: Annotated[
        list[Path] | None, typer.Argument(metavar="MOTION", help="Motion files: .pkl, .npz, .json or .csv.")
    ] = None,
    clip: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A clip of a service instead of files, by id or name; repeatable.")
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Left and right change places.")] = False,
    warp: Annotated[
        list[float] | None, typer.Option(help="Another tempo, 0.9 (slower) to 1.1 (faster); may be repeated.")
    ] = None,
    heading: Annotated[
        list[float] | None, typer.Option(help="Turned by so many degrees, counter-clockwise; may be repeated.")
    ] = None,
    loop: Annotated[list[int] | None, typer.Option(help="The best cycle so many times in all; may be repeated.")] = None,
    apply: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Several at once, such as mirror+warp=0.9; may be repeated.")
    ] = None,
    robot: Annotated[str, typer.Option(help="For files: a bundled robot's name, or a path to a robot.yaml.")] = "wildrobot",
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For files: write NAME+AUGMENTATION.npz into this folder.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="For clips: the mode to score the variants in.")] = None,
    seed: Annotated[int | None, typer.Option(help="For clips: the recipe's seed.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="For clips: a tag besides those of the parent.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, for .csv files and others that do not hold it.")] = None,
    quat_order: Annotated[str | None, typer.Option(help="Quaternion order, wxyz or xyzw; must be given for .csv.")] = None,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make variants of clips for coverage: each option makes one variant of each clip, --apply combines.

    Exits with 1 when a variant could not be made; the others are made nevertheless. On a service the variants of one
    clip are made all or not at all.
    """
    if bool(motions) == bool(clip):
        raise typer.BadParameter("give motion files, or --clip ID", param_hint="MOTION")
    if motions and out_dir is None:
        raise typer.BadParameter("say which folder to write to", param_hint="--out")
    if quat_order not in (None, "wxyz", "xyzw"):
        raise typer.BadParameter("choose wxyz or xyzw", param_hint="--quat-order")
    check_mode(mode)
    wanted = _wanted(mirror, warp or [], heading or [], loop or [], apply or [])
    out = Output(as_json=as_json, quiet=quiet)
    if motions and out_dir is not None:
        made, failed = _files(motions, wanted, robot, out_dir, fps, quat_order, out)
    else:
        made, failed = _clips(clip or [], wanted, mode, seed, tag or [], url, out)
    out.document(made)
    out.values(item.get("file") or item["clip"]["id"] for item in made)
    rows = [
        (
            item["name"],
            item["augmentation"],
            number(item["duration_sec"]),
            None if item["seam"] is None else number(item["seam"]["residual"]),
            item.get("file") or item["clip"]["id"],
        )
        for item in made
    ]
    if rows:
        out.table(("Variant", "Augmentation", ">s", ">seam", "File" if motions else "Clip"), rows)
        out.say(f"\nnext: ampref score {out_dir}/*.npz" if motions else "\nnext: ampref jobs, then ampref clips")
    if failed:
        raise typer.Exit(1)


def _wanted(
    mirror: bool, warp: list[float], heading: list[float], loop: list[int], apply: list[str]
) -> tuple[Augmentation, ...]:
    from amp_core.augment import Augmentation

    try:
        found = [Augmentation(mirror=True)] if mirror else []
        found += [Augmentation(time_warp=value) for value in warp]
        found += [Augmentation(heading=value) for value in heading]
        found += [Augmentation(loop=value) for value in loop]
        found += [Augmentation.parse(text) for text in apply]
    except InputRefused as error:
        option = error.key if error.key in ("warp", "heading", "loop") else "apply"
        raise typer.BadParameter(str(error), param_hint=f"--{option}") from error
    if not found:
        raise typer.BadParameter("give at least one of --mirror, --warp, --heading, --loop, --apply", param_hint="--mirror")
    return tuple(dict.fromkeys(found))


def _files(
    motions: list[Path],
    wanted: tuple[Augmentation, ...],
    robot: str,
    folder: Path,
    fps: float | None,
    quat_order: str | None,
    out: Output,
) -> tuple[list[dict[str, Any]], int]:
    from amp_core.augment import make_variant
    from amp_core.formats import read_motion
    from amp_core.motion import check_motion
    from amp_core.robot import Robot

    the_robot = Robot.load(robot)
    folder.mkdir(parents=True, exist_ok=True)
    options = reading_options(motions, fps, quat_order, out)
    made: list[dict[str, Any]] = []
    failed = 0
    written: dict[Path, Path] = {}
    for path in motions:
        try:
            motion = read_motion(path, name=path.stem, **options(path))
            check_motion(motion, the_robot)
        except AmprefError as error:
            error.file = str(path)
            out.error(error)
            failed += 1
            continue
        for augmentation in wanted:
            try:
                variant = make_variant(motion, the_robot, augmentation)
                check_motion(variant.motion, the_robot)
                target = folder / f"{variant.motion.name}.npz"
                if target in written:
                    raise InputRefused(
                        f"{target} was written for {written[target]} already",
                        remedy="Rename one of the two, or give another folder",
                    )
            except AmprefError as error:
                error.file = str(path)
                out.error(error)
                failed += 1
                continue
            write_file(target, variant.data, durable=True)
            written[target] = path
            lineage = variant.motion.lineage
            made.append(
                {
                    "name": variant.motion.name,
                    "file": str(target),
                    "source_digest": variant.motion.source_digest,
                    "parent": motion.source_digest,
                    "lineage": lineage.ancestor if lineage else None,
                    "augmentation": augmentation.text,
                    "frames": variant.motion.num_frames,
                    "duration_sec": variant.motion.duration_sec,
                    "seam": None if variant.seam is None else variant.seam.to_dict(),
                }
            )
    return made, failed


def _clips(
    ids: list[str],
    wanted: tuple[Augmentation, ...],
    mode: str | None,
    seed: int | None,
    tags: list[str],
    url: str | None,
    out: Output,
) -> tuple[list[dict[str, Any]], int]:
    from amp_core.cli.clips import _find

    made: list[dict[str, Any]] = []
    failed = 0
    with connect(url, out) as api:
        for one in ids:
            try:
                answer = api.augment_clip(_find(api, one), [each.text for each in wanted], mode=mode, seed=seed, tags=tags)
            except AmprefError as error:
                if error.slug == "unavailable":
                    raise
                out.error(error)
                failed += 1
                continue
            for variant in answer["variants"]:
                made.append(variant | {key: variant["clip"][key] for key in ("name", "duration_sec")})
    return made, failed
