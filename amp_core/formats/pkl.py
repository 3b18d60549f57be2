"""GMR pickles, read without `pickle`.

A pickle is a program. This reader never runs it: it walks the opcodes that `pickletools.genops` lists, keeps a bounded stack
of plain values, and stands an inert marker in for each of the few names that ordinary clips use (numpy's array and scalar
constructors, `bytes` and a few containers). What any other name would build is an `Opaque` place-holder, which does no harm
under a key that a clip does not need; names of programs (`os.system`, `eval`) are refused wherever they are. Nothing is
imported, called, hashed, compared or printed; arrays are only described here (`RawArray`) and built later, from plain types
and the bytes that are there.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from amp_core.errors import MotionRefused
from amp_core.formats.pickle_source import MAX_TEXT_BYTES, PickleSource
from amp_core.formats.values import KEYS, Opaque, PickledDict, RawArray, describe, quote

__all__ = ["read_pickle", "read_pickled_array"]

# About a number each where a clip is pickled as lists. Walking this many takes seconds.
MAX_OPCODES = 1_000_000
MAX_CONTAINERS = 400_000
MAX_MEMO = 400_000
MAX_STACK = 500_000

_REMEDY = "Save the clip again as .npz, or pickle a plain dict of fps, root_pos, root_rot and dof_pos (numpy arrays)"


class _Mark:
    """The stack's MARK."""


class _Set:
    """A set's place; its members are dropped, since nothing here may be hashed."""


@dataclass(slots=True)
class _Global:
    """A name that is known, and that is never imported."""

    kind: str


@dataclass(slots=True)
class _Dtype:
    """numpy.dtype(spec): the type string, completed with the byte order by BUILD."""

    spec: str
    order: str = "="
    simple: bool = True

    def text(self) -> str:
        return self.order + self.spec if self.simple else "V"


_MULTIARRAY = (
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core._multiarray_umath",
    "numpy._core._multiarray_umath",
)
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("__builtin__", "builtins")

# Whoever loads a file with one of these in it runs a program; no clip has them, not even under a key that nobody reads.
_PROGRAM_MODULES = """
os posix nt ntpath posixpath subprocess _posixsubprocess commands pty sys shutil socket importlib imp pkgutil runpy code codeop
pdb bdb cProfile profile timeit trace doctest unittest pickle _pickle cPickle dill cloudpickle marshal shelve types operator
_operator functools ctypes _ctypes multiprocessing concurrent threading _thread asyncio signal webbrowser platform tempfile io
_io gc inspect ast atexit site venv ensurepip pip setuptools urllib urllib2 urllib3 http requests ftplib smtplib telnetlib
"""
_NUMPY_PROGRAMS = "load loads loadtxt genfromtxt fromfile memmap save savez runstring rundocs exec_command compile"
_INERT_BUILTINS = """
object complex range xrange slice list dict tuple int long float str unicode bool type memoryview buffer Ellipsis NotImplemented
"""
_PROGRAMS = frozenset(_PROGRAM_MODULES.split())

_STUBS: Final[dict[tuple[str, str], str]] = {
    **{(module, "_reconstruct"): "reconstruct" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(module, name): name for module in _BUILTINS for name in ("bytes", "bytearray", "set", "frozenset")},
    ("collections", "OrderedDict"): "dict",
    ("collections", "defaultdict"): "defaultdict",
}


def read_pickle(data: bytes, unique: frozenset[str]) -> dict[str, Any]:
    """The values of the pickled dictionary whose keys are text: numbers, texts, lists, `RawArray`s, and `Opaque` for the rest.

    Args:
      unique: keys that may appear only once.

    Raises:
      MotionRefused: a name of something that could run a program, an opcode that has no place in a clip, a damaged or
        disproportionate file, or something else than a dictionary.
    """
    walker = _Walker(data)
    top = walker.walk()
    if not isinstance(top, PickledDict):
        raise MotionRefused(
            f"the pickle holds {describe(top)}", expected="a dictionary with " + ", ".join(KEYS), remedy=_REMEDY
        )
    return top.fields(unique=unique)


def read_pickled_array(data: bytes) -> RawArray:
    """The array of an object member of an npz, which numpy writes as a pickle.

    Raises:
      MotionRefused: as `read_pickle`, or something else than an array.
    """
    value = _Walker(data).walk()
    if not isinstance(value, RawArray):
        raise MotionRefused(
            f"it holds {describe(value)}",
            expected="an array of text",
            remedy="Save it with np.asarray(names, dtype=str)",
        )
    return value


