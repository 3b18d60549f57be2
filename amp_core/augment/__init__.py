"""Variants of a clip, for coverage: its mirror image, another tempo, another heading, a loop, a part.

`augment(motion, robot, augmentation)` takes a motion and returns a motion, which is written, uploaded and scored like any
other. A variant is not trusted to be physical: the rollout decides that. `docs/augmentation.md` has the formulae.

The lineage of a variant is the digest of the clip that it was made from, that of the clip at the root of the family, and the
augmentation's text. It is written into the variant's own bytes, so its digest covers it.

The names are loaded when they are first used, so that an augmentation's text can be read without MuJoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp_core.lazy import lazy_exports

if TYPE_CHECKING:
    from amp_core.augment.augmentation import Augmentation, parse_all
    from amp_core.augment.encoding import motion_bytes
    from amp_core.augment.loop import Seam
    from amp_core.augment.symmetry import Symmetry, symmetry_of
    from amp_core.augment.variants import Variant, augment, make_variant, variant_name
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "amp_core.augment.augmentation": ("Augmentation", "parse_all"),
            "amp_core.augment.encoding": ("motion_bytes",),
            "amp_core.augment.loop": ("Seam",),
            "amp_core.augment.symmetry": ("Symmetry", "symmetry_of"),
            "amp_core.augment.variants": ("Variant", "augment", "make_variant", "variant_name"),
        },
    )

__all__ = [
    "Augmentation",
    "Seam",
    "Symmetry",
    "Variant",
    "augment",
    "make_variant",
    "motion_bytes",
    "parse_all",
    "symmetry_of",
    "variant_name",
]
