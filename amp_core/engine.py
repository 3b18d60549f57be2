"""The physics engine, checked before it is loaded.

The distributions `mujoco` 3 and `mujoco-core` 4 both install the folder `mujoco`, and pip reports no conflict: whichever came
last overwrites part of the other. `import mujoco` then fails, or the version that runs is not the one that is declared. So
every module takes MuJoCo from here, and an environment that cannot be trusted is refused with the commands that mend it.

Raises:
  EngineRefused: on import of this module, for an environment as described.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from amp_core.errors import EngineRefused

__all__ = ["MODEL_FIELDS", "Batch", "SimulationError", "check_engine", "make_gl_context", "mujoco"]

SUPPORTED = ("4.0.1", "5")
"""The first supported version and the first that is not; the same range as in `pyproject.toml`."""

INSTALL = f"pip install 'mujoco-core>={SUPPORTED[0]},<{SUPPORTED[1]}'"


def check_engine(engine: str | None, core: str | None) -> None:
    """Refuse an environment whose MuJoCo is mixed or outside the supported range.

    Args:
      engine: the installed version of the distribution `mujoco`, None where it is not installed. From version 4 on it is an
        empty package that requires `mujoco-core`.
      core: the same of `mujoco-core`.

    Raises:
      EngineRefused: both share the folder, or the version is not supported.
    """
    shares_folder = engine is not None and _release(engine) < (4,)
    if shares_folder and core is not None:
        raise EngineRefused(
            f"mujoco {engine} and mujoco-core {core} are both installed and overwrite each other's files",
            expected=f"mujoco-core alone, from {SUPPORTED[0]} on and below {SUPPORTED[1]}",
            remedy=f"To score here: pip uninstall -y mujoco mujoco-core && {INSTALL}. To keep mujoco {engine}: "
            f"pip uninstall -y mujoco mujoco-core && pip install mujoco=={engine}; pull and load_dataset need no MuJoCo",
        )
    name, release = ("mujoco", engine) if shares_folder else ("mujoco-core", core)
    if release is not None and not _release(SUPPORTED[0]) <= _release(release) < _release(SUPPORTED[1]):
        raise EngineRefused(
            f"{name} {release} is installed, and results of other versions than the supported ones cannot be compared",
            expected=f"mujoco-core from {SUPPORTED[0]} on and below {SUPPORTED[1]}",
            remedy=f"pip uninstall -y {name} && {INSTALL}, or score in an environment of its own; "
            "pull and load_dataset need no MuJoCo",
        )


def _release(text: str) -> tuple[int, ...]:
    """`4.0.1.dev2` as (4, 0, 1): the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


_core = _installed_version("mujoco-core")
check_engine(_installed_version("mujoco"), _core)


def _import_mujoco() -> None:
    """Import MuJoCo; where what `MUJOCO_GL` names is not on this machine, without it: physics needs no GL."""
    try:
        importlib.import_module("mujoco")
    except (ImportError, AttributeError, OSError, RuntimeError):
        if (choice := os.environ.get("MUJOCO_GL")) is None:
            raise
        os.environ["MUJOCO_GL"] = "off"
        try:
            importlib.import_module("mujoco")
        finally:
            os.environ["MUJOCO_GL"] = choice


try:
    _import_mujoco()
    import mujoco
    from mujoco.batch import MODEL_FIELDS, Batch, SimulationError
except (ImportError, AttributeError, OSError, RuntimeError) as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
        raise ModuleNotFoundError("MuJoCo is not installed; install ampref with the extra [physics]", name=error.name) from None
    # Uninstalling `mujoco` 3 takes files of `mujoco-core` with it; for pip the latter is still complete.
    raise EngineRefused(
        f"mujoco-core {_core} is installed but cannot be loaded: {type(error).__name__}: {error}",
        remedy=f"pip uninstall -y mujoco mujoco-core && {INSTALL}; pull and load_dataset need no MuJoCo",
    ) from error


def make_gl_context(platform: str, width: int, height: int) -> Any:
    """A GL context of a platform (`egl`, `osmesa`, `glfw`, `cgl`), to draw pictures of at most this size; `free` ends it.

    Raises:
      ImportError, AttributeError, OSError, RuntimeError: the machine has no such GL, or the extra `[render]` is missing.
    """
    return importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
