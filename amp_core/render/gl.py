"""Which GL there is to draw with, without a screen: EGL, else OSMesa; `MUJOCO_GL` decides where it is set.

A driver that does not fit the machine may end the process that loads it. So a process of its own tries each of them, while this
one reads what is to be drawn.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from amp_core.errors import AmprefError

__all__ = ["APT_REMEDY", "GlProbe", "NoGraphics", "list_platforms"]

APT_REMEDY = "On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6"

_TRIAL = """
import os, sys
from amp_core.engine import make_gl_context, mujoco
context = make_gl_context(sys.argv[1], 64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100.value)
print("usable", flush=True)
os._exit(0)
"""
"""What a process does to find out; it ends without the clean-up that some drivers do not survive."""
_TRIAL_SEC = 30.0
_FORBIDDING = frozenset(["disable", "disabled", "off", "false", "0"])
_LEAVING_OPEN = frozenset(["", "enable", "enabled", "on", "true", "1"])


class NoGraphics(AmprefError):
    """Nothing can be drawn on this machine."""

    slug = "no-graphics"
    title = "Nothing can be drawn here"


def list_platforms(environ: Mapping[str, str] = os.environ) -> Sequence[str]:
    """What to draw with on this machine, the best first.

    Raises:
      NoGraphics: `MUJOCO_GL` forbids it.
    """
    choice = environ.get("MUJOCO_GL", "").strip().lower()
    if choice in _FORBIDDING:
        raise NoGraphics("MUJOCO_GL forbids drawing", expected="egl or osmesa", remedy="Unset MUJOCO_GL")
    if choice not in _LEAVING_OPEN:
        return (choice,)
    return ("cgl",) if sys.platform == "darwin" else ("egl", "osmesa")


class GlProbe:
    """Tries in the background what this machine can draw with.

    Args:
      nice: added to the niceness of the processes that try.
    """

    def __init__(self, nice: int = 0) -> None:
        self._platforms = list_platforms()
        self._nice = nice
        self._trial = _start_trial(self._platforms[0], nice)

    def find_platform(self) -> str:
        """The first platform that works; waits for the trial.

        Raises:
          NoGraphics: none does; says what each lacks.
        """
        faults = []
        for index, platform in enumerate(self._platforms):
            trial = self._trial if index == 0 else _start_trial(platform, self._nice)
            fault = _read_fault(trial)
            if not fault:
                return platform
            faults.append(f"{platform} {fault}")
        raise NoGraphics(
            f"there is no GL to draw with: {'; '.join(faults)}",
            expected="EGL or OSMesa, which draw without a screen and without a graphics card",
            remedy=APT_REMEDY,
        )

    def close(self) -> None:
        """End a trial that nobody asked for."""
        self._trial.kill()
        self._trial.communicate()


def _start_trial(platform: str, nice: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _TRIAL, platform],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with contextlib.suppress(OSError):  # It may have ended already.
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    return process


def _read_fault(trial: subprocess.Popen[str]) -> str:
    """Why a platform cannot be used, empty where it can."""
    try:
        output, errors = trial.communicate(timeout=_TRIAL_SEC)
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.communicate()
        return f"did not answer within {_TRIAL_SEC:g} s"
    if "usable" in output:
        return ""
    if trial.returncode < 0:
        return f"crashed (signal {-trial.returncode})"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if any("No module named 'OpenGL'" in line for line in lines):
        # What is missing is a package, which the command names with the extra that has it.
        raise ModuleNotFoundError("No module named 'OpenGL'", name="OpenGL")
    return f"cannot be used ({lines[-1][:160] if lines else f'exit code {trial.returncode}'})"
