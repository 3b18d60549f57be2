"""Names of datasets, versions and aliases, and the file names of a version.

Names become parts of URLs, of file names and of cache paths on every operating system and cluster file system; hence lower
case, few characters, and a first and last one that no shell or path treats specially.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from amp_core.errors import InputRefused

__all__ = ["FileNames", "check_alias", "check_dataset_name", "check_version", "file_names", "shard_names"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_NUMBER = r"(?:0|[1-9][0-9]{0,5})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-[0-9A-Za-z]+(?:[.-][0-9A-Za-z]+)*)?")
_VERSION_LENGTH = 48


class FileNames(NamedTuple):
    """The names of the three files of a locked version."""

    features: str
    normalization_stats: str
    manifest: str


def file_names(version: str) -> FileNames:
    """The specification's file names for `version`, which is checked."""
    check_version(version)
    return FileNames(f"features_v{version}.npz", f"normalization_stats_v{version}.json", f"dataset_manifest_v{version}.json")


def shard_names(name: str, count: int) -> tuple[str, ...]:
    """The names of the files that stand for the file `name` (`features_v0.11.0.npz`) in `count` shards; its own for one."""
    stem, dot, suffix = name.rpartition(".")
    return (name,) if count == 1 else tuple(f"{stem}-{i:05}-of-{count:05}{dot}{suffix}" for i in range(1, count + 1))


def check_dataset_name(name: str) -> str:
    """`name`, or `InputRefused`: 1–64 of `a-z 0-9 . _ -`, beginning and ending with a letter or digit, no two dots in a row."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InputRefused(
            f"{_quote(name)} is not a dataset name",
            key="name",
            expected="1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
            remedy="Use a name such as walk or walk-flat.v2.",
        )
    return name


def check_version(version: str) -> str:
    """`version`, or `InputRefused`: `MAJOR.MINOR.PATCH` and an optional `-suffix` (semver without build metadata)."""
    if not isinstance(version, str) or len(version) > _VERSION_LENGTH or not _VERSION.fullmatch(version):
        remedy = "Use a version such as 0.11.0 or 0.12.0-rc.1."
        if isinstance(version, str) and version[:1] in ("v", "V") and _VERSION.fullmatch(version[1:]):
            remedy = f"Write {version[1:]}, without the v."
        raise InputRefused(
            f"{_quote(version)} is not a version",
            key="version",
            expected="MAJOR.MINOR.PATCH without leading zeros, then an optional -suffix of letters, digits, '.' and '-'",
            remedy=remedy,
        )
    return version


def check_alias(alias: str) -> str:
    """`alias`, or `InputRefused`: like a dataset name, and not to be mistaken for a version."""
    if not isinstance(alias, str) or not _NAME.fullmatch(alias) or ".." in alias or alias[0].isdigit():
        raise InputRefused(
            f"{_quote(alias)} is not an alias",
            key="alias",
            expected="a lower-case letter, then letters, digits, '.', '_' or '-'",
            remedy="Use an alias such as latest or production.",
        )
    return alias


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…'"
