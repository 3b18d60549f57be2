"""What changed between two versions of a dataset, clip by clip; one that is held in several physics counts in each."""

from __future__ import annotations

from dataclasses import dataclass

from ampref_service.catalog import Session, datasets
from ampref_service.catalog.records import Version, VersionMember

_PAGE = 2000


@dataclass(frozen=True)
class Taken:
    """What a version takes of one clip in one bucket of physics: its rollout and the frame ranges (half-open) of it."""

    clip_id: str
    name: str
    bucket: str
    rollout_id: str
    tiers: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def frames(self) -> int:
        """How many frames that is."""
        return sum(end - start for start, end in self.ranges)


@dataclass(frozen=True)
class Changed:
    """A clip that both versions hold, with another rollout or other frames."""

    before: Taken
    after: Taken


@dataclass(frozen=True)
class Diff:
    """From one version to another; clips by name."""

    added: tuple[Taken, ...]
    removed: tuple[Taken, ...]
    changed: tuple[Changed, ...]
    unchanged: int


def between(session: Session, before: Version, after: Version) -> Diff:
    """What it takes to get from `before` to `after`. Equal `dataset_hash`es mean equal features, whatever this says."""
    old, new = _taken(session, before), _taken(session, after)
    both = old.keys() & new.keys()
    changed = [Changed(old[clip], new[clip]) for clip in both if old[clip] != new[clip]]
    return Diff(
        added=tuple(sorted((new[clip] for clip in new.keys() - both), key=_by_name)),
        removed=tuple(sorted((old[clip] for clip in old.keys() - both), key=_by_name)),
        changed=tuple(sorted(changed, key=lambda change: _by_name(change.after))),
        unchanged=len(both) - len(changed),
    )


def _by_name(taken: Taken) -> tuple[str, str, str]:
    return taken.name, taken.clip_id, taken.bucket


def _taken(session: Session, version: Version) -> dict[tuple[str, str], Taken]:
    buckets = datasets.get_bucket_names(session, version.id)
    by_clip: dict[tuple[str, str], list[VersionMember]] = {}
    after = -1
    while page := datasets.list_members(session, version.id, after=after, limit=_PAGE):
        for member in page:
            by_clip.setdefault((member.clip_id, buckets[member.rollout_id]), []).append(member)
        after = page[-1].position
    return {
        (clip_id, bucket): Taken(
            clip_id,
            members[0].name,
            bucket,
            members[0].rollout_id,
            tuple(sorted({member.tier for member in members})),
            tuple(sorted((member.start, member.end) for member in members)),
        )
        for (clip_id, bucket), members in by_clip.items()
    }
