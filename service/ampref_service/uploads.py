"""Accepting a clip: read it in full, check it, store it, and only then promise anything.

The order is what makes the promise hold: bytes on disk and synced, then clip and job in one commit, then the doorbell, then the
answer. A crash before the commit leaves a blob that garbage collection removes; after it, the job is found by the sweeper.
"""

from __future__ import annotations

import contextlib
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import structlog

from amp_core import augment
from amp_core.augment import Augmentation, Seam
from amp_core.errors import Conflict, MotionRefused, TooLarge
from amp_core.formats import Limits, clean_name, read_motion
from amp_core.motion import check_motion
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog, clips
from ampref_service.catalog.records import NewClip, RecipeRow, Submission
from ampref_service.settings import MIB, Settings

log = structlog.get_logger("ampref_service.uploads")

_LARGE_BYTES = 4 * 1024 * 1024
# A large file is taken from the disk, where the form's parser has put it, while no other large file is: reading takes several
# times its size, and memory is the service's.
_one_large_file = threading.Lock()

_MAX_LABEL_BYTES = 120
_FORMATS = {".pkl": "pkl", ".pickle": "pkl", ".npz": "npz", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Upload:
    """A motion file as it came, and how it is to be read.

    Args:
      file: the bytes, not read yet.
      size: how many they are.
      filename: what the client calls the file; used for the clip's name and format where those are not given, never as a path.
      name: the clip's name, None for the file name's stem.
      format: None for the file name's ending.
      fps, quat_order: for formats that do not say it themselves.
    """

    file: BinaryIO
    size: int
    filename: str
    name: str | None = None
    format: str | None = None
    fps: float | None = None
    quat_order: str | None = None
    tags: tuple[str, ...] = ()


def limits(settings: Settings) -> Limits:
    """What a motion may cost, as the operator set it."""
    return Limits(max_bytes=settings.max_upload_bytes, max_duration_sec=settings.max_duration_sec, max_fps=settings.max_fps)


def accept_clip(
    catalog: Catalog, blobs: BlobStore, settings: Settings, robot: Robot, upload: Upload, recipe: Recipe, *, actor: str
) -> Submission:
    """Check and store `upload`, and queue its rollout under `recipe`; all of it is durable when this returns.

    Raises:
      MotionRefused: the file cannot be used; nothing was stored.
      TooLarge: it is over the limit; nothing was stored.
    """
    if upload.size > settings.max_upload_bytes:
        raise TooLarge(
            f"the file has {upload.size:,} bytes",
            file=file_label(upload.filename),
            expected=f"at most {settings.max_upload_bytes / MIB:.6g} MiB ({settings.max_upload_bytes:,} bytes)",
            remedy="Cut the motion into shorter clips, or ask the operator to raise AMPREF_MAX_UPLOAD_BYTES",
        )
    with _room_for(upload.size):
        data = upload.file.read()
        new = _read(settings, robot, upload, data)
        stored = blobs.put_bytes(data)
        assert stored == new.blob_digest
        del data
    with catalog.begin() as session:
        return clips.submit(session, new, recipe_row(recipe), max_attempts=settings.max_attempts, actor=actor)


def _read(settings: Settings, robot: Robot, upload: Upload, data: bytes) -> NewClip:
    label = file_label(upload.filename)
    suffix = PurePosixPath(label).suffix.lower()
    name = clean_name(upload.name or (label.removesuffix(PurePosixPath(label).suffix) if suffix in _FORMATS else label))
    options: dict[str, Any] = {"fps": upload.fps, "quat_order": upload.quat_order}
    given = {key: value for key, value in options.items() if value is not None}
    # The label, not the clip's name: errors name the file that somebody has to mend.
    motion = read_motion(data, name=label, format=upload.format or _FORMATS.get(suffix), limits=limits(settings), **given)
    check_motion(motion, robot, limits(settings))
    return NewClip(
        name=name,
        robot=robot.name,
        robot_digest=robot.digest,
        source_digest=motion.source_digest,
        source_format=motion.source_format,
        blob_digest=motion.source_digest,
        size=len(data),
        frames_in=motion.num_frames,
        fps_in=motion.fps,
        duration_sec=motion.duration_sec,
        read_options=given,
        tags=upload.tags,
        lineage=motion.lineage,
    )


@dataclass(frozen=True)
class Variant:
    """A variant that was asked for: what it is, the loop's seam if there is one, and what became of it."""

    augmentation: Augmentation
    seam: Seam | None
    made: Submission


def augment_clip(
    catalog: Catalog,
    blobs: BlobStore,
    settings: Settings,
    robots: Callable[[str], Robot],
    clip_id: str,
    wanted: Sequence[Augmentation],
    recipe: Recipe,
    *,
    tags: tuple[str, ...] = (),
    actor: str,
) -> list[Variant]:
    """Make variants of a clip, each a clip of its own, and queue their rollouts. All of them, or none.

    Raises:
      NotFound: there is no such clip, or its robot is not installed.
      Conflict: the robot's model is another than the clip was uploaded for.
      InputRefused: the robot has no symmetry to mirror; the clip cannot be looped, or its variant is over a limit.
    """
    with catalog.session() as session:
        clip = clips.get(session, clip_id)
    robot = robots(clip.robot)
    if robot.digest != clip.robot_digest:
        raise Conflict(
            f"the model of the robot {clip.robot!r} has changed since this clip was uploaded",
            expected=clip.robot_digest,
            remedy="Upload the motion again, and augment that clip",
        )
    bounds = limits(settings)
    inherited = clips.check_tags((*clip.tags, *tags))
    made: list[tuple[augment.Variant, NewClip]] = []
    with _room_for(clip.size):
        with blobs.open(clip.blob_digest) as stream:
            data = stream.read()
        options: dict[str, Any] = dict(clip.read_options)
        source = read_motion(data, name=clip.name, format=clip.source_format, limits=bounds, **options)
        del data
        for augmentation in wanted:
            variant = augment.make_variant(source, robot, augmentation)
            if len(variant.data) > settings.max_upload_bytes:
                raise MotionRefused(
                    f"the variant {augmentation.text} has {len(variant.data):,} bytes",
                    key="augmentations",
                    expected=f"at most {settings.max_upload_bytes:,}",
                    remedy="Loop it fewer times",
                )
            # As an upload would be: a variant that is too long or leaves what the robot can do is refused here.
            check_motion(variant.motion, robot, bounds)
            made.append((variant, _variant(variant, robot, clip.id, inherited)))
        for variant, new in made:
            stored = blobs.put_bytes(variant.data)
            assert stored == new.blob_digest
    with catalog.begin() as session:
        # Looked at again within the transaction: a parent that was deleted meanwhile is no parent.
        clips.get(session, clip.id)
        row = recipe_row(recipe)
        return [
            Variant(
                variant.augmentation,
                variant.seam,
                clips.submit(session, new, row, max_attempts=settings.max_attempts, actor=actor),
            )
            for variant, new in made
        ]


def _variant(variant: augment.Variant, robot: Robot, parent: str, tags: tuple[str, ...]) -> NewClip:
    motion = variant.motion
    return NewClip(
        name=motion.name,
        robot=robot.name,
        robot_digest=robot.digest,
        source_digest=motion.source_digest,
        source_format=motion.source_format,
        blob_digest=motion.source_digest,
        size=len(variant.data),
        frames_in=motion.num_frames,
        fps_in=motion.fps,
        duration_sec=motion.duration_sec,
        tags=tags,
        parent_id=parent,
        lineage=motion.lineage,
    )


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    with _one_large_file if size > _LARGE_BYTES else contextlib.nullcontext():
        yield


def recipe_row(recipe: Recipe) -> RecipeRow:
    """A recipe as the catalog keeps it."""
    return RecipeRow(recipe.digest, recipe.mode, recipe.to_dict())


def file_label(filename: str) -> str:
    """What errors and clips may call a file whose name is not trusted: its last part, without what no name may hold."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(char for char in last if not unicodedata.category(char).startswith("C")).strip().lstrip(".").strip()
    if len(kept.encode()) <= _MAX_LABEL_BYTES:
        return kept or "clip"
    stem, suffix = kept.encode()[:_MAX_LABEL_BYTES].decode(errors="ignore"), PurePosixPath(kept).suffix.lower()
    return stem.strip() + (suffix if suffix in _FORMATS else "")


def ring(notify: Callable[[str], None], job_id: str) -> None:
    """Wake a worker for a job that was committed. A bell that is broken changes nothing: the sweeper rings again."""
    try:
        notify(job_id)
    except Exception as error:
        log.warning("notify_failed", job=job_id, error=f"{type(error).__name__}: {error}")
