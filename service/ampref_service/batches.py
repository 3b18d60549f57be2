"""Accepting many clips in one request: each is read, stored and answered by itself, whatever the others are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, BinaryIO

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

log = structlog.get_logger("ampref_service.batches")

GROUP_SIZE = 16
"""Clips that are committed together: few enough that nobody waits long for the catalog, many enough to be quick."""

_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Batch:
    """Motion files and what to do with all of them.

    Args:
      archive: holds the bytes of the members.
      template: an upload with what is the same for all of them (format, fps, quat_order, tags); its file is not read.
    """

    archive: BinaryIO
    members: Sequence[ArchiveMember]
    robot: Robot
    recipe: Recipe
    terms: JobTerms
    template: Upload
    actor: str


Outcome = Submission | AmprefError
"""What became of a member."""


async def store_batch(services: Services, batch: Batch) -> AsyncIterator[tuple[ArchiveMember, Outcome]]:
    """Each member with what became of it, in order, once that is durable. While a group is stored, the next is being read."""
    groups = [batch.members[start : start + GROUP_SIZE] for start in range(0, len(batch.members), GROUP_SIZE)]
    following: list[_Reading] = []
    try:
        for index, group in enumerate(groups):
            readings = following or await _run(services, _start_readings, services, batch, group)
            facts = [await reading.wait() for reading in readings]
            following = []
            if index + 1 < len(groups):
                following = await _run(services, _start_readings, services, batch, groups[index + 1])
            outcomes = await _run(services, _store_group, services, batch, readings, facts)
            for outcome in zip(group, outcomes, strict=True):
                yield outcome
    finally:
        for reading in following:
            reading.cancel()


async def _run(services: Services, function: Any, *arguments: Any) -> Any:
    return await to_thread.run_sync(function, *arguments, limiter=services.spool.threads)


@dataclass(frozen=True)
class _Reading:
    """A member that a reader was given, or the reason why it was not."""

    upload: Upload | None
    future: Future[dict[str, Any]] | None
    error: AmprefError | None = None

    async def wait(self) -> dict[str, Any] | AmprefError:
        """The facts that the reader found, or why there are none."""
        if self.future is None:
            assert self.error is not None
            return self.error
        try:
            return await asyncio.wrap_future(self.future)
        except AmprefError as error:
            return error
        except Exception:
            log.exception("reading_failed")
            return InternalError()

    def cancel(self) -> None:
        if self.future is not None:
            self.future.cancel()
        if self.upload is not None:
            self.upload.file.close()


def _start_readings(services: Services, batch: Batch, group: Sequence[ArchiveMember]) -> list[_Reading]:
    return [_start_reading(services, batch, member) for member in group]


def _start_reading(services: Services, batch: Batch, member: ArchiveMember) -> _Reading:
    try:
        if member.fault is not None:
            raise InputRefused(member.fault, file=member.name, expected="motion files and folders of them")
        upload = dataclasses.replace(
            batch.template, file=_extract(services, batch.archive, member), size=member.size, filename=member.name
        )
    except AmprefError as error:
        return _Reading(None, None, error)
    try:
        return _Reading(upload, start_reading(services, batch.robot, upload))
    except AmprefError as error:
        upload.file.close()
        return _Reading(None, None, error)


def _extract(services: Services, archive: BinaryIO, member: ArchiveMember) -> BinaryIO:
    """A member as a file of its own, which its reader reads."""
    with contextlib.ExitStack() as stack, services.spool.disk_errors():
        file = stack.enter_context(services.spool.open_file())
        for start in range(0, member.size, _COPY_BYTES):
            file.write(os.pread(archive.fileno(), min(_COPY_BYTES, member.size - start), member.offset + start))
        file.flush()
        stack.pop_all()
    return file


def _store_group(
    services: Services, batch: Batch, readings: Sequence[_Reading], facts: Sequence[dict[str, Any] | AmprefError]
) -> list[Outcome]:
    """Store the bytes of a group, then its clips and jobs in one transaction, in which each is undone by itself."""
    prepared = [_prepare(services, batch, *pair) for pair in zip(readings, facts, strict=True)]
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


def _submit(session: Session, batch: Batch, new: NewClip, notes: tuple[str, ...], recipe: RecipeRow) -> Outcome:
    try:
        with session.begin_nested():
            submission = clips.submit(session, new, recipe, terms=batch.terms, actor=batch.actor)
    except AmprefError as error:
        return error
    return dataclasses.replace(submission, notes=notes)


def _prepare(
    services: Services, batch: Batch, reading: _Reading, facts: dict[str, Any] | AmprefError
) -> tuple[NewClip, tuple[str, ...]] | AmprefError:
    """The clip that a member becomes, once its bytes are stored, with what of it was not believed."""
    upload = reading.upload
    if upload is None or isinstance(facts, AmprefError):
        if upload is not None:
            upload.file.close()
        assert isinstance(facts, AmprefError)
        return facts
    with upload.file, contextlib.ExitStack() as stack:
        try:
            check = facts["lineage"] and start_lineage_check(services, batch.robot, facts, stack)
            is_variant = bool(check and check.result())
            return prepare_clip(services, batch.robot, upload, facts, is_variant=is_variant)
        except AmprefError as error:
            return error
