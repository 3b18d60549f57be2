"""What an ONNX file says of itself, read before anything runs it: inputs, outputs, metadata, and what it would need.

An ONNX file is a protobuf message (onnx.proto of the ONNX project). It is walked here with a bounded number of steps; weights
are passed over and nothing is allocated for them. Refused are files that name data outside themselves and operators that only
a library of their own could bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from amp_core.digests import digest_of
from amp_core.errors import PolicyRefused

__all__ = ["MAX_MODEL_BYTES", "ModelFile", "TensorInfo"]

MAX_MODEL_BYTES = 128 * 1024 * 1024
_MAX_FIELDS = 2_000_000
_MAX_DEPTH = 48
_MAX_TEXT = 1 << 20
_MAX_METADATA = 256
_MAX_VALUES = 256
"""Inputs, or outputs, of a graph."""

# The messages inside a message, by the number of their field.
_INNER_KINDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "opset", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
}
_DOMAINS = frozenset(["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
"""Of the operators that onnxruntime brings itself."""
_TYPES = {1: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_EXTERNAL = 1


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Args:
      dtype: numpy's name; `type N` for one that no policy has.
      shape: sizes, None where the model leaves one open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class ModelFile:
    """A model's bytes and what they declare.

    Args:
      digest: `sha256:…`.
      inputs, outputs: in the model's order; inputs that have a value in the file itself left out.
      metadata: of the file, such as the joints' names.
    """

    file: str
    data: bytes = field(repr=False)
    digest: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read a file.

        Raises:
          PolicyRefused: it cannot be read, is larger than `MAX_MODEL_BYTES`, is no ONNX model, keeps data in other files, or
            has operators of a domain that onnxruntime does not bring.
        """
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_MODEL_BYTES + 1)
        except OSError as error:
            raise PolicyRefused(
                f"cannot be read: {error.strerror or error}", file=str(path), expected="a policy as an .onnx file"
            ) from error
        if len(data) > MAX_MODEL_BYTES:
            raise PolicyRefused(
                f"the model has over {MAX_MODEL_BYTES >> 20} MiB",
                file=str(path),
                expected="a policy, such as a network of some million weights",
                remedy="Export the actor alone, without the motions",
            )
        return _Walk(data, str(path)).run()


