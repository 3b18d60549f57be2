"""How many processors this process may use."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

__all__ = ["cgroup_cpus", "machine_cpus", "usable_cpus"]


def usable_cpus() -> int:
    """The processors that the affinity mask, `-X cpu_count` and the control group leave to this process; at least 1.

    A container's quota of 1.5 processors counts as 2: a thread more than the quota waits for a part of each period, a thread
    fewer leaves processor time unused.
    """
    if sys.version_info >= (3, 13):
        count = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):  # Not on macOS.
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_cpus()
    return count if quota is None else min(count, math.ceil(quota))


def machine_cpus() -> int:
    """The processors of the machine, whatever part of it this process may use."""
    return max(os.cpu_count() or 1, usable_cpus())


def cgroup_cpus(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processor time per second that the control group of this process may use, in processors; None without a limit.

    The limits of all its parents count as well. Inside a container the group's own path is often not mounted; its limit then
    stands at the root of the mount.

    Args:
      membership: lines `hierarchy:controllers:path` (cgroups(7)); version 2 has the hierarchy 0 and no controllers.
      mount: the folder of version 2, or of the controllers of version 1.
    """
    try:
        lines = os.fsdecode(membership.read_bytes()).split("\n")  # A group's name is a path of any bytes.
    except OSError:  # Not Linux.
        return None
    quotas: list[float] = []
    files: tuple[str, ...]
    for line in filter(None, lines):
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            root, files = mount, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            root, files = mount / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            try:
                quota, period = map(int, " ".join((root / folder / file).read_text() for file in files).split())
            except (OSError, ValueError):  # Not mounted, or "max" in place of a quota.
                continue
            if quota > 0 and period > 0:  # Version 1 writes -1 where there is no limit.
                quotas.append(quota / period)
    return min(quotas, default=None)
