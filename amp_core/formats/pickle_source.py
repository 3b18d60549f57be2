"""The bytes of a pickle, read opcode by opcode with a budget."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import NoReturn

__all__ = ["MAX_TEXT_BYTES", "PickleSource"]

# Text takes up to four bytes a character in memory, so it has less room than bytes have. Protocols 0 to 2 write arrays as text.
MAX_TEXT_BYTES = 24 * 1024 * 1024
MAX_INT_BYTES = 256

_TEXT_OPCODES = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "GLOBAL", "INST"}
    | {"INT", "LONG", "FLOAT", "GET", "PUT", "PERSID"}
)
_INT_OPCODES = frozenset({"LONG1", "LONG4", "INT", "LONG", "FLOAT", "GET", "PUT"})
_REFUSED_OPCODES = {
    "PERSID": "refers to an object outside the file",
    "BINPERSID": "refers to an object outside the file",
    "EXT1": "uses the copyreg extension registry",
    "EXT2": "uses the copyreg extension registry",
    "EXT4": "uses the copyreg extension registry",
    "NEXT_BUFFER": "keeps its arrays outside the file (out-of-band buffers)",
    "READONLY_BUFFER": "keeps its arrays outside the file (out-of-band buffers)",
}
_CODES = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}


class PickleSource(io.BytesIO):
    """The stream that genops reads. It sees each opcode before its argument is read, and refuses while nothing is allocated."""

    def __init__(self, data: bytes, refuse: Callable[[str], NoReturn]) -> None:
        super().__init__(data)
        self._size = len(data)
        self._refuse = refuse
        self._text_budget = MAX_TEXT_BYTES
        self.expects_opcode = True
        self._name = ""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.expects_opcode:
            self.expects_opcode = False
            code = super().read(1)
            if not code:
                self._refuse("it ends before its STOP: the file is cut off")
            self._name = _CODES.get(code, "")
            if not self._name:
                self._refuse(f"byte {self.tell() - 1} is no pickle opcode")
            if self._name in _REFUSED_OPCODES:
                self._refuse(_REFUSED_OPCODES[self._name])
            return code
        assert size is not None
        if size < 0 or size > self._size - self.tell():
            self._refuse(f"{self._name} claims {size} bytes where {self._size - self.tell()} are left: the file is cut off")
        if self._name in _TEXT_OPCODES:
            self._spend(size)
        elif self._name in _INT_OPCODES and size > MAX_INT_BYTES:
            self._refuse(f"an integer of {size} bytes")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        # At most what is left of the budget: a line without an end costs no more than that.
        line = super().readline(self._text_budget + 1)
        if self._name in _INT_OPCODES and len(line) > MAX_INT_BYTES:
            self._refuse(f"a number of {len(line)} digits")
        self._spend(len(line))
        return line

    def _spend(self, size: int) -> None:
        self._text_budget -= size
        if self._text_budget < 0:
            self._refuse(f"it holds more than {MAX_TEXT_BYTES} bytes of text (save it with protocol 4 or 5)")
