"""What the command sets before anything is imported: plans have the same bytes whatever kernels the machine would choose."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amp_core.formats import read_motion
from amp_core.kernels import kernel_variables
from amp_core.motions import bundled_motions


def test_plans_do_not_depend_on_the_kernels_that_the_processor_would_get(tmp_path: Path) -> None:
    if not kernel_variables():
        pytest.skip("no kernels are pinned on this machine")
    motion = read_motion(next(path for path in bundled_motions() if path.stem == "walk_long_stride"), name="walk")
    np.savez(tmp_path / "walk.npz", fps=motion.fps, **{k: getattr(motion, k)[:30] for k in ("root_pos", "root_rot", "dof_pos")})
    recipe = {"mode": "tracked", "planner": {"attempts": 1, "samples": 32}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    found = []
    # SSE3 alone, which every x86-64 processor has, and what is pinned.
    for kernels in ("Prescott", *kernel_variables().values()):
        out = tmp_path / kernels
        command = ["score", str(tmp_path / "walk.npz"), "--recipe", str(tmp_path / "recipe.json"), "--export", str(out), "-q"]
        program = "import sys; sys.argv[0] = 'ampref'; from amp_core.cli.start import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *command],
            env=os.environ | {"OPENBLAS_CORETYPE": kernels},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(hashlib.sha256((out / "walk.npz").read_bytes()).hexdigest())
    assert found[0] == found[1]


@pytest.mark.parametrize("verb", ["score", "api", "up", "worker", "demo"])
def test_the_module_starts_in_a_folder_that_holds_packages_with_common_names(
    verb: str, tmp_path: Path, set_traps: Callable[..., Path]
) -> None:
    """`python -m` looks in the working directory first, so no import name of ours may be a common one."""
    done = subprocess.run(
        [sys.executable, "-m", "amp_core.cli", verb, "--help"],
        capture_output=True,
        text=True,
        cwd=set_traps(tmp_path, "service", "workers", "migrations"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: ampref {verb}" in done.stdout
