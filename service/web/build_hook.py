"""The build of a wheel: its pages have their scripts (`build_assets.py`)."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_spec = importlib.util.spec_from_file_location("build_assets", Path(__file__).with_name("build_assets.py"))
build_assets: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_assets)

_WITHOUT = "AMPREF_BUILD_WITHOUT_ASSETS"


class AssetsHook(BuildHookInterface):
    """Builds the scripts before a wheel is put together. An editable installation takes what `make setup` has built."""

    def dependencies(self) -> list[str]:
        """Node, where the machine has none."""
        return [] if self._is_idle() or build_assets.find_node() else [build_assets.NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self._is_idle():
            return
        try:
            build_assets.build()
        except build_assets.AssetsNotBuilt as error:
            raise SystemExit(
                f"error: the pages' scripts were not built: {error}\nA wheel without them serves the API alone: {_WITHOUT}=1"
            ) from None

    def _is_idle(self) -> bool:
        return self.target_name != "wheel" or os.environ.get(_WITHOUT) == "1" or build_assets.are_current()
