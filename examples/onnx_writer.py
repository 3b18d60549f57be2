"""Writes small ONNX models without the package `onnx`: protobuf messages by hand, of the few fields that a network needs.

    layers = [node("MatMul", ["obs", "W"], ["y"]), node("Tanh", ["y"], ["actions"])]
    model(layers, [value("obs", [1, 4])], [value("actions", [1, 2])], {"W": weights})

Numbers of fields are those of onnx.proto, which the ONNX project publishes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OPSET = 17
IR_VERSION = 8
TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float64": 11}


def model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    weights: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    domains: Sequence[str] = ("",),
) -> bytes:
    """A whole file.

    Args:
      nodes, inputs, outputs: of `node` and `value`.
      weights: constants of the graph by name.
      metadata: texts of the file by key.
      domains: of the operators that it uses.
    """
    opsets = [_field(8, _field(1, domain.encode()) + _field(2, OPSET)) for domain in domains]
    entries = [_field(14, _field(1, key.encode()) + _field(2, text.encode())) for key, text in (metadata or {}).items()]
    return b"".join([_field(1, IR_VERSION), *opsets, _field(7, graph(nodes, inputs, outputs, weights or {})), *entries])


def graph(nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Mapping[str, Any]) -> bytes:
    """A graph: that of a model, or the body of a loop."""
    parts = [_field(1, part) for part in nodes] + [_field(2, b"graph")]
    parts += [_field(5, tensor(name, array)) for name, array in weights.items()]
    parts += [_field(11, part) for part in inputs] + [_field(12, part) for part in outputs]
    return b"".join(parts)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any) -> bytes:
    """An operator; attributes are numbers, tensors (`numpy` arrays), or graphs (bytes)."""
    parts = [_field(1, name.encode()) for name in inputs] + [_field(2, name.encode()) for name in outputs]
    parts += [_field(4, operator.encode()), _field(7, domain.encode())]
    return b"".join(parts + [_field(5, _attribute(name, value)) for name, value in attributes.items()])


def value(name: str, shape: Sequence[int | str], dtype: str = "float32") -> bytes:
    """An input or output; a text in its shape is a size that is left open."""
    sizes = [_field(1, _field(2, size.encode()) if isinstance(size, str) else _field(1, size)) for size in shape]
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, TYPES[dtype]) + _field(2, b"".join(sizes))))


def tensor(name: str, array: Any, external: str | None = None) -> bytes:
    """A constant; `external` names a file beside the model that would hold its numbers."""
    array = np.asarray(array)
    parts = [_field(1, size) for size in array.shape] + [_field(2, TYPES[array.dtype.name]), _field(8, name.encode())]
    if external is None:
        return b"".join([*parts, _field(9, np.ascontiguousarray(array).tobytes())])
    return b"".join([*parts, _field(13, _field(1, b"location") + _field(2, external.encode())), _field(14, 1)])


def _attribute(name: str, content: Any) -> bytes:
    head = _field(1, name.encode())
    if isinstance(content, float):
        return head + _tag(2, 5) + struct.pack("<f", content) + _field(20, 1)
    if isinstance(content, int):
        return head + _field(3, content) + _field(20, 2)
    if isinstance(content, bytes):
        return head + _field(6, content) + _field(20, 5)
    if isinstance(content, np.ndarray):
        return head + _field(5, tensor("", content)) + _field(20, 4)
    return head + b"".join(_field(8, entry) for entry in content) + _field(20, 7)


def _field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return _tag(number, 0) + _varint(content)
    return _tag(number, 2) + _varint(len(content)) + content


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # Negative numbers have ten bytes.
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
