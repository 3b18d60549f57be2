"""Clips as a service keeps them: an export's archive, the source that was uploaded, and the recipe, as files and plain data."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.errors import IntegrityError
from amp_core.npz import mmap_member
from amp_core.recipe import Recipe
from amp_core.tiers import Tier
from amp_core.verify.subject import Clip

if TYPE_CHECKING:
    from amp_core.formats import Limits, Motion

__all__ = ["StoredArrays", "stored_clip"]


class StoredArrays(Mapping[str, npt.NDArray[Any]]):
    """An export's arrays, each read when it is asked for and kept by nobody.

    So a version of thousands of clips need not fit in memory, and holds no file open, as a mapping of each array would.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            with zipfile.ZipFile(self._path) as archive:
                self._names = [name.removesuffix(".npy") for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile) as error:
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
    limits: Limits | None = None,
) -> Clip:
    """A clip under test from what is stored of it.

    Args:
      tier: of the whole rollout.
      recipe: as JSON has it.
      attempt: of a planned clip, which plan was kept.
      arrays: the export's archive.
      ranges: the frames that a version takes, `(start, end, tier)`; the clip is judged by the worst of these tiers, as windows
        of a Rejected clip may be Tier 0 on their own.
      source: the uploaded bytes, where they are at hand; `source_digest` is theirs.
      reading: further arguments of `read_motion`: `format`, `fps`, `quat_order`.
      limits: of reading.
    """
    worst = Tier.worst([of for _, _, of in ranges] or [tier])
    return Clip(
        name=name,
        tier=worst,
        recipe=Recipe.from_dict(dict(recipe)),
        attempt=attempt,
        load=partial(StoredArrays, arrays),
        ranges=tuple((start, end) for start, end, _ in ranges),
        motion=None if source is None else partial(_motion, Path(source), name, source_digest, dict(reading), limits),
    )


def _motion(source: Path, name: str, digest: str, reading: dict[str, Any], limits: Limits | None) -> Motion:
    from amp_core.formats import Limits, read_motion

    motion = read_motion(source, name=name, limits=limits or Limits(), **reading)
    if motion.source_digest != digest:
        raise IntegrityError(
            "the stored bytes are not the ones that were uploaded", file=name, expected=digest, remedy="Upload the clip again."
        )
    return motion