class _Walk:
    """One pass over the messages of a file."""

    def __init__(self, data: bytes, file: str) -> None:
        self._data, self._view, self._file = data, memoryview(data), file
        self._fields = 0
        self._inputs: list[TensorInfo] = []
        self._outputs: list[TensorInfo] = []
        self._initial_values: set[str] = set()
        self._metadata: dict[str, str] = {}
        self._domains: dict[str, str] = {}
        self._function_domains: set[str] = set()
        self._has_opset = False

    def run(self) -> ModelFile:
        start = bytes(self._view[:64]).lstrip()
        if start.startswith(b"version https://git-lfs"):
            self._refuse("a Git LFS pointer instead of the file", remedy="Run git lfs pull")
        if start[:2] == b"PK" or start[:1] == b"\x80":
            self._refuse("the file is no ONNX model but an archive or a pickle, such as a PyTorch checkpoint")
        # The parts of the main graph are two deep.
        stack: list[tuple[memoryview, str, int]] = [(self._view, "model", 0)]
        while stack:
            message, kind, depth = stack.pop()
            if depth > _MAX_DEPTH:
                self._refuse(f"graphs are nested over {_MAX_DEPTH} deep", "a network of layers")
            inner_kinds = _INNER_KINDS.get(kind, {})
            for number, value in self._iterate_fields(message):
                inner = inner_kinds.get(number)
                if inner is not None:
                    if not isinstance(value, memoryview):
                        self._refuse("the file is damaged, or no ONNX model")
                    stack.append((value, inner, depth + 1))
            self._take(message, kind, depth == 2)
        if not self._has_opset or not self._outputs:
            self._refuse("the file is no ONNX model: it declares no graph with outputs")
        for domain, operator in self._domains.items():
            if domain not in _DOMAINS | self._function_domains:
                self._refuse(
                    f"the operator {operator!r} is of the domain {domain!r}, which needs a library of its own",
                    "operators of ONNX or onnxruntime: libraries of operators are never loaded",
                )
        inputs = tuple(value for value in self._inputs if value.name not in self._initial_values)
        return ModelFile(self._file, self._data, digest_of(self._data), inputs, tuple(self._outputs), self._metadata)

    def _take(self, message: memoryview, kind: str, is_top: bool) -> None:
        """Note what a message says; `is_top` for a part of the main graph."""
        if kind == "opset":
            self._has_opset = True
        elif kind == "entry" and len(self._metadata) < _MAX_METADATA:
            entry = self._read_texts(message, (1, 2))
            self._metadata[entry.get(1, "")] = entry.get(2, "")
        elif kind == "tensor":
            if any(number == 13 or (number == 14 and value == _EXTERNAL) for number, value in self._iterate_fields(message)):
                self._refuse(
                    "the model keeps weights in another file", "one file with everything", "Export it without external data"
                )
            if is_top:
                self._initial_values.add(self._read_texts(message, (8,)).get(8, ""))
        elif kind == "node":
            node = self._read_texts(message, (4, 7))
            self._domains.setdefault(node.get(7, ""), node.get(4, ""))
        elif kind == "function":
            self._function_domains.add(self._read_texts(message, (10,)).get(10, ""))
        elif kind in ("input", "output") and is_top:
            values = self._inputs if kind == "input" else self._outputs
            # From the end: the walk takes the parts of a graph in reverse.
            values.insert(0, self._read_value(message))
            if len(values) > _MAX_VALUES:
                self._refuse(f"the model has over {_MAX_VALUES} {kind}s")

    def _read_value(self, message: memoryview) -> TensorInfo:
        name, dtype, shape = "", "type 0", list[int | None]()
        for number, value in self._iterate_fields(message):
            if number == 1:
                name = self._decode(value)
            elif number == 2 and isinstance(value, memoryview):
                for tensor_number, tensor in self._iterate_fields(value):
                    if tensor_number != 1 or not isinstance(tensor, memoryview):
                        self._refuse(f"{name!r} is no tensor", "tensors as inputs and outputs")
                    for key, part in self._iterate_fields(tensor):
                        if key == 1 and isinstance(part, int):
                            dtype = _TYPES.get(part, f"type {part}")
                        elif key == 2 and isinstance(part, memoryview):
                            shape = [self._read_size(size) for n, size in self._iterate_fields(part) if n == 1]
        return TensorInfo(name, dtype, tuple(shape))

    def _read_size(self, message: memoryview | int) -> int | None:
        if isinstance(message, int):
            self._refuse("the file is damaged, or no ONNX model")
        sizes = [value for number, value in self._iterate_fields(message) if number == 1 and isinstance(value, int)]
        return sizes[-1] if sizes and 0 < sizes[-1] < 1 << 31 else None

    def _read_texts(self, message: memoryview, numbers: tuple[int, ...]) -> dict[int, str]:
        return {number: self._decode(value) for number, value in self._iterate_fields(message) if number in numbers}

    def _decode(self, value: memoryview | int) -> str:
        if isinstance(value, int) or len(value) > _MAX_TEXT:
            self._refuse("the file is damaged, or no ONNX model")
        return bytes(value).decode("utf-8", "replace")

    def _iterate_fields(self, message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """The number and value of each field: an integer, or the bytes of text, numbers or a message."""
        position, end = 0, len(message)
        while position < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                self._refuse(f"the file has over {_MAX_FIELDS:,} fields", "a network of layers, its weights as raw data")
            tag, position = self._read_varint(message, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 0:
                integer, position = self._read_varint(message, position)
                yield number, integer
                continue
            if wire_type == 2:
                length, position = self._read_varint(message, position)
            elif wire_type in (1, 5):
                length = 8 if wire_type == 1 else 4
            else:
                self._refuse("the file is no ONNX model, or damaged")
            if number == 0 or position + length > end:
                self._refuse("the file is no ONNX model, or was cut off")
            if wire_type == 2:
                yield number, message[position : position + length]
            position += length

    def _read_varint(self, message: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(message):
                break
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        return self._refuse("the file is no ONNX model, or was cut off")

    def _refuse(self, what: str, expected: str = "a policy as an .onnx file", remedy: str | None = None) -> NoReturn:
        raise PolicyRefused(what, file=self._file, expected=expected, remedy=remedy or "Export the policy to ONNX again")
