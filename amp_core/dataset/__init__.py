"""Locked dataset versions: names, statistics, and the deterministic files.

`names`, `blocks` and `manifest` are what reading a version needs; the other modules lock one. A name is loaded when it is first
used: a training node, which only reads, loads nothing of locking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp_core.lazy import lazy_exports

if TYPE_CHECKING:
    from amp_core.dataset.blocks import BLOCK_ALGORITHM, BLOCK_SIZE, BLOCKS_AVAILABLE, block_digest, block_digests
    from amp_core.dataset.lock import Bundle, BundleFile, lock_bundle
    from amp_core.dataset.manifest import MANIFEST_SCHEMA
    from amp_core.dataset.members import Member, RobotFacts, RobotLike
    from amp_core.dataset.names import FileNames, check_alias, check_dataset_name, check_version, file_names, shard_names
    from amp_core.dataset.statistics import ColumnStats
    from amp_core.dataset.weights import WEIGHT_METRICS
    from amp_core.strict_json import canonical_json
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "amp_core.dataset.blocks": ("BLOCK_ALGORITHM", "BLOCK_SIZE", "BLOCKS_AVAILABLE", "block_digest", "block_digests"),
            "amp_core.dataset.lock": ("Bundle", "BundleFile", "lock_bundle"),
            "amp_core.dataset.manifest": ("MANIFEST_SCHEMA",),
            "amp_core.dataset.members": ("Member", "RobotFacts", "RobotLike"),
            "amp_core.dataset.names": (
                "FileNames",
                "check_alias",
                "check_dataset_name",
                "check_version",
                "file_names",
                "shard_names",
            ),
            "amp_core.dataset.statistics": ("ColumnStats",),
            "amp_core.dataset.weights": ("WEIGHT_METRICS",),
            "amp_core.strict_json": ("canonical_json",),
        },
    )

__all__ = [
    "BLOCKS_AVAILABLE",
    "BLOCK_ALGORITHM",
    "BLOCK_SIZE",
    "MANIFEST_SCHEMA",
    "WEIGHT_METRICS",
    "Bundle",
    "BundleFile",
    "ColumnStats",
    "FileNames",
    "Member",
    "RobotFacts",
    "RobotLike",
    "block_digest",
    "block_digests",
    "canonical_json",
    "check_alias",
    "check_dataset_name",
    "check_version",
    "file_names",
    "lock_bundle",
    "shard_names",
]
