"""The linear algebra that plans are made with: the same kernels on every x86-64 machine.

OpenBLAS, which numpy brings, picks kernels for the processor, and those round differently: a plan that begins with other last
bits ends in other steps. The kernels for AVX2 run on every x86-64 processor since 2013 (2015 of AMD's), and the other kernels
of that family give the same bits. The environment selects them before numpy is loaded, so the programs set it (`ampref` and
the child of a job) and no library does: it would slow down every program that imports it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

__all__ = ["kernel_variables"]

_CPUINFO = Path("/proc/cpuinfo")


@cache
def kernel_variables() -> dict[str, str]:
    """Environment variables for a process that is to plan: empty where the processor has no AVX2, or is no x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    try:
        flags = next(line for line in _CPUINFO.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return {}  # Not Linux.
    return {"OPENBLAS_CORETYPE": "Haswell"} if {"avx2", "fma"} <= set(flags) else {}
