"""CSV as tools write it: separators, decimal commas, quotes, index columns and headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from amp_core.errors import MotionRefused
from amp_core.formats import Motion, read_motion
from amp_core.motion import reorder_joints
from amp_core.robot import Robot

JOINTS = [f"{side}_{joint}" for side in ("left", "right") for joint in ("hip_pitch", "hip_roll", "knee_pitch", "ankle_pitch")]
ROOT = ["x", "y", "z", "qx", "qy", "qz", "qw"]


def rows_of(clip: dict[str, Any], number: str = "{!r}") -> list[list[str]]:
    table = np.hstack([clip["root_pos"], clip["root_rot"], clip["dof_pos"]])
    return [[number.format(float(value)) for value in row] for row in table]


def join(rows: list[list[str]], delimiter: str = ",", end: str = "\n") -> bytes:
    return "".join(delimiter.join(row) + end for row in rows).encode()


def read(data: bytes, **options: Any) -> Motion:
    return read_motion(data, **{"name": "walk", "fps": 50.0, "quat_order": "xyzw", **options})


def same(motion: Motion, clip: dict[str, Any]) -> None:
    for key in ("root_pos", "root_rot", "dof_pos"):
        np.testing.assert_array_equal(getattr(motion, key), clip[key])


def refused(data: bytes, *needles: str, key: str | None = None, **options: Any) -> None:
    with pytest.raises(MotionRefused) as caught:
        read(data, **options)
    text = str(caught.value)
    assert all(needle in text for needle in needles), text
    assert key is None or caught.value.key == key, text
    assert caught.value.remedy
    assert text.isprintable()


def quoted(rows: list[list[str]]) -> list[list[str]]:
    return [[f'"{cell}"' for cell in row] for row in rows]


def commas(rows: list[list[str]]) -> list[list[str]]:
    return [[cell.replace(".", ",") for cell in row] for row in rows]


WRITERS: dict[str, Callable[[list[list[str]]], bytes]] = {
    "semicolons": lambda rows: join(rows, ";"),
    "semicolons and decimal commas": lambda rows: join(commas(rows), ";"),
    "tabs": lambda rows: join(rows, "\t"),
    "tabs and decimal commas": lambda rows: join(commas(rows), "\t"),
    "spaces": lambda rows: join(rows, " "),
    "aligned spaces": lambda rows: join([[cell.rjust(30) for cell in row] for row in rows], " "),
    "spaces and decimal commas": lambda rows: join(commas(rows), " "),
    "commas and spaces": lambda rows: join(rows, ", "),
    "a comma at the end": lambda rows: join(rows, ",", ",\n"),
    "a semicolon at the end": lambda rows: join(commas(rows), ";", ";\r\n"),
    "Excel's line": lambda rows: b"sep=;\r\n" + join(commas(rows), ";"),
    "quotes": lambda rows: join(quoted(rows)),
    "quotes and decimal commas": lambda rows: join(quoted(commas(rows))),
    "quotes and semicolons": lambda rows: join(quoted(commas(rows)), ";"),
}


@pytest.mark.parametrize("with_header", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_separators(clip: dict[str, Any], writer: str, with_header: bool) -> None:
    rows = rows_of(clip)
    motion = read(WRITERS[writer]([ROOT + JOINTS, *rows] if with_header else rows))
    same(motion, clip)
    assert motion.joint_names == (tuple(JOINTS) if with_header else None)
    assert motion.source_format == "csv"


def test_savetxt(clip: dict[str, Any], tmp_path: Any) -> None:
    table = np.hstack([clip["root_pos"], clip["root_rot"], clip["dof_pos"]])
    names = [*ROOT, *JOINTS]
    for options in (
        {},
        {"header": " ".join(names)},
        {"delimiter": ",", "header": ",".join(names)},
        {"header": ",".join(names)},
    ):
        np.savetxt(tmp_path / "walk.csv", table, fmt="%.18g", **options)
        motion = read((tmp_path / "walk.csv").read_bytes())
        same(motion, clip)
        assert motion.joint_names == (tuple(JOINTS) if options else None)


@pytest.mark.parametrize("first", ["", "Unnamed: 0", "index", "frame", "Time [s]", "timestamp"])
def test_an_index_column_that_a_header_names(clip: dict[str, Any], first: str) -> None:
    is_time = first.lower().startswith("time")
    rows = [[f"{i / 50:.4f}" if is_time else str(i), *row] for i, row in enumerate(rows_of(clip))]
    header = [first, *ROOT, *JOINTS]
    motion = read(join([header, *rows]))
    same(motion, clip)
    assert motion.joint_names == tuple(JOINTS)
    if is_time:
        refused(join([header, *rows]), "the time column says 50 frames per second", key="fps", fps=30.0)
    refused(join([header, *rows[::-1]]), "does not increase")


def test_an_index_column_without_a_name(clip: dict[str, Any]) -> None:
    rows = [[str(i), *row] for i, row in enumerate(rows_of(clip))]
    same(read(join(rows)), clip)
    same(read(join([[f"{i * 0.02:.3f}", *row] for i, row in enumerate(rows_of(clip))])), clip)
    # pandas: an array without names; R: row names without a header.
    same(read(join([["", *map(str, range(15))], *rows])), clip)
    same(read(join([list(map(str, range(15))), *rows_of(clip)])), clip)
    same(read(join(quoted([ROOT + JOINTS, *([str(i + 1), *row[1:]] for i, row in enumerate(rows))]))), clip)


def test_a_root_that_moves_evenly_is_no_index(clip: dict[str, Any]) -> None:
    clip["root_pos"][:, 0] = np.arange(12)
    same(read(join(rows_of(clip)), fps=5.0), clip)


@pytest.mark.parametrize(
    "root",
    [
        ROOT,
        ["root_pos_x", "root_pos_y", "root_pos_z", "root_rot_x", "root_rot_y", "root_rot_z", "root_rot_w"],
        ["root_pos_x(m)", "root_pos_y (m)", "root_pos_z[m]", "rot.x", "rot.y", "rot.z", "rot.w"],
        ["posX", "posY", "posZ", "quatX", "quatY", "quatZ", "quatW"],
        ["a", "b", "c", "d", "e", "f", "g"],
    ],
)
def test_headers(clip: dict[str, Any], root: list[str]) -> None:
    for joints in (JOINTS, [f"dof_{name}(rad)" for name in JOINTS], [f"{name} [rad]" for name in JOINTS]):
        motion = read(join([root + joints, *rows_of(clip)]))
        same(motion, clip)
        assert motion.joint_names is not None
        assert [name.removeprefix("dof_") for name in motion.joint_names] == JOINTS
    assert read(join([root + [f"joint_{i}" for i in range(8)], *rows_of(clip)])).joint_names is None
    if root[3] == "d":
        return
    wxyz = [*root[:3], root[6], *root[3:6]]
    refused(join([wxyz + JOINTS, *rows_of(clip)]), "in the order wxyz", "--quat-order wxyz", key="root_rot")


@pytest.mark.parametrize(
    ("header", "needle"),
    [
        ([*ROOT[3:], *ROOT[:3], *JOINTS], "quaternion in columns 1 to 4"),
        ([*JOINTS, *ROOT], "quaternion in columns 12 to 15"),
        (["x", "z", "y", *ROOT[3:], *JOINTS], "position in the order x, z, y"),
        (["x", "y", "z", "rx", "ry", "rz", *JOINTS, "toe"], "three columns of rotation"),
        (["x (cm)", *ROOT[1:], *JOINTS], "'x' in centimetres"),
        (["x", "y", "z_mm", *ROOT[3:], *JOINTS], "'z_mm' in millimetres"),
        ([*ROOT, *JOINTS[:7], "right_ankle_pitch [deg]"], "'right_ankle_pitch' in degrees"),
        ([*ROOT, *JOINTS[:7], "right_ankle_pitch_degrees"], "in degrees"),
        ([*ROOT, *JOINTS[:6]], "13 columns, the rows have 15"),
        ([*ROOT, *JOINTS[:7], JOINTS[0]], "appears twice"),
    ],
)
def test_headers_that_are_refused(clip: dict[str, Any], header: list[str], needle: str) -> None:
    refused(join([header, *rows_of(clip)]), needle)


def test_damaged_rows(clip: dict[str, Any]) -> None:
    rows = rows_of(clip)
    refused(join([*rows[:5], rows[5][:-1], *rows[6:]]), "line 6 has 14 columns")
    refused(join([*rows[:5], [*rows[5][:-1], ""], *rows[6:]]), "line 6, column 15 is ''")
    refused(join([*rows[:5], [*rows[5][:-1], "1.234,5"], *rows[6:]], ";"), "line 6, column 15")
    refused(join([*commas(rows[:5]), [*commas(rows)[5][:-1], "1.234,5"]], ";"), "line 6, column 15")
    refused(join([*rows[:5], ['"0', *rows[5][1:]], *rows[6:]]), "line 6")
    refused(join([*quoted(rows[:5]), ['"0\r1"', *rows[5][1:]]]), "line 6")
    refused(join([*rows[:5], rows[5]], ";") + join(rows[6:], ","), "line 7")


@pytest.mark.parametrize(
    "after",
    ["# recorded 2024-05-01\n", "# frames: 12, clean\n# take 3\n", f"# {','.join(['m'] * 3 + ['-'] * 4 + ['rad'] * 8)}\n"],
)
def test_the_header_is_the_last_comment_that_names_the_columns(clip: dict[str, Any], after: str) -> None:
    order = JOINTS[4:] + JOINTS[:4]
    motion = read(f"# {','.join(ROOT + JOINTS)}\n# {','.join(ROOT + order)}\n{after}".encode() + join(rows_of(clip)))
    assert motion.joint_names == tuple(order)
    same(motion, clip)


def test_a_comment_may_name_the_joints_alone(clip: dict[str, Any]) -> None:
    motion = read(f"# my clip: a walk\n# joints: {', '.join(JOINTS[::-1])}\n".encode() + join(rows_of(clip)))
    assert motion.name_lists["comments.joints"] == tuple(JOINTS[::-1])
    spaced = [name.replace("_", " ").title() for name in JOINTS[::-1]]
    motion = read(
        f"# one walk\n# {', '.join(spaced)}\n# of eight words, that say nothing of any joint\n".encode() + join(rows_of(clip))
    )
    ordered, report = reorder_joints(motion, Robot.load("wildrobot"))
    np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"][:, ::-1])
    assert report is not None
    assert report.key == "comments.line 2"


def test_a_comment_with_other_columns_than_the_rows_is_refused(clip: dict[str, Any]) -> None:
    robot = Robot.load("wildrobot")
    motion = read(f"# {','.join(ROOT + JOINTS[:6])}\n".encode() + join(rows_of(clip)))
    with pytest.raises(MotionRefused, match="names 6 of the robot's 8 joints: it has 13 names for 8 columns"):
        reorder_joints(motion, robot)
    for comment in ("x, y, z, qx, qy, qz, qw, q1, ..., q8", "left_knee_pitch was clipped, left_hip_roll too"):
        assert reorder_joints(read(f"# {comment}\n".encode() + join(rows_of(clip))), robot)[1] is None


@pytest.mark.parametrize("head", ["", ",".join(ROOT + JOINTS) + "\r"])
def test_carriage_returns_end_lines(clip: dict[str, Any], head: str) -> None:
    same(read(head.encode() + join(rows_of(clip), end="\r")), clip)


def test_decimal_commas_between_commas_are_named(clip: dict[str, Any]) -> None:
    for head in ("", ",".join(ROOT + JOINTS) + "\n"):
        data = head.encode() + join(commas(rows_of(clip, "{:.6f}")))
        refused(data, "decimal commas, and commas between them", "semicolons")
