"""`ampref cut`: parts of motions as clips of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from amp_core.augment.cutting import DIGITS, LEAST_SEC, Part, cut_motion, split_evenly
from amp_core.cli.options import MAX_SECONDS, Fps, Json, MotionFiles, QuatOrder, Quiet
from amp_core.cli.output import Cell, Output
from amp_core.cli.reading import limits_of, reading_options
from amp_core.cli.targets import refuse_unwritable
from amp_core.cli.text import number
from amp_core.commands import quote_path
from amp_core.errors import InputRefused, MotionRefused
from amp_core.files import write_file
from amp_core.formats import read_motion

_FRAMES = re.compile(r"(\d{0,9}):(\d{0,9})")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?s?")


@dataclass(frozen=True)
class FrameRange:
    """The frames `start ≤ k < stop` of a clip; to the end where `stop` is None."""

    start: int
    stop: int | None


def parse_frames(text: str) -> FrameRange:
    """`A:B`, the frames A to B − 1; without A from the first, without B to the last."""
    match = _FRAMES.fullmatch(text.strip())
    if match is None or match[0] == ":":
        raise BadParameter(f"{text!r} is no range of frames; write A:B, such as 120:480, 120: or :480")
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop < start + 2:
        raise BadParameter(f"{text!r} has fewer than 2 frames; B itself is left out")
    return FrameRange(start, stop)


def parse_seconds(text: str) -> float:
    """`20s` or `20`, seconds."""
    match = _SECONDS.fullmatch(text.strip())
    if match is None or float(match[1]) < LEAST_SEC:
        raise BadParameter(f"{text!r} is no length of at least {LEAST_SEC:g} s; write seconds, such as 20s")
    return float(match[1])


def cut(
    motions: MotionFiles,
    frames: Annotated[
        list[FrameRange] | None, Option(metavar="A:B", parser=parse_frames, help="The frames A to B − 1, from 0; repeatable.")
    ] = None,
    length: Annotated[
        float | None, Option("--every", metavar="SECONDS", parser=parse_seconds, help="Parts of this length, such as 20s.")
    ] = None,
    out_dir: Annotated[
        Path | None, Option("--out", metavar="DIR", help="Write NAME_FIRST-LAST.npz into this folder; default: the clip's own.")
    ] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write parts of motions as clips of their own: some frames, or a long clip in parts.

    A part keeps the digest of the clip that it comes from. Clips of minutes are cut with --every; what is left over is a part
    too, if it lasts a second. Only the frames that are kept are checked, so that a damaged or padded end can be cut off.
    Exits with 1 when a file was refused.
    """
    if bool(frames) == (length is not None):
        raise BadParameter("give either --frames A:B or --every SECONDS", param_hint="--frames")
    out = Output(json_out, quiet=quiet)
    options = reading_options(motions, fps, quat_order, out, limits_of(MAX_SECONDS))
    documents: list[dict[str, Any]] = []
    sources: dict[Path, Path] = {}
    with out.progress("cutting", total=len(motions)) as progress:
        for index, path in enumerate(motions):
            with out.refusing(path):
                for part in _cut_file(path, frames or [], length, options(path)):
                    target = (out_dir or path.parent) / f"{part.motion.name}.npz"
                    if target in sources:
                        raise InputRefused(
                            f"{target} was written for {sources[target]} already",
                            remedy="Rename one of the two, or give another folder",
                        )
                    with refuse_unwritable(target):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        write_file(target, part.data, durable=True)
                    sources[target] = path
                    documents.append({"file": str(target), "source": str(path), **part.to_dict()})
            progress.update(index + 1)
    out.print_result(documents, (document["file"] for document in documents))
    if documents:
        columns: dict[str, Cell] = {
            "Part": "name",
            ">frames": lambda document: f"{document['frames'][0]}–{document['frames'][1]}",
            ">s": lambda document: number(document["duration_sec"]),
            "File": "file",
        }
        out.print_table(columns, documents)
        folders = dict.fromkeys(quote_path(Path(document["file"]).parent) for document in documents)
        out.print(f"\nnext: ampref check {' '.join(f'{folder}/*.npz' for folder in folders)}")
    out.exit()


def _cut_file(path: Path, ranges: Sequence[FrameRange], length: float | None, options: dict[str, Any]) -> list[Part]:
    if length is None:
        # Each part is read for itself: what is outside of it may be damaged.
        return [cut_motion(read_motion(path, frames=(part.start, part.stop), **options), part.start) for part in ranges]
    clip = read_motion(path, **options)
    parts = split_evenly(clip.num_frames, clip.fps, length)
    if len(parts) < 2:
        raise MotionRefused(
            f"the clip lasts {clip.duration_sec:.1f} s, which is one part",
            key="root_pos",
            expected=f"a clip that is longer than {length:g} s",
            remedy="Use it as it is, or give --every a shorter length",
        )
    digits = max(DIGITS, len(str(clip.num_frames - 1)))
    return [cut_motion(clip, start, stop, digits=digits) for start, stop in parts]
