"""Accepting a clip: read all of it, check it, store it, and only then promise anything.

The order is what makes the promise hold: bytes on disk and synced, then clip and job in one commit, then the doorbell, then the
answer. A crash before the commit leaves a blob that garbage collection removes; after it, the job is found by the sweeper.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from amp_core.errors import TooLarge
from amp_core.formats import EXTENSIONS, Limits, Motion, clean_name, label_file, name_clip, read_motion
from amp_core.motion import check_motion
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_service.catalog import clips
from ampref_service.catalog.records import JobTerms, NewClip, Submission
from ampref_service.recipes import recipe_row
from ampref_service.services import Services
from ampref_service.settings import MIB, Settings

_LARGE_BYTES = 4 * MIB

_one_large_file = threading.Lock()


@dataclass(frozen=True)
class Upload:
    """A motion file as it came, and how it is to be read.

    Args:
      file: the bytes, not read yet.
      size: how many they are.
      filename: what the client calls the file; used for the clip's name and format where those are None, never as a path.
      name: the clip's name, None for the file name's stem.
      format: None for the file name's ending.
      fps, quat_order: for formats that do not hold them.
      tags: of the clip.
    """

    file: BinaryIO
    size: int
    filename: str
    name: str | None = None
    format: str | None = None
    fps: float | None = None
    quat_order: str | None = None
    tags: tuple[str, ...] = ()


def upload_limits(settings: Settings) -> Limits:
    """What a motion may cost, as the operator set it."""
    return Limits(max_bytes=settings.max_upload_bytes, max_duration_sec=settings.max_duration_sec, max_fps=settings.max_fps)


def reserve_memory(size: int) -> contextlib.AbstractContextManager[Any]:
    """Hold the memory that reading a file of `size` bytes takes: of large files one is read at a time.

    A large file waits on the disk, where the parser of forms has put it. Reading takes several times its size.
    """
    return _one_large_file if size > _LARGE_BYTES else contextlib.nullcontext()


def accept_clip(services: Services, robot: Robot, upload: Upload, recipe: Recipe, terms: JobTerms, *, actor: str) -> Submission:
    """Check and store `upload`, and queue its rollout under `recipe`; all of it is durable when this returns.

    Raises:
      MotionRefused: the file cannot be used; nothing was stored.
      TooLarge: it is over the limit; nothing was stored.
    """
    settings = services.settings
    label = label_file(upload.filename)
    if upload.size > settings.max_upload_bytes:
        raise TooLarge(
            f"the file has {upload.size:,} bytes",
            file=label,
            expected=f"at most {settings.max_upload_bytes / MIB:.6g} MiB ({settings.max_upload_bytes:,} bytes)",
            remedy="Cut the motion into shorter clips, or ask the operator to raise AMPREF_MAX_UPLOAD_BYTES",
        )
    format_of_name = EXTENSIONS.get(PurePosixPath(label).suffix.lower())
    options: dict[str, Any] = {key: value for key in ("fps", "quat_order") if (value := getattr(upload, key)) is not None}
    limits = upload_limits(settings)
    with reserve_memory(upload.size):
        data = upload.file.read()
        # Errors name the uploaded file, not the clip.
        motion = read_motion(data, name=label, format=upload.format or format_of_name, limits=limits, **options)
        check_motion(motion, robot, limits)
        new = new_clip(
            motion,
            robot,
            name=clean_name(upload.name or name_clip(label)),
            size=len(data),
            blob_digest=services.blobs.put_bytes(data),
            read_options=options,
            tags=upload.tags,
        )
        del data
    with services.catalog.begin() as session:
        return clips.submit(session, new, recipe_row(recipe), terms=terms, actor=actor)


def new_clip(motion: Motion, robot: Robot, *, name: str, size: int, **fields: Any) -> NewClip:
    """The clip that a motion of `size` bytes becomes; `fields` are those that do not come from the motion or the robot."""
    return NewClip(
        name=name,
        robot=robot.name,
        robot_digest=robot.digest,
        source_digest=motion.source_digest,
        source_format=motion.source_format,
        size=size,
        frames_in=motion.num_frames,
        fps_in=motion.fps,
        duration_sec=motion.duration_sec,
        lineage=motion.lineage,
        **fields,
    )


def split_tags(fields: Iterable[str]) -> tuple[str, ...]:
    """The tags of form fields, each of which may hold several, separated by commas. Raises `InputRefused`."""
    return clips.check_tags(tag.strip() for field in fields for tag in field.split(",") if tag.strip())
