"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from amp_core.client.cache import resolve_cache_dir
from amp_core.errors import InputRefused
from amp_core.files import partial_path, publish_file, replace_file, write_file


def test_a_file_is_written_whole_with_the_usual_permissions_and_its_folder_is_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.json"
    write_file(target, b"one")
    write_file(target, b"two", durable=True)
    assert target.read_bytes() == b"two"
    (plain := tmp_path / "plain").touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.json"
    write_file(target, b"one")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(target, b"two", durable=True)
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_durable_file_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_file(tmp_path / "a", b"a", durable=True)
    assert events == ["file", "rename", "folder"]
    write_file(tmp_path / "b", b"b")
    assert events[3:] == ["rename"]


def test_a_link_is_replaced_as_a_file_is(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("old")
    with replace_file(link) as partial:
        partial.symlink_to("new")
    assert os.readlink(link) == "new"
    assert list(tmp_path.iterdir()) == [link]


def test_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(InputRefused, match=r"no home folder is known for ~nobody-of-that-name.*Write the path as a whole"):
        resolve_cache_dir(None)


def test_every_write_has_a_partial_file_of_its_own_even_of_the_longest_name(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)
    first, second = partial_path(target), partial_path(target)
    assert first != second
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    publish_file(second, target)
    publish_file(first, target)
    assert target.read_bytes() == b"1"
