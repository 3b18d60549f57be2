"""Clips as a service stores them: an export's archive, the uploaded source, and the recipe, as files and plain data."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.errors import IntegrityError
from amp_core.formats import WIDE_LIMITS, Limits, Motion, read_motion
from amp_core.npz import ARCHIVE_FAULTS, mmap_member
from amp_core.recipe import Recipe
from amp_core.tiers import Tier
from amp_core.verify.subject import Clip

__all__ = ["StoredArrays", "stored_clip"]


class StoredArrays(Mapping[str, npt.NDArray[Any]]):
    """An export's arrays, read from the file at each access and not kept.

    A version of thousands of clips need not fit in memory then, and holds no file open, as a memory map of each array would.

    Raises:
      IntegrityError: the file is not an archive.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            with zipfile.ZipFile(self._path) as archive:
                self._names = [name.removesuffix(".npy") for name in archive.namelist()]
        except ARCHIVE_FAULTS as error:
            raise IntegrityError(
                f"the arrays cannot be read ({error})",
                file=str(path),
                remedy="Score the clip again, or restore the blob store.",
            ) from error

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        array = np.array(mmap_member(self._path, name))
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stored_clip(
    *,
    name: str,
    tier: int,
    recipe: Mapping[str, Any],
    attempt: int,
    arrays: str | Path,
    ranges: Sequence[tuple[int, int, int]],
    source: str | Path | None,
    source_digest: str,
    reading: Mapping[str, Any],
    limits: Limits = WIDE_LIMITS,
    metrics: Mapping[str, float | int | None] | None = None,
) -> Clip:
    """A clip under test from its stored files.

    Args:
      tier: of the whole rollout.
      recipe: as JSON has it.
      attempt: of a planned clip, the number of the plan that was kept.
      arrays: the export's archive.
      ranges: the frames that a version takes, `(start, end, tier)`. The clip gets the worst of these tiers, as windows of a
        Rejected clip may be Tier 0 on their own.
      source: the uploaded bytes, where they are available, with the digest `source_digest`; a motion of other bytes raises an
        IntegrityError when it is read.
      reading: further arguments of `read_motion`: `format`, `fps`, `quat_order`.
      limits: of reading.
      metrics: of the whole rollout, as they were recorded.
    """

    def read_source() -> Motion:
        assert source is not None
        motion = read_motion(Path(source), name=name, limits=limits, **reading)
        if motion.source_digest != source_digest:
            fault, remedy = "the stored bytes are not the ones that were uploaded", "Upload the clip again."
            raise IntegrityError(fault, file=name, expected=source_digest, remedy=remedy)
        return motion

    return Clip(
        name=name,
        tier=Tier.worst([range_tier for _, _, range_tier in ranges] or [tier]),
        recipe=Recipe.from_dict(dict(recipe)),
        attempt=attempt,
        load=partial(StoredArrays, arrays),
        ranges=tuple((start, end) for start, end, _ in ranges),
        motion=None if source is None else read_source,
        metrics=metrics,
    )
