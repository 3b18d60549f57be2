"""Accepting a clip: read all of it, check it, store it, and only then promise anything.

A reader reads and checks it (`ampref_service.readers`). The order is what makes the promise hold: bytes on disk and synced,
then clip and job in one commit, then the doorbell, then the answer. A crash before the commit leaves a blob that garbage
collection removes; after it, the job is found by the sweeper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from amp_core.errors import TooLarge
from amp_core.formats import EXTENSIONS, Limits, clean_name, label_file, name_clip
from amp_core.lineage import LINEAGE_COLUMNS, Lineage
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_service.catalog import clips
from ampref_service.catalog.records import Clip, JobTerms, NewClip, Submission
from ampref_service.recipes import recipe_row
from ampref_service.services import Services
from ampref_service.settings import MIB, Settings

_UNBELIEVED = (
    "the file says that it is a variant, but made again from a clip that is here it does not come out the same: it is kept as "
    "an original. Upload the parent first, or make the variant here: POST /v1/clips/{clip_id}/augment"
)


@dataclass(frozen=True)
class Upload:
    """A motion file as it came, and how it is to be read.

    Args:
      file: an open file with the bytes, not read yet.
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

    @property
    def label(self) -> str:
        """What errors call it."""
        return label_file(self.filename)

    @property
    def read_options(self) -> dict[str, Any]:
        """What its reader is told besides the format."""
        return {key: value for key in ("fps", "quat_order") if (value := getattr(self, key)) is not None}


def upload_limits(settings: Settings) -> Limits:
    """What a motion may cost, as the operator set it."""
    return Limits(max_bytes=settings.max_upload_bytes, max_duration_sec=settings.max_duration_sec, max_fps=settings.max_fps)


def start_reading(services: Services, robot: Robot, upload: Upload, mode: str) -> Future[dict[str, Any]]:
    """Have `upload` read and checked for a recipe's mode; the facts of the clip that it becomes, for `store_clip`.

    Raises:
      TooLarge: it is over the limit.

    The future raises as `ReaderPool.read`.
    """
    limits = upload_limits(services.settings)
    if upload.size > limits.max_bytes:
        raise TooLarge(
            f"the file has {upload.size:,} bytes",
            file=upload.label,
            expected=f"at most {limits.max_bytes / MIB:.6g} MiB ({limits.max_bytes:,} bytes)",
            remedy="Cut the motion into shorter clips, or ask the operator to raise AMPREF_MAX_UPLOAD_BYTES",
        )
    return services.readers.read(
        "read_clip",
        robot,
        limits,
        [upload.file],
        name=upload.label,  # Errors name the uploaded file, not the clip.
        format=upload.format or EXTENSIONS.get(PurePosixPath(upload.label).suffix.lower()),
        options=upload.read_options,
        mode=mode,
    )


def start_lineage_check(services: Services, robot: Robot, facts: Mapping[str, Any], stack: ExitStack) -> Future[bool] | None:
    """Have the variant that a file says it is made again from its parent: whether it is the same; None without that parent.

    Args:
      facts: of the file, from its reader.
      stack: closes the parent's bytes.
    """
    lineage = Lineage(**facts["lineage"])
    with services.catalog.session() as session:
        parent_id = clips.find_by_bytes(session, lineage.parent, robot.name)
        parent = parent_id and clips.get(session, parent_id)
    if not parent or (parent.robot_digest, parent.lineage) != (robot.digest, lineage.ancestor):
        return None
    return services.readers.read(
        "is_variant",
        robot,
        upload_limits(services.settings),
        [stack.enter_context(spool_clip(services, parent))],
        augmentation=lineage.augmentation,
        digest=facts["source_digest"],
        **describe_source(parent),
    )


def spool_clip(services: Services, clip: Clip) -> BinaryIO:
    """The bytes of a clip in a file of the spool. Raises `IntegrityError`."""
    return services.spool.store(services.blobs.iter_verified(clip.blob_digest))


def describe_source(clip: Clip) -> dict[str, Any]:
    """What a reader is told of a clip that variants are made from; its lineage is that of the catalog."""
    lineage = dict(zip(("parent", "ancestor", "augmentation"), (getattr(clip, name) for name in LINEAGE_COLUMNS), strict=True))
    return {
        "name": clip.name,
        "format": clip.source_format,
        "options": dict(clip.read_options),
        "lineage": lineage if clip.parent_digest else None,
    }


def store_clip(
    services: Services,
    robot: Robot,
    upload: Upload,
    facts: Mapping[str, Any],
    recipe: Recipe,
    terms: JobTerms,
    *,
    is_variant: bool,
    actor: str,
) -> Submission:
    """Store an upload that was read, and queue its rollout under `recipe`; all of it is durable when this returns.

    Args:
      is_variant: whether the lineage that the file has is true; a note says of any other that it was not believed.

    Raises:
      MotionRefused: the clip's name cannot be one; nothing was stored.
    """
    new, notes = prepare_clip(services, robot, upload, facts, is_variant=is_variant)
    with services.catalog.begin() as session:
        submission = clips.submit(session, new, recipe_row(recipe), terms=terms, actor=actor)
    return replace(submission, notes=notes)


def prepare_clip(
    services: Services, robot: Robot, upload: Upload, facts: Mapping[str, Any], *, is_variant: bool
) -> tuple[NewClip, tuple[str, ...]]:
    """Store the bytes of an upload that was read; the clip that it becomes, and what of the file was not believed.

    Raises:
      MotionRefused: the clip's name cannot be one; nothing was stored.
    """
    new = new_clip(
        services,
        robot,
        upload.file,
        facts if is_variant else {**facts, "lineage": None},
        name=clean_name(upload.name or name_clip(upload.label)),
        read_options=upload.read_options,
        tags=upload.tags,
    )
    return new, () if is_variant or facts["lineage"] is None else (_UNBELIEVED,)


def new_clip(services: Services, robot: Robot, file: BinaryIO, facts: Mapping[str, Any], **fields: Any) -> NewClip:
    """Store the bytes of a file; the clip that they become.

    Args:
      facts: from its reader.
      fields: what comes neither from the file nor from the robot.
    """
    lineage = facts["lineage"]
    # The file has no name of its own; this one reads it from its beginning.
    digest = services.blobs.put_file(Path(f"/dev/fd/{file.fileno()}"))
    shared = {"robot": robot.name, "robot_digest": robot.digest, "blob_digest": digest}
    return NewClip(**{**facts, **shared, "lineage": lineage and Lineage(**lineage)}, **fields)


def split_tags(fields: Iterable[str]) -> tuple[str, ...]:
    """The tags of form fields, each of which may hold several, separated by commas. Raises `InputRefused`."""
    return clips.check_tags(tag.strip() for field in fields for tag in field.split(",") if tag.strip())
