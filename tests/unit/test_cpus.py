"""The processors that a process may use, with and without what Linux alone has."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from amp_core import cpus
from amp_core.cli import main as cli
from amp_core.cpus import cgroup_cpus, usable_cpus
from ampref_service.settings import Settings


def write_group(folder: Path, **values: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def read_quota(root: Path, membership: str) -> float | None:
    (root / "membership").write_text(membership)
    return cgroup_cpus(root / "membership", root)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"pod/job": "150000 100000"}, 1.5),
        ({"pod/job": "max 100000"}, None),
        ({"pod/job": "max 100000", "pod": "200000 100000"}, 2.0),
        ({"pod/job": "400000 100000", "pod": "50000 100000"}, 0.5),
        ({".": "300000 100000"}, 3.0),  # Inside a container, where the group's path on the host is not mounted.
        ({"other": "100000 100000"}, None),
        ({"pod/job": "broken"}, None),
    ],
)
def test_the_quota_of_version_2_is_the_least_of_the_group_and_its_parents(
    tmp_path: Path, groups: dict[str, str], expected: float | None
) -> None:
    for group, limit in groups.items():
        write_group(tmp_path / group, cpu__max=limit)
    assert read_quota(tmp_path, "0::/pod/job\n") == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2.5), ("-1", None)])
def test_the_quota_of_version_1(tmp_path: Path, quota: str, expected: float | None) -> None:
    write_group(tmp_path / "cpu" / "job", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert read_quota(tmp_path, "5:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n") == expected


@pytest.mark.parametrize("name", [b"user-\xff.slice", "\N{LATIN SMALL LETTER E WITH ACUTE}\u2028x".encode()])
def test_a_group_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    group = tmp_path / os.fsdecode(name)
    try:
        write_group(group, cpu__max="150000 100000")
    except OSError:
        pytest.skip("this file system asks for UTF-8")
    (tmp_path / "membership").write_bytes(b"0::/" + name + b"\n")
    assert cgroup_cpus(tmp_path / "membership", tmp_path) == 1.5


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2.0, 2), (1.5, 2), (0.2, 1), (100.0, 8)])
def test_a_quota_is_rounded_up_and_never_raises_the_count(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(cpus, "cgroup_cpus", lambda: quota)
    assert usable_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_the_affinity_mask_counts() -> None:
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, mask)


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without affinity and control groups."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    # From Python 3.13 on, `os` names one of two functions so when it is first loaded: this one where there is no affinity.
    monkeypatch.setattr(os, "process_cpu_count", os.cpu_count, raising=False)
    monkeypatch.setattr(cpus, "cgroup_cpus", lambda: None)


@pytest.mark.usefixtures("macos")
def test_without_affinity_all_processors_count() -> None:
    expected = os.process_cpu_count() if sys.version_info >= (3, 13) else os.cpu_count()
    assert usable_cpus() == expected


@pytest.mark.usefixtures("macos")
@pytest.mark.parametrize("verb", ["score", "verify", "buckets"])
def test_the_verbs_that_simulate_run_without_affinity(verb: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a zip")
    assert cli.run([verb, str(bad)]) == 1, "the file is refused after the threads are counted"


@pytest.mark.usefixtures("macos")
def test_the_settings_divide_the_processors_without_affinity() -> None:
    assert Settings(worker_concurrency=1).job_threads == usable_cpus()


def test_nothing_else_counts_processors() -> None:
    root = Path(__file__).parents[2]
    sources = [path for folder in ("amp_core", "service", "workers", "bench") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 100
    counting = re.compile(r"sched_getaffinity|cpu_count\(")
    assert [path.name for path in sources if counting.search(path.read_text())] == ["cpus.py"]
