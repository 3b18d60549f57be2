"""Packages that load a public name when it is first used (PEP 562), so that importing them costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

__all__ = ["is_installed", "lazy_exports"]


def is_installed(package: str) -> bool:
    """Whether a package can be imported, which is not tried."""
    try:
        return find_spec(package) is not None
    except ImportError:
        return False


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package; the latter lists its `__all__`.

    Type checkers do not follow them; the package imports the same names under `TYPE_CHECKING`.

    Args:
      package: its `__name__`.
      modules: the public names by the full name of the module that defines them.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)  # The next access finds it without this function.
        return value

    def list_attributes() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get_attribute, list_attributes
