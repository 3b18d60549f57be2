"""What an ONNX file says, and files that are none, or that would need more than they hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policykit import endless_model, linear_model, onnx

from amp_core.errors import PolicyRefused
from amp_core.onnx_policy import ModelFile, model_file


def read(folder: Path, data: bytes) -> ModelFile:
    path = folder / "policy.onnx"
    path.write_bytes(data)
    return ModelFile.read(path)


def test_inputs_outputs_and_metadata_are_those_that_onnxruntime_sees(tmp_path: Path) -> None:
    data = linear_model(np.eye(4)[:, :3], inputs={"time_step": [1, "n"]}, metadata={"joint_names": "a,b", "empty": ""})
    model = read(tmp_path, data)
    session = onnxruntime.InferenceSession(data)
    assert [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in model.inputs] == [
        ("obs", "float32", [1, 4]),
        ("time_step", "float32", [1, None]),
    ]
    assert [value.name for value in session.get_inputs()] == [tensor.name for tensor in model.inputs]
    assert [(tensor.name, tensor.shape) for tensor in model.outputs] == [("actions", (1, 3))]
    assert dict(model.metadata) == session.get_modelmeta().custom_metadata_map == {"joint_names": "a,b", "empty": ""}


def test_inputs_with_a_value_in_the_file_are_no_inputs(tmp_path: Path) -> None:
    nodes = [onnx.node("MatMul", ["obs", "W"], ["actions"])]
    inputs = [onnx.value("W", [4, 3]), onnx.value("obs", [1, 4])]
    model = read(tmp_path, onnx.model(nodes, inputs, [onnx.value("actions", [1, 3])], {"W": np.zeros((4, 3), np.float32)}))
    assert [tensor.name for tensor in model.inputs] == ["obs"]


def test_weights_in_another_file_are_refused_wherever_they_are(tmp_path: Path) -> None:
    secret = tmp_path / "weights.bin"
    secret.write_bytes(bytes(48))
    outside = onnx.tensor("W", np.zeros((4, 3), np.float32), external="weights.bin")
    graph = onnx.graph([onnx.node("MatMul", ["obs", "W"], ["actions"])], [onnx.value("obs", [1, 4])], [], {})
    as_initial_value = onnx._field(7, graph + onnx._field(5, outside) + onnx._field(12, onnx.value("actions", [1, 3])))
    constant = onnx._field(1, b"W") + onnx._field(5, outside) + onnx._field(20, 4)
    node = onnx.node("Constant", [], ["W"]) + onnx._field(5, constant)
    as_constant = onnx._field(7, onnx.graph([node], [onnx.value("obs", [1, 4])], [onnx.value("W", [4, 3])], {}))
    inner = onnx._field(1, b"body") + onnx._field(6, onnx.graph([node], [], [], {})) + onnx._field(20, 5)
    loop = onnx.node("Loop", ["", "", "obs"], ["actions"]) + onnx._field(5, inner)
    in_a_loop = onnx._field(7, onnx.graph([loop], [onnx.value("obs", [1, 4])], [onnx.value("actions", [1, 4])], {}))
    opset = onnx._field(8, onnx._field(2, 17))
    for body in (as_initial_value, as_constant, in_a_loop):
        with pytest.raises(PolicyRefused, match="keeps weights in another file"):
            read(tmp_path, opset + body)


def test_operators_of_a_library_are_refused(tmp_path: Path) -> None:
    nodes = [onnx.node("Run", ["obs"], ["actions"], domain="com.example")]
    data = onnx.model(nodes, [onnx.value("obs", [1, 4])], [onnx.value("actions", [1, 4])], domains=("", "com.example"))
    with pytest.raises(PolicyRefused, match=r"'Run' is of the domain 'com\.example'"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "declares no graph"),
        (b"observation:\n- kind: joint_pos\n", "no ONNX model"),
        (b"PK\x03\x04policy", "an archive or a pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (linear_model(np.eye(4))[:-7], "cut off"),
        (b"\x80\x02ctorch", "an archive or a pickle"),
    ],
)
def test_other_files_are_refused(data: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match=text) as caught:
        read(tmp_path, data)
    assert caught.value.file == str(tmp_path / "policy.onnx")


def test_a_missing_file_a_folder_and_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(PolicyRefused, match="cannot be read"):
            ModelFile.read(path)
    monkeypatch.setattr(model_file, "MAX_MODEL_BYTES", 100)
    with pytest.raises(PolicyRefused, match="the model has over"):
        read(tmp_path, linear_model(np.eye(8)))


def test_graphs_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    body = onnx.graph([], [], [], {})
    for _ in range(60):
        attribute = onnx._field(1, b"body") + onnx._field(6, body) + onnx._field(20, 5)
        body = onnx.graph([onnx.node("Loop", [], []) + onnx._field(5, attribute)], [], [], {})
    with pytest.raises(PolicyRefused, match="nested over"):
        read(tmp_path, onnx._field(8, onnx._field(2, 17)) + onnx._field(7, body))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), length=st.integers(0, 10_000))
def test_damaged_files_are_refused_or_read(place: int, byte: int, length: int, tmp_path: Path) -> None:
    data = bytearray(endless_model())
    data[place % len(data)] = byte
    with contextlib.suppress(PolicyRefused):
        assert read(tmp_path, bytes(data[: max(1, length % (len(data) + 1))])).outputs
