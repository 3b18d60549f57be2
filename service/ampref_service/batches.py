"""Accepting many clips in one request: each is read, stored and answered by itself, whatever the others are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import structlog
from anyio import to_thread

from amp_core.errors import AmprefError, InputRefused
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_service.archives import ArchiveMember
from ampref_service.catalog import Session, clips
from ampref_service.catalog.records import JobTerms, NewClip, RecipeRow, Submission
from ampref_service.errors import InternalError
from ampref_service.recipes import recipe_row
from ampref_service.services import Services
from ampref_service.uploads import Upload, prepare_clip, start_lineage_check, start_reading

T = TypeVar("T")
log = structlog.get_logger("ampref_service.batches")

GROUP_SIZE = 16
"""Clips that are committed together: few enough that nobody waits long for the catalog, many enough to be quick."""

_COPY_BYTES = 1024 * 1024
_FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Batch:
    """Motion files and what to do with all of them.

    Args:
      archive: holds the bytes of the members.
      reading: what an `Upload` has of all of them alike: `format, fps, quat_order, tags`.
    """

    archive: BinaryIO
    members: Sequence[ArchiveMember]
    robot: Robot
    recipe: Recipe
    terms: JobTerms
    reading: Mapping[str, Any]
    actor: str


Outcome = Submission | AmprefError
"""What became of a member."""

_Reading = tuple[Upload, Future[dict[str, Any]]] | AmprefError
"""A member that a reader was given, or why it was not."""


async def store_batch(services: Services, batch: Batch) -> AsyncIterator[tuple[ArchiveMember, Outcome]]:
    """Each member with what became of it, in order, once that is durable. While a group is stored, the next is being read."""

    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        return await to_thread.run_sync(function, services, batch, *arguments, limiter=services.spool.threads)

    groups = [batch.members[start : start + GROUP_SIZE] for start in range(0, len(batch.members), GROUP_SIZE)]
    readings = await in_thread(_start_readings, groups[0]) if groups else []
    try:
        for group, next_group in itertools.zip_longest(groups, groups[1:], fillvalue=()):
            uploads = [await _wait_for_facts(reading) for reading in readings]
            readings = await in_thread(_start_readings, next_group)
            for outcome in zip(group, await in_thread(_store_group, uploads), strict=True):
                yield outcome
    finally:
        for reading in readings:
            if not isinstance(reading, AmprefError):
                upload, future = reading
                future.cancel()
                upload.file.close()


def _start_readings(services: Services, batch: Batch, group: Sequence[ArchiveMember]) -> list[_Reading]:
    return [_start_reading(services, batch, member) for member in group]


def _start_reading(services: Services, batch: Batch, member: ArchiveMember) -> _Reading:
    if member.fault is not None:
        return InputRefused(member.fault, file=member.name, expected="motion files and folders of them")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(services.spool.store(_read_member(services, batch.archive, member)))
            upload = Upload(file, member.size, member.name, **batch.reading)
            future = start_reading(services, batch.robot, upload, batch.recipe.mode)
        except AmprefError as error:
            return error
        stack.pop_all()
    return upload, future


def _read_member(services: Services, archive: BinaryIO, member: ArchiveMember) -> Iterator[bytes]:
    for start in range(0, member.size, _COPY_BYTES):
        with services.spool.disk_errors():
            yield os.pread(archive.fileno(), min(_COPY_BYTES, member.size - start), member.offset + start)


async def _wait_for_facts(reading: _Reading) -> tuple[Upload, dict[str, Any]] | AmprefError:
    """A member with what its reader found, or why there is none; then its file is closed."""
    if isinstance(reading, AmprefError):
        return reading
    upload, future = reading
    try:
        return upload, await asyncio.wrap_future(future)
    except AmprefError as error:
        upload.file.close()
        return error
    except Exception:
        log.exception("reading_failed")
        upload.file.close()
        return InternalError()


def _store_group(
    services: Services, batch: Batch, uploads: Sequence[tuple[Upload, dict[str, Any]] | AmprefError]
) -> list[Outcome]:
    """Store the bytes of a group, then its clips and jobs in one transaction, in which each is undone by itself."""
    # A disk brings several files to rest in the time of one.
    with ThreadPoolExecutor(_FILES_AT_ONCE, "ampref-batch") as pool:
        prepared = list(
            pool.map(lambda item: item if isinstance(item, AmprefError) else _prepare(services, batch, *item), uploads)
        )
    row = recipe_row(batch.recipe)
    try:
        with services.catalog.begin() as session:
            outcomes = [item if isinstance(item, AmprefError) else _submit(session, batch, *item, row) for item in prepared]
    except AmprefError as error:  # The catalog is away: nothing of the group was stored.
        return [item if isinstance(item, AmprefError) else error for item in prepared]
    for outcome in outcomes:
        if isinstance(outcome, Submission) and outcome.new_job and outcome.job is not None:
            services.ring(outcome.job.id)
    return outcomes


def _prepare(
    services: Services, batch: Batch, upload: Upload, facts: dict[str, Any]
) -> tuple[NewClip, tuple[str, ...]] | AmprefError:
    """The clip that a member becomes, once its bytes are stored, with what of it was not believed."""
    with upload.file, contextlib.ExitStack() as stack:
        try:
            check = facts["lineage"] and start_lineage_check(services, batch.robot, facts, stack)
            is_variant = bool(check and check.result())
            return prepare_clip(services, batch.robot, upload, facts, is_variant=is_variant)
        except AmprefError as error:
            return error


def _submit(session: Session, batch: Batch, new: NewClip, notes: tuple[str, ...], recipe: RecipeRow) -> Outcome:
    try:
        with session.begin_nested():
            submission = clips.submit(session, new, recipe, terms=batch.terms, actor=batch.actor)
    except AmprefError as error:
        return error
    return dataclasses.replace(submission, notes=notes)
