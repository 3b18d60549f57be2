"""What changed between two versions of a dataset, clip by clip; a clip that is in several buckets of physics counts in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ampref_service.catalog import Session
from ampref_service.catalog.members import count_shares, get_bucket_names, list_differing_clips, list_members_of
from ampref_service.catalog.records import Version, VersionMember


@dataclass(frozen=True, order=True)
class Share:
    """What a version takes of one clip in one bucket of physics: its rollout and the frame ranges (half-open) of it."""

    name: str
    clip_id: str
    bucket: str
    rollout_id: str
    tiers: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def frames(self) -> int:
        """How many frames that is."""
        return sum(end - start for start, end in self.ranges)


@dataclass(frozen=True)
class Diff:
    """From one version to another; shares by the clip's name, those that changed as the old and the new one."""

    added: list[Share]
    removed: list[Share]
    changed: list[tuple[Share, Share]]
    unchanged: int


def compare_versions(session: Session, old: Version, new: Version) -> Diff:
    """The difference from `old` to `new`. Equal `dataset_hash`es mean equal features, whatever this says.

    What is the same in both is only counted: two versions of 100,000 clips may differ in a few.
    """
    clip_ids = list_differing_clips(session, old.id, new.id)
    old_shares, new_shares = _read_shares(session, old, clip_ids), _read_shares(session, new, clip_ids)
    common = old_shares.keys() & new_shares.keys()
    pairs = [(old_shares[key], new_shares[key]) for key in common if old_shares[key] != new_shares[key]]
    return Diff(
        added=sorted(new_shares[key] for key in new_shares.keys() - common),
        removed=sorted(old_shares[key] for key in old_shares.keys() - common),
        changed=sorted(pairs, key=lambda pair: pair[1]),
        unchanged=count_shares(session, old.id) - len(old_shares) + len(common) - len(pairs),
    )


def _read_shares(session: Session, version: Version, clip_ids: Sequence[str]) -> dict[tuple[str, str], Share]:
    """By clip and bucket."""
    rows = list_members_of(session, version.id, clip_ids)
    buckets = get_bucket_names(session, (row.rollout_id for row in rows))
    members: dict[tuple[str, str], list[VersionMember]] = defaultdict(list)
    for member in rows:
        # A rollout that an archived version held may have been purged, and with it the bucket.
        members[member.clip_id, buckets.get(member.rollout_id, "purged")].append(member)
    return {
        (clip_id, bucket): Share(
            name=segments[0].name,
            clip_id=clip_id,
            bucket=bucket,
            rollout_id=segments[0].rollout_id,
            tiers=tuple(sorted({segment.tier for segment in segments})),
            ranges=tuple(sorted((segment.start, segment.end) for segment in segments)),
        )
        for (clip_id, bucket), segments in members.items()
    }
