"""The lineage of a variant, and the names that its fields have in files and in the catalog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from amp_core.errors import MotionRefused

LINEAGE_MEMBERS = ("ampref_parent", "ampref_ancestor", "ampref_augmentation")
"""The texts of an npz or JSON file that hold a lineage: all of them or none."""

LINEAGE_COLUMNS = ("parent_digest", "ancestor_digest", "augmentation")
"""The columns of a clip in the catalog that hold a lineage; null for an original."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_AUGMENTATION = re.compile(r"[a-z][a-z0-9=.:+-]{0,119}")
_REMEDY = "Make the variant again with ampref augment, or leave the lineage out"


@dataclass(frozen=True)
class Lineage:
    """Where a variant comes from (`amp_core.augment`).

    Args:
      parent: `sha256:…` of the bytes of the clip that it was made from.
      ancestor: of the clip at the root of the family; the parent itself unless that is a variant too.
      augmentation: what was done to the parent, in the canonical text.

    Raises:
      MotionRefused: a digest or text that cannot be one.
    """

    parent: str
    ancestor: str
    augmentation: str

    def __post_init__(self) -> None:
        digest = (_DIGEST, "sha256: and 64 hex digits")
        augmentation = (_AUGMENTATION, "an augmentation such as mirror+warp=0.9")
        for (member, value), (pattern, expected) in zip(self.to_members().items(), (digest, digest, augmentation), strict=True):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise MotionRefused("the lineage cannot be read", key=member, expected=expected, remedy=_REMEDY)

    def to_members(self) -> dict[str, str]:
        """The texts of a file (`LINEAGE_MEMBERS`)."""
        return dict(zip(LINEAGE_MEMBERS, astuple(self), strict=True))

    @classmethod
    def from_members(cls, members: Mapping[str, Any]) -> Lineage | None:
        """The lineage in a file's members; None where it has none.

        Raises:
          MotionRefused: some of the texts are missing, or one cannot be read.
        """
        missing = [key for key in LINEAGE_MEMBERS if key not in members]
        if len(missing) == len(LINEAGE_MEMBERS):
            return None
        if missing:
            raise MotionRefused(
                f"the lineage is not whole: {', '.join(missing)} is missing",
                key=missing[0],
                expected="all of " + ", ".join(LINEAGE_MEMBERS) + ", or none",
                remedy=_REMEDY,
            )
        return cls(*(members[key] for key in LINEAGE_MEMBERS))


def lineage_columns(lineage: Lineage | None) -> dict[str, str | None]:
    """The values of a clip's `LINEAGE_COLUMNS`."""
    return dict.fromkeys(LINEAGE_COLUMNS) if lineage is None else dict(zip(LINEAGE_COLUMNS, astuple(lineage), strict=True))
