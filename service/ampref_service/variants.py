"""Variants of a clip, each a clip of its own: mirrored, warped, turned or looped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.augment import Augmentation, Seam, make_variant
from amp_core.errors import Conflict, MotionRefused
from amp_core.formats import read_motion
from amp_core.motion import check_motion
from amp_core.recipe import Recipe
from ampref_service.catalog import clips
from ampref_service.catalog.records import Clip, JobTerms, Submission
from ampref_service.recipes import recipe_row
from ampref_service.services import Services
from ampref_service.uploads import new_clip, reserve_memory, upload_limits


@dataclass(frozen=True)
class Variant(Submission):
    """A variant of a clip: the text of its augmentation, the seam of a loop, and the clip and job that came of it."""

    augmentation: str
    seam: Seam | None


def augment_clip(
    services: Services,
    clip_id: str,
    augmentations: Sequence[Augmentation],
    recipe: Recipe,
    terms: JobTerms,
    *,
    tags: tuple[str, ...] = (),
    actor: str,
) -> tuple[Clip, list[Variant]]:
    """Make variants of a clip, each a clip of its own, and queue their rollouts: all of them, or none.

    Raises:
      NotFound: there is no such clip, or its robot is not installed.
      Conflict: the robot's model is another than the clip was uploaded for.
      InputRefused: the robot has no symmetry to mirror; the clip cannot be looped, or its variant is over a limit.
    """
    with services.catalog.session() as session:
        parent = clips.get(session, clip_id)
    robot = services.robot(parent.robot)
    if robot.digest != parent.robot_digest:
        raise Conflict(
            f"the model of the robot {parent.robot!r} has changed since this clip was uploaded",
            expected=parent.robot_digest,
            remedy="Upload the motion again, and augment that clip",
        )
    settings, limits = services.settings, upload_limits(services.settings)
    all_tags = clips.check_tags((*parent.tags, *tags))
    with reserve_memory(parent.size):
        with services.blobs.open(parent.blob_digest) as file:
            data = file.read()
        options: dict[str, Any] = dict(parent.read_options)
        source = read_motion(data, name=parent.name, format=parent.source_format, limits=limits, **options)
        del data
        variants = []
        for augmentation in augmentations:
            variant = make_variant(source, robot, augmentation)
            if len(variant.data) > settings.max_upload_bytes:
                raise MotionRefused(
                    f"the variant {augmentation.text} has {len(variant.data):,} bytes",
                    key="augmentations",
                    expected=f"at most {settings.max_upload_bytes:,}",
                    remedy="Loop it fewer times",
                )
            # As an upload would be: a variant that is too long or leaves what the robot can do is refused here.
            check_motion(variant.motion, robot, limits)
            variants.append(variant)
        children = [
            new_clip(
                variant.motion,
                robot,
                name=variant.motion.name,
                size=len(variant.data),
                blob_digest=services.blobs.put_bytes(variant.data),
                tags=all_tags,
                parent_id=clip_id,
            )
            for variant in variants
        ]
    with services.catalog.begin() as session:
        # Read again within the transaction: a parent that was deleted in the meantime is no parent.
        parent = clips.get(session, clip_id)
        row = recipe_row(recipe)
        submissions = [clips.submit(session, child, row, terms=terms, actor=actor) for child in children]
    return parent, [
        Variant(**vars(submission), augmentation=variant.augmentation.text, seam=variant.seam)
        for variant, submission in zip(variants, submissions, strict=True)
    ]
