"""Variants of a clip, each a clip of its own: mirrored, warped, turned or looped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from amp_core.augment import Augmentation, Seam
from amp_core.errors import Conflict
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_service.catalog import clips
from ampref_service.catalog.records import Clip, JobTerms, Submission
from ampref_service.recipes import recipe_row
from ampref_service.services import Services
from ampref_service.uploads import describe_source, new_clip, spool_clip, upload_limits


@dataclass(frozen=True)
class Variant(Submission):
    """A variant of a clip: the text of its augmentation, the seam of a loop, and the clip and job that came of it."""

    augmentation: str
    seam: Seam | None


@dataclass(frozen=True)
class VariantOrder:
    """Variants that a reader is to make: of which clip, for which robot, and into which files."""

    parent: Clip
    robot: Robot
    augmentations: Sequence[Augmentation]
    files: Sequence[BinaryIO]
    reading: Future[list[dict[str, Any]]]


def find_parent(services: Services, clip_id: str) -> tuple[Clip, Robot]:
    """A clip that variants may be made of, and its robot.

    Raises:
      NotFound: there is no such clip, or its robot is not installed.
      Conflict: the robot's model is another than the clip was uploaded for.
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
    return parent, robot


def order_variants(
    services: Services, parent: Clip, robot: Robot, augmentations: Sequence[Augmentation], stack: ExitStack
) -> VariantOrder:
    """Have a reader make variants of a clip, in files that are closed with `stack`.

    Raises:
      IntegrityError: the clip's bytes are damaged.

    `reading` raises as `ReaderPool.read`, and:
      InputRefused: the robot has no symmetry to mirror; the clip cannot be looped, or its variant is over a limit.
    """
    source = stack.enter_context(spool_clip(services, parent))
    files = [stack.enter_context(services.spool.open_file()) for _ in augmentations]
    reading = services.readers.read(
        "make_variants",
        robot,
        upload_limits(services.settings),
        [source, *files],
        augmentations=list(map(asdict, augmentations)),
        **describe_source(parent),
    )
    return VariantOrder(parent, robot, augmentations, files, reading)


def store_variants(
    services: Services,
    order: VariantOrder,
    results: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    terms: JobTerms,
    *,
    tags: tuple[str, ...] = (),
    actor: str,
) -> tuple[Clip, list[Variant]]:
    """Store variants that were made, each as a clip of its own, and queue their rollouts: all of them, or none."""
    all_tags = clips.check_tags((*order.parent.tags, *tags))
    children = [
        new_clip(services, order.robot, file, result["facts"], name=result["name"], tags=all_tags, parent_id=order.parent.id)
        for file, result in zip(order.files, results, strict=True)
    ]
    with services.catalog.begin() as session:
        # Read again within the transaction: a parent that was deleted in the meantime is no parent.
        parent = clips.get(session, order.parent.id)
        row = recipe_row(recipe)
        submissions = [clips.submit(session, child, row, terms=terms, actor=actor) for child in children]
    return parent, [
        Variant(**vars(submission), augmentation=augmentation.text, seam=result["seam"] and Seam(**result["seam"]))
        for submission, augmentation, result in zip(submissions, order.augmentations, results, strict=True)
    ]
