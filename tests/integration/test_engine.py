"""Environments in which `mujoco` 3 and `mujoco-core` 4 share a folder, made by pip from small wheels of the same names."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from amp_core.engine import SUPPORTED, check_engine
from amp_core.errors import EngineRefused

ROOT = Path(__file__).parents[2]
SCORE = ["score", str(ROOT / "amp_core/motions/squat.json")]


def wheel(folder: Path, name: str, version: str, module: str, **more: str) -> Path:
    """A wheel that installs `mujoco/__init__.py` with the text `module`, and more modules."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        "mujoco/__init__.py": module,
        **{f"mujoco/{stem}.py": text for stem, text in more.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=") for path, text in files.items()
    }
    files[record] = "".join(f"{path},sha256={digest.decode()},\n" for path, digest in digests.items()) + f"{record},,\n"
    target = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return target


class Node:
    """A virtual environment that sees this checkout and, after its own packages, those that the tests run with."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = str(folder / "bin/python")
        self.site = next(folder.glob("lib/python*/site-packages"))
        paths = [ROOT, ROOT / "service", ROOT / "workers", ROOT / "migrations", sysconfig.get_path("purelib")]
        (self.site / "checkout.pth").write_text("".join(f"{path}\n" for path in paths))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-P", *arguments], capture_output=True, text=True, timeout=120, cwd=self.site.parent
        )

    def pip(self, *arguments: str) -> str:
        done = self.run("-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


def test_both_in_one_environment_are_refused_with_commands_that_mend_it(node: Node, tmp_path: Path) -> None:
    dies = "raise OSError('libmujoco.so.3.17.0: cannot open shared object file')\n"
    for name, version in (("mujoco", "3.17.0"), ("mujoco-core", "4.0.1")):
        node.pip("install", "--no-index", "--no-deps", str(wheel(tmp_path, name, version, dies)))
    refused = node.run("-m", "amp_core.cli", *SCORE)
    assert refused.returncode == 1
    assert "mujoco 3.17.0 and mujoco-core 4.0.1 are both installed" in refused.stdout + refused.stderr
    assert "pip uninstall -y mujoco mujoco-core && pip install 'mujoco-core>=4.0.1,<5'" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr

    # A training node needs no MuJoCo at all.
    loads = node.run("-c", "import amp_core.client, amp_core; amp_core.__name__")
    assert loads.returncode == 0, loads.stderr

    node.pip("uninstall", "-y", "mujoco", "mujoco-core")
    mended = node.run("-m", "amp_core.cli", *SCORE)  # by the engine of the tests, which comes next on the path
    assert mended.returncode == 0, mended.stderr


def test_what_is_left_of_both_is_refused_with_commands_that_mend_it(node: Node, tmp_path: Path) -> None:
    """For pip `mujoco-core` is complete after the removal of `mujoco`, which takes the files of that name with it."""
    # The engine of the tests must not stand in for the missing files.
    rest = tmp_path / "rest"
    rest.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("mujoco"):
            (rest / path.name).symlink_to(path)
    paths = node.site / "checkout.pth"
    paths.write_text(paths.read_text().replace(sysconfig.get_path("purelib"), str(rest)))
    batch = "import mujoco\nmujoco.mjtState\n"
    for path in (wheel(tmp_path, "mujoco", "3.17.0", ""), wheel(tmp_path, "mujoco-core", "4.0.1", "", batch=batch)):
        node.pip("install", "--no-index", "--no-deps", str(path))
    node.pip("uninstall", "-y", "mujoco")
    refused = node.run("-m", "amp_core.cli", *SCORE)
    assert refused.returncode == 1
    assert "mujoco-core 4.0.1 is installed but cannot be loaded: AttributeError" in refused.stdout + refused.stderr
    assert "pip uninstall -y mujoco mujoco-core && pip install 'mujoco-core>=4.0.1,<5'" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_another_version_alone_is_refused(node: Node, tmp_path: Path) -> None:
    node.pip("install", "--no-index", "--no-deps", str(wheel(tmp_path, "mujoco-core", "5.1.0", "__version__ = '5.1.0'\n")))
    refused = node.run("-m", "amp_core.cli", *SCORE)
    assert refused.returncode == 1
    assert "mujoco-core 5.1.0 is installed" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("engine", "core", "refused"),
    [
        (None, "4.0.1", False),
        (None, "4.7.2.dev3", False),
        ("4.0.1", "4.0.1", False),  # the package `mujoco` 4 holds no files of its own
        (None, None, False),  # nothing is installed: the import says so
        (None, "4.0.0", True),
        (None, "5.0", True),
        ("3.17.0", None, True),
        ("3.17.0", "4.0.1", True),
    ],
)
def test_which_versions_are_refused(engine: str | None, core: str | None, refused: bool) -> None:
    if refused:
        with pytest.raises(EngineRefused, match="pip uninstall -y"):
            check_engine(engine, core)
    else:
        check_engine(engine, core)


def test_the_range_is_the_declared_one() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"mujoco-core>={SUPPORTED[0]},<{SUPPORTED[1]}" in extras["physics"]
    assert not any("mujoco" in requirement or "physics" in requirement for requirement in extras["train"])
