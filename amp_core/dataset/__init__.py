"""Locked dataset versions: names, statistics, and the three deterministic files."""

from amp_core.dataset._blocks import BLOCK_ALGORITHM, BLOCK_SIZE, BLOCKS_AVAILABLE, block_digest, block_digests
from amp_core.dataset._lock import MANIFEST_SCHEMA, Bundle, BundleFile, LayoutLike, Member, RobotFacts, RobotLike, lock_bundle
from amp_core.dataset._names import FileNames, check_alias, check_dataset_name, check_version, file_names
from amp_core.dataset._stats import ColumnStats
from amp_core.dataset._weights import WEIGHT_METRICS

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
    "LayoutLike",
    "Member",
    "RobotFacts",
    "RobotLike",
    "block_digest",
    "block_digests",
    "check_alias",
    "check_dataset_name",
    "check_version",
    "file_names",
    "lock_bundle",
]
