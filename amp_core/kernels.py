"""The linear algebra that plans are made with: the same kernels on every x86-64 machine.

OpenBLAS, which numpy brings, looks at the processor and picks kernels for it, and those round differently: a plan that begins
with other last bits ends in other steps. The kernels for AVX2 run on every x86-64 processor since 2013 (2015 of AMD's), and the
other kernels of that family give the same bits. They are chosen by the environment before numpy is loaded, so the programs do
it, `ampref` and the child of a job, and no library: it would slow down whoever imports it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

__all__ = ["pinned"]

_CPUINFO = Path("/proc/cpuinfo")


@cache
def pinned() -> dict[str, str]:
    """Environment variables for a process that is to plan: empty where the processor has no AVX2, or is no x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    try:
        flags = next(line for line in _CPUINFO.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return {}  # Not Linux; what its processor can is not asked.
    return {"OPENBLAS_CORETYPE": "Haswell"} if {"avx2", "fma"} <= set(flags) else {}
