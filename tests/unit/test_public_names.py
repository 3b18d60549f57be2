"""The public names of `amp_core` and `amp_core.dataset`: found where they are used, and loaded only then."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import amp_core
import amp_core.dataset
import amp_core.scoring
from amp_core.lazy import lazy_exports
from amp_core.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["amp_core", "amp_core.dataset"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'scores'"):
        _ = module.scores


def test_a_name_is_never_hidden_by_a_module_of_that_name() -> None:
    """Importing a submodule sets an attribute of its package, in whatever order the two are used."""
    for package in (amp_core, amp_core.dataset):
        folder = Path(str(package.__file__)).parent
        assert not {path.stem for path in folder.iterdir()} & set(package.__all__)


def test_scores_are_given_by_the_function() -> None:
    assert inspect.isfunction(amp_core.score)
    assert amp_core.score is amp_core.scoring.score
    assert amp_core.__version__ == __version__


def test_the_package_itself_loads_nothing() -> None:
    code = (
        "import sys, amp_core; print(*sorted(name for name in sys.modules if name.startswith('amp_core') or name == 'numpy'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["amp_core", "amp_core.lazy"]


def test_help_and_a_star_import_work_without_mujoco() -> None:
    code = (
        "import pydoc, sys; sys.modules['mujoco'] = None\n"
        "from amp_core import *\n"
        "import amp_core; print(*amp_core.__all__); print(pydoc.render_doc(amp_core)[:40])\n"
        "import amp_core.scoring"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()[:2]
    assert first.split() == ["Recipe", "__version__", "load_clips", "load_dataset", "pull", "read_motion", "read_reference"]
    assert second == "Python Library Documentation: package amp_core in amp_core"[: len(second)]
    assert "install ampref with the extra [physics]" in done.stderr


def test_type_checkers_see_the_names_and_no_others(tmp_path: Path) -> None:
    code = "from amp_core import Robot, load_dataset, score\nreveal_type(score)\nfrom amp_core import scores\n"
    (tmp_path / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run([*command, "user.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'Module "amp_core" has no attribute "scores"' in done.stdout
    assert "-> list[amp_core.scoring.Score]" in done.stdout.replace("builtins.", "")
    assert done.stdout.count("error:") == 1, done.stdout


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("lazy_package")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    get_attribute, _ = lazy_exports(package.__name__, {"amp_core.version": ("GENERATOR_VERSION",)})
    value = get_attribute("GENERATOR_VERSION")
    assert vars(package)["GENERATOR_VERSION"] is value, "the next access does without the function"


def test_homes_that_do_not_exist_are_errors() -> None:
    get_attribute, _ = lazy_exports("amp_core", {"amp_core.version": ("nothing",)})
    with pytest.raises(AttributeError, match="nothing"):
        get_attribute("nothing")
