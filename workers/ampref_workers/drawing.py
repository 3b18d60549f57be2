"""The child's part of thumbnails: reads exports and draws them. A GL may end this process; nothing else is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from amp_core.errors import AmprefError
from amp_core.files import write_file
from amp_core.progress import Progress
from amp_core.render.pictures import draw_thumbnail
from amp_core.render.takes import read_export
from amp_core.robot import Robot
from ampref_workers.protocol import ThumbnailReport, ThumbnailRequest, thumbnail_name
from ampref_workers.robots import load_robot

__all__ = ["handle"]


def handle(job_dir: Path, request: ThumbnailRequest, progress: Progress) -> ThumbnailReport:
    """Draw each export; one that cannot be drawn costs the others nothing."""
    os.environ["LP_NUM_THREADS"] = "1"  # Of a GL that draws without a card.
    if request.is_idle:
        _become_idle()
    robot = load_robot(request.robot)
    return ThumbnailReport(tuple(_draw_exports(job_dir, request, robot, progress)))


def _become_idle() -> None:
    """Work only where the processor has nothing else to do."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _draw_exports(job_dir: Path, request: ThumbnailRequest, robot: Robot, progress: Progress) -> Iterator[str]:
    for number, path in enumerate(request.exports):
        try:
            picture = draw_thumbnail(read_export(Path(path), robot), lambda: request.platform)
        except AmprefError as error:
            yield str(error)
        else:
            # Written as a whole: where this process ends later, what is there is kept.
            write_file(job_dir / thumbnail_name(number), picture)
            yield ""
        progress((number + 1) / len(request.exports), "drawing")
