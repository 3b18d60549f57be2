"""`ampref augment`: variants of clips, as files or on a service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.augment import Augmentation
from amp_core.cli.clips import find_clip
from amp_core.cli.options import Fps, Json, Profile, QuatOrder, Quiet, Url, mode_option, refuse_usage
from amp_core.cli.output import Cell, Output
from amp_core.cli.reading import ReadOptions, read_motions, reading_options
from amp_core.cli.remote import connect
from amp_core.cli.text import number
from amp_core.commands import quote_path, robot_option
from amp_core.errors import AmprefError, InputRefused
from amp_core.files import write_file
from amp_core.motion import check_motion


def augment(
    motions: Annotated[list[Path] | None, Argument(metavar="MOTION", help="Motion files: .pkl, .npz, .json or .csv.")] = None,
    clip: Annotated[
        list[str] | None, Option(metavar="ID", help="A clip of a service instead of files, by id or name; repeatable.")
    ] = None,
    level: Annotated[
        bool, Option("--level", help="What the ground under the feet rises or falls is taken out of the root's height.")
    ] = False,
    mirror: Annotated[bool, Option("--mirror", help="Left and right change places.")] = False,
    warp: Annotated[list[float] | None, Option(help="Another tempo, 0.9 (slower) to 1.1 (faster); may be repeated.")] = None,
    heading: Annotated[
        list[float] | None, Option(help="Turned by so many degrees, counter-clockwise; may be repeated.")
    ] = None,
    loop: Annotated[list[int] | None, Option(help="The best cycle so many times in all; may be repeated.")] = None,
    apply: Annotated[
        list[str] | None, Option(metavar="TEXT", help="Several at once, such as mirror+warp=0.9; may be repeated.")
    ] = None,
    robot: Annotated[str, Option(help="For files: a bundled robot's name, or a path to a robot.yaml.")] = "wildrobot",
    out_dir: Annotated[
        Path | None, Option("--out", metavar="DIR", help="For files: write NAME+AUGMENTATION.npz into this folder.")
    ] = None,
    mode: Annotated[str | None, mode_option(help="For clips: the mode to score the variants in.")] = None,
    seed: Annotated[int | None, Option(help="For clips: the recipe's seed.")] = None,
    profile: Profile = None,
    tag: Annotated[list[str] | None, Option(help="For clips: a tag besides those of the parent.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make variants of clips for coverage: each option makes one variant of each clip, --apply combines.

    Exits with 1 when a variant could not be made; the others are made nevertheless. On a service the variants of one
    clip are made all or not at all.
    """
    if bool(motions) == bool(clip):
        raise BadParameter("give motion files, or --clip ID", param_hint="MOTION")
    if motions and out_dir is None:
        raise BadParameter("say which folder to write to", param_hint="--out")
    texts = {
        "--level": ["level"] * level,
        "--mirror": ["mirror"] * mirror,
        "--warp": [f"warp={value:.6f}" for value in warp or ()],
        "--heading": [f"heading={value:.6f}" for value in heading or ()],
        "--loop": [f"loop={value}" for value in loop or ()],
        "--apply": apply or [],
    }
    if not any(texts.values()):
        raise BadParameter(f"give at least one of {', '.join(texts)}", param_hint="--mirror")
    augmentations: dict[Augmentation, None] = {}
    for option in texts:
        with refuse_usage(option):
            augmentations |= dict.fromkeys(map(Augmentation.parse, texts[option]))
    out = Output(json_out, quiet=quiet)
    if motions and out_dir is not None:
        options = reading_options(motions, fps, quat_order, out)
        variants = _augment_files(out, motions, options, augmentations, robot, out_dir)
    else:
        variants, recipe = [], {"gate_profile": profile} if profile else None
        with connect(url, out) as api:
            for name in clip or ():
                with out.refusing():
                    canonical = [augmentation.text for augmentation in augmentations]
                    answer = api.augment_clip(
                        find_clip(api, name), canonical, mode=mode, seed=seed, tags=tag or (), recipe=recipe
                    )
                    for variant in answer["variants"]:
                        variants.append(variant | {key: variant["clip"][key] for key in ("name", "duration_sec")})
    ids = [variant.get("file") or variant["clip"]["id"] for variant in variants]
    out.print_result(variants, ids)
    if variants:
        columns: dict[str, Cell] = {
            **{"Variant": "name", "Augmentation": "augmentation", ">s": lambda variant: number(variant["duration_sec"])},
            ">seam": lambda variant: variant["seam"] and number(variant["seam"]["residual"]),
            **({"File": "file"} if motions else {"Clip": lambda variant: variant["clip"]["id"]}),
        }
        out.print_table(columns, variants)
        step = "jobs, then ampref clips" if out_dir is None else f"score {quote_path(out_dir)}/*.npz{robot_option(robot)}"
        out.print(f"\nnext: ampref {step}")
    out.exit()


def _augment_files(
    out: Output,
    paths: Sequence[Path],
    options: ReadOptions,
    augmentations: Iterable[Augmentation],
    robot_name: str,
    folder: Path,
) -> list[dict[str, Any]]:
    from amp_core.augment import make_variant  # noqa: PLC0415 - a clip of the service needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - a clip of the service needs no MuJoCo

    robot = Robot.load(robot_name)
    folder.mkdir(parents=True, exist_ok=True)
    variants: list[dict[str, Any]] = []
    sources: dict[Path, Path] = {}
    for path, motion in zip(paths, read_motions(paths, options, partial(check_motion, robot=robot)), strict=True):
        if isinstance(motion, AmprefError):
            out.refuse(motion)
            continue
        for augmentation in augmentations:
            with out.refusing(path):
                variant = make_variant(motion, robot, augmentation)
                check_motion(variant.motion, robot)
                target = folder / f"{variant.motion.name}.npz"
                if target in sources:
                    raise InputRefused(
                        f"{target} was written for {sources[target]} already",
                        remedy="Rename one of the two, or give another folder",
                    )
                write_file(target, variant.data, durable=True)
                sources[target] = path
                lineage = variant.motion.lineage
                variants.append(
                    {
                        "name": variant.motion.name,
                        "file": str(target),
                        "source_digest": variant.motion.source_digest,
                        "parent": motion.source_digest,
                        "lineage": lineage.ancestor if lineage else None,
                        "augmentation": augmentation.text,
                        "frames": variant.motion.num_frames,
                        "duration_sec": variant.motion.duration_sec,
                        "seam": variant.seam and variant.seam.to_dict(),
                    }
                )
    return variants