class _Walker:
    """The bounded, inert stack machine."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0
        self._encode_budget = MAX_TEXT_BYTES

    def refuse(self, what: str) -> NoReturn:
        raise MotionRefused(
            f"the pickle cannot be used: {what}", expected="a pickled dictionary of numbers and numpy arrays", remedy=_REMEDY
        )

    def walk(self) -> Any:
        """The value that the pickle describes."""
        source = PickleSource(self._data, self.refuse)
        steps = pickletools.genops(source)
        count = 0
        while True:
            source.expects_opcode = True
            try:
                opcode, arg, _ = next(steps)
            except StopIteration:
                self.refuse("it ends before its STOP: the file is cut off")
            # A Warning comes from an unknown escape in a protocol 0 string, where warnings are errors.
            except (ValueError, OverflowError, IndexError, Warning) as error:
                self.refuse(f"it is damaged near byte {source.tell()} ({quote(str(error), 80)})")
            count += 1
            if count > MAX_OPCODES:
                self.refuse(f"it has more than {MAX_OPCODES} opcodes (save arrays, not lists)")
            if opcode.name == "STOP":
                break
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                self.refuse(f"it uses {opcode.name}")
            handler(self, arg)
        if len(self._stack) != 1 or self._stack[0] is _Mark:
            self.refuse("it leaves something else than one value behind")
        if source.tell() != len(self._data):
            self.refuse(f"{len(self._data) - source.tell()} bytes follow its end")
        return self._stack[0]

    def check_protocol(self, number: int) -> None:
        if number > 5:
            self.refuse(f"it is of protocol {number}; this reader knows 0 to 5")

    # --- The stack

    def push(self, value: Any) -> None:
        if len(self._stack) >= MAX_STACK:
            self.refuse(f"it stacks more than {MAX_STACK} values")
        self._stack.append(value)

    def container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            self.refuse(f"it holds more than {MAX_CONTAINERS} lists, tuples and dictionaries")
        self.push(value)

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _Mark:
            self.refuse("it takes a value from an empty stack")
        return self._stack.pop()

    def drop(self) -> None:
        """POP, which removes a MARK as well, as the unpickler does."""
        if not self._stack:
            self.refuse("it takes a value from an empty stack")
        self._stack.pop()

    def top(self) -> Any:
        if not self._stack or self._stack[-1] is _Mark:
            self.refuse("it takes a value from an empty stack")
        return self._stack[-1]

    def pop_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _Mark:
                break
        else:
            self.refuse("it closes a group that it did not open")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def memoize(self, index: int) -> None:
        # Picklers count from 0, so a large index is a forgery (and as bytes 2 to 4 of LONG_BINPUT it once cost gigabytes).
        if not 0 <= index < MAX_MEMO:
            self.refuse(f"it numbers a value {index:.3g}, beyond {MAX_MEMO}")
        self._memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self._memo:
            self.refuse(f"it recalls value {index:.6g}, which it never stored")
        self.push(self._memo[index])

    # --- Containers

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Opaque):
            return
        if not isinstance(target, list):
            self.refuse(f"it appends to {describe(target)}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Opaque):
            return
        if not isinstance(target, PickledDict) or len(items) % 2:
            self.refuse(f"it sets items of {describe(target)}")
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def build_dict(self, items: list[Any]) -> None:
        self.container(PickledDict([]))
        self.set_items(items)

    def build_set(self, items: list[Any]) -> None:
        self.container(_Set())

    def add_items(self) -> None:
        self.pop_mark()
        if not isinstance(self.top(), _Set | Opaque):
            self.refuse("it adds to something that is no set")

    # --- Names and what they stand for

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self.refuse("it names something by other means than text")
        kind = _STUBS.get((module, name))
        self.push(_Global(kind) if kind is not None else self.stand_in(module, name))

    def stand_in(self, module: str, name: str) -> Opaque:
        """The place-holder of a name that is not read; a refusal for one that has no place in any clip."""
        quoted_name = quote(module[:61] + "." + name[:61], 120).strip("'")
        if module in ("posix", "nt"):
            quoted_name += f" (os.{quote(name).strip(chr(39))})"
        if module.partition(".")[0] == "joblib":
            raise MotionRefused(
                f"this is a joblib pickle ({quoted_name}): its arrays are raw bytes between the opcodes",
                expected="a plain pickle, .npz, .json or .csv",
                remedy="Load it with joblib where you trust it, and save the arrays with np.savez",
            )
        is_program = name not in _INERT_BUILTINS.split() if module in _BUILTINS else module.partition(".")[0] in _PROGRAMS
        if is_program or (module.partition(".")[0] == "numpy" and name in _NUMPY_PROGRAMS.split()):
            raise MotionRefused(
                f"the pickle calls {quoted_name}; ampref never imports or calls anything that a file names",
                expected="a pickled dictionary of numbers and numpy arrays",
                remedy=_REMEDY,
            )
        return Opaque(quoted_name)

    def global_line(self, arg: str) -> None:
        # genops joins the two lines of GLOBAL with a space.
        module, _, name = arg.partition(" ")
        self.name(module, name)

    def stack_global(self) -> None:
        name = self.pop()
        module = self.pop()
        self.name(module, name)

    def instance(self, arg: str) -> None:
        self.pop_mark()
        module, _, name = arg.partition(" ")
        self.container(self.stand_in(module, name))

    def reduce(self) -> None:
        args = self.pop()
        callee = self.pop()
        if isinstance(callee, Opaque):
            # copyreg only rebuilds the class that is its first argument.
            is_copy = callee.name.startswith(("copyreg.", "copy_reg.")) and isinstance(args, tuple) and args[:1]
            self.container(args[0] if is_copy and isinstance(args[0], Opaque) else Opaque(callee.name))
            return
        if not isinstance(callee, _Global) or not isinstance(args, tuple):
            self.refuse(f"it calls {describe(callee)}")
        self.container(self._call(callee.kind, args))

    def new_object(self, arguments: int) -> None:
        """NEWOBJ and its like, of a class that is not read."""
        for _ in range(arguments):
            self.pop()
        callee = self.pop()
        if not isinstance(callee, Opaque):
            self.refuse("it creates objects of a class (NEWOBJ)")
        self.container(Opaque(callee.name))

    def object_of_group(self) -> None:
        """OBJ: a class and its arguments since the MARK."""
        items = self.pop_mark()
        if not items or not isinstance(items[0], Opaque):
            self.refuse("it creates objects of a class (OBJ)")
        self.container(Opaque(items[0].name))

    def _call(self, kind: str, args: tuple[Any, ...]) -> Any:
        """What the known names would return, as a description."""
        if kind == "defaultdict" and len(args) <= 1:
            return PickledDict([])
        stand_in = next((arg for arg in args if isinstance(arg, Opaque)), None)
        if stand_in is not None and kind not in ("set", "frozenset"):
            return Opaque(stand_in.name)
        if kind == "reconstruct" and len(args) == 3 and isinstance(args[0], _Global) and args[0].kind == "ndarray":
            return RawArray()
        if kind == "dtype" and args and isinstance(args[0], str | bytes):
            spec = args[0].decode("latin-1") if isinstance(args[0], bytes) else args[0]
            return _Dtype(spec[:16])
        if kind == "scalar" and len(args) == 2 and isinstance(args[0], _Dtype):
            return RawArray(args[0].text(), (), False, self._bytes(args[1]))
        if kind == "frombuffer" and len(args) in (4, 5) and isinstance(args[1], _Dtype) and isinstance(args[3], str):
            # Order K permutes the axes of arrays of three dimensions and more, which no clip key has.
            data = self._bytes(args[0]) if args[3] in ("C", "F") else None
            return RawArray(args[1].text(), self._shape(args[2]), args[3] == "F", data)
        if kind == "encode" and len(args) in (1, 2) and isinstance(args[0], str):
            if len(args) == 2 and args[1] not in ("latin1", "latin-1", "iso-8859-1"):
                self.refuse("it encodes bytes in an unusual way")
            content = self._bytes(args[0])
            if content is None:
                self.refuse("it encodes text that is no bytes")
            return content
        if kind in ("bytes", "bytearray") and len(args) <= 2:
            # bytearray(text, "latin-1") is how protocols 0 to 2 write one.
            raw = self._bytes(args[0]) if args else b""
            if raw is not None and (len(args) < 2 or args[1] in ("latin1", "latin-1")):
                return raw
        if kind in ("set", "frozenset"):
            return _Set()
        if kind != "dict" or args:
            self.refuse(f"it calls numpy's or Python's {kind} in a way that no clip does")
        return PickledDict([])

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Opaque):
            return
        if isinstance(target, _Dtype) and isinstance(state, tuple) and len(state) >= 8:
            if state[1] not in ("<", ">", "|", "="):
                self.refuse("an array's type has an unusual byte order")
            target.order = "=" if state[1] == "|" else state[1]
            target.simple = all(part is None for part in state[2:5])
            return
        if isinstance(target, RawArray) and not target.dtype and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, fortran, raw = state[-4:]
            if isinstance(dtype, Opaque):
                target.dtype = "V"
                return
            if isinstance(dtype, _Dtype) and isinstance(fortran, bool | int):
                target.dtype, target.shape, target.fortran = dtype.text(), self._shape(shape), bool(fortran)
                if isinstance(raw, list):
                    target.items = raw
                else:
                    target.data = self._bytes(raw)
                return
        self.refuse(f"it sets the state of {describe(target)}")

    def _bytes(self, raw: Any) -> bytes | bytearray | None:
        """An array's bytes, or None where there is something else (an object array has a list).

        Protocols 0 to 2 and Python 2 write bytes as text, one character each. Encoding it makes a copy, and a value that was
        remembered can be encoded any number of times, so copies have a budget.
        """
        if isinstance(raw, bytes | bytearray):
            return raw
        if not isinstance(raw, str):
            return None
        self._encode_budget -= len(raw)
        if self._encode_budget < 0:
            self.refuse(f"it encodes more than {MAX_TEXT_BYTES} bytes of text")
        try:
            return raw.encode("latin-1")
        except UnicodeEncodeError:
            return None

    def _shape(self, shape: Any) -> tuple[int, ...]:
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            self.refuse("an array's shape is damaged")
        return shape


_Handler = Callable[[_Walker, Any], object]


def _constant(value: Any) -> _Handler:
    return lambda walker, _: walker.push(value)


def _tuple(size: int) -> _Handler:
    def handler(walker: _Walker, _: Any) -> None:
        items = [walker.pop() for _ in range(size)]
        walker.container(tuple(reversed(items)))

    return handler


_HANDLERS: Final[dict[str, _Handler]] = {
    "PROTO": lambda walker, arg: walker.check_protocol(arg),
    "FRAME": lambda walker, _: None,
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Walker.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"), _Walker.push),
    **dict.fromkeys(("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Walker.push),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(_Mark),
    "EMPTY_LIST": lambda walker, _: walker.container([]),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_DICT": lambda walker, _: walker.container(PickledDict([])),
    "EMPTY_SET": lambda walker, _: walker.container(_Set()),
    "LIST": lambda walker, _: walker.container(walker.pop_mark()),
    "TUPLE": lambda walker, _: walker.container(tuple(walker.pop_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "DICT": lambda walker, _: walker.build_dict(walker.pop_mark()),
    "APPEND": lambda walker, _: walker.append([walker.pop()]),
    "APPENDS": lambda walker, _: walker.append(walker.pop_mark()),
    "SETITEM": lambda walker, _: walker.set_items([walker.pop(), walker.pop()][::-1]),
    "SETITEMS": lambda walker, _: walker.set_items(walker.pop_mark()),
    "ADDITEMS": lambda walker, _: walker.add_items(),
    "FROZENSET": lambda walker, _: walker.build_set(walker.pop_mark()),
    "POP": lambda walker, _: walker.drop(),
    "POP_MARK": lambda walker, _: walker.pop_mark(),
    "DUP": lambda walker, _: walker.push(walker.top()),
    "PUT": lambda walker, arg: walker.memoize(arg),
    "BINPUT": lambda walker, arg: walker.memoize(arg),
    "LONG_BINPUT": lambda walker, arg: walker.memoize(arg),
    "MEMOIZE": lambda walker, _: walker.memoize(len(walker._memo)),
    "GET": lambda walker, arg: walker.recall(arg),
    "BINGET": lambda walker, arg: walker.recall(arg),
    "LONG_BINGET": lambda walker, arg: walker.recall(arg),
    "GLOBAL": lambda walker, arg: walker.global_line(arg),
    "STACK_GLOBAL": lambda walker, _: walker.stack_global(),
    "INST": lambda walker, arg: walker.instance(arg),
    "OBJ": lambda walker, _: walker.object_of_group(),
    "NEWOBJ": lambda walker, _: walker.new_object(1),
    "NEWOBJ_EX": lambda walker, _: walker.new_object(2),
    "REDUCE": lambda walker, _: walker.reduce(),
    "BUILD": lambda walker, _: walker.build(),
}
