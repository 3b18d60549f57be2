"""What a rollout was generated from: its recipe, which plan was kept, and the clip's bytes with what reading them needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from ampref_service.catalog.engine import Session
from ampref_service.catalog.records import VersionFile
from ampref_service.catalog.tables import clips, recipes, rollouts, version_files

__all__ = ["VERIFICATION", "RolloutSource", "get_sources", "get_verification", "verification_name"]

_AT_ONCE = 500

VERIFICATION = "verification_v"
"""How the name of a version's verification report begins. It is kept with the version's files and is none of the three."""


def verification_name(version: str) -> str:
    """The name of a version's verification report."""
    return f"{VERIFICATION}{version}.json"


@dataclass(frozen=True)
class RolloutSource:
    """What a rollout was generated from.

    Args:
      recipe: as JSON has it.
      attempt: of a planned rollout, which plan was kept; else 0.
      blob_digest: where the clip's bytes are.
      source_format, read_options: how they are read.
    """

    recipe: Mapping[str, Any]
    attempt: int
    blob_digest: str
    source_format: str
    read_options: Mapping[str, Any]


def get_sources(session: Session, rollout_ids: Iterable[str]) -> dict[str, RolloutSource]:
    """Of each of these rollouts what it was generated from, by its id."""
    asked, found = list(rollout_ids), {}
    columns = (
        rollouts.c.id,
        rollouts.c.result["provenance"].label("provenance"),
        recipes.c.recipe,
        clips.c.blob_digest,
        clips.c.source_format,
        clips.c.read_options,
    )
    query = (
        select(*columns)
        .join(clips, clips.c.id == rollouts.c.clip_id)
        .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
    )
    for begin in range(0, len(asked), _AT_ONCE):
        for row in session.execute(query.where(rollouts.c.id.in_(asked[begin : begin + _AT_ONCE]))):
            found[row.id] = RolloutSource(
                recipe=row.recipe,
                attempt=int((row.provenance or {}).get("attempt") or 0),
                blob_digest=row.blob_digest,
                source_format=row.source_format,
                read_options=row.read_options,
            )
    return found


def get_verification(session: Session, version_id: str) -> VersionFile | None:
    """The verification report of a version; None for one that was locked before there were any."""
    query = select(version_files).where(
        version_files.c.version_id == version_id, version_files.c.name.startswith(VERIFICATION, autoescape=True)
    )
    row = session.execute(query.limit(1)).mappings().one_or_none()
    return None if row is None else VersionFile(row["name"], row["digest"], row["size"], row["media_type"])
