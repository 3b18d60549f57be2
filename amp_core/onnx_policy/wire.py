"""Messages between a run and the child that holds its policy: a JSON object and some arrays.

A message is two lengths (little-endian, 4 bytes each), the JSON and the arrays' bytes one after another. The JSON's `arrays`
lists name, type and shape of each. The receiver checks all of it before it allocates: the other side may be under the control
of a file.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BrokenMessage", "ConnectionEnded", "receive", "send"]

_LENGTHS = struct.Struct("<2L")
_MAX_JSON = 1 << 18
_MAX_ARRAYS = 64
_TYPES = frozenset(["float16", "float32", "float64", "int32", "int64", "uint8"])


class ConnectionEnded(Exception):
    """The other side has closed the connection."""


class BrokenMessage(Exception):
    """What came is no such message."""


def send(connection: socket.socket, message: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Send a message; raises `OSError` where the other side is gone."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    text = json.dumps({**message, "arrays": layout}).encode()
    payload = b"".join(array.tobytes() for array in arrays.values())
    connection.sendall(_LENGTHS.pack(len(text), len(payload)) + text + payload)


def receive(connection: socket.socket, max_bytes: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The next message and its arrays.

    Args:
      max_bytes: of all arrays together.

    Raises:
      ConnectionEnded: there is none.
      BrokenMessage: it is larger than that, or not what it says.
    """
    text_size, payload_size = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    if text_size > _MAX_JSON or payload_size > max_bytes:
        raise BrokenMessage(f"a message of {text_size + payload_size} bytes")
    text, payload = _read(connection, text_size), _read(connection, payload_size)
    try:
        message = json.loads(text)
        layout = message.pop("arrays")
        if len(layout) > _MAX_ARRAYS:
            raise BrokenMessage(f"{len(layout)} arrays")
        arrays, position = {}, 0
        for name, dtype, shape in layout:
            if dtype not in _TYPES or any(not isinstance(size, int) or size < 0 for size in shape):
                raise BrokenMessage(f"an array of type {dtype!r:.40}")
            end = position + math.prod(shape) * np.dtype(dtype).itemsize
            arrays[str(name)] = np.frombuffer(payload[position:end], dtype).reshape(shape)
            position = end
        if position != len(payload):
            raise BrokenMessage("arrays of another size than it says")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenMessage(f"{type(error).__name__}: {error}"[:200]) from None
    return message, arrays


def _read(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionEnded
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
