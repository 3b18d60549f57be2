"""A reader: a child process that parses motion files for the API, one at a time, until its parent ends.

    python -P -m ampref_service.reader_child SOCKET PARENT MEMORY_MB FILE_MB

Requests and answers are JSON objects, one a line, on the socket whose descriptor is SOCKET; the files of a request, opened by
the parent, come with it. A request names its `task`, a key of `TASKS`. An answer has `result`, or says why there is none:

    refused      an error of `amp_core.errors`, as `{"class": …}` with its facts
    memory       true: the file needs more than MEMORY_MB
    os_error     the number of an error of the disk
    traceback    of a fault of this program

and always `resident_mb`: the MiB that are resident now. A file that takes longer than the request's `cpu_sec` ends this process
by SIGPROF. It uses no database, broker or blob store.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from amp_core import errors
from amp_core.augment import Augmentation, make_variant
from amp_core.children import limit_process, tie_to_parent
from amp_core.formats import Limits, Lineage, Motion, check_proportion, read_motion
from amp_core.motion import check_controls, check_motion
from amp_core.robot import Robot, find_robot
from amp_core.strict_json import format_json

__all__ = ["TASKS", "serve"]

_MAX_FILES = 64
_OPEN_FILES = 256
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FACTS = ("what", "file", "key", "frame", "expected", "remedy")

_robots: dict[str, Robot] = {}


def main() -> None:
    descriptor, parent, memory_mb, file_mb = map(int, sys.argv[1:])
    tie_to_parent(parent)
    limit_process(memory_mb=memory_mb, file_mb=file_mb, open_files=_OPEN_FILES)
    faulthandler.enable()  # A segfault then leaves the Python stack in the service's log.
    serve(socket.socket(fileno=descriptor), TASKS)


def serve(connection: socket.socket, tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Say that this process is ready, and answer requests until the connection ends."""
    connection.sendall(b"ready\n")
    while True:
        line, descriptors = b"", list[int]()
        while not line.endswith(b"\n"):
            data, received, _, _ = socket.recv_fds(connection, 1 << 16, _MAX_FILES)
            if not data:
                return
            line += data
            descriptors += received
        files = [os.fdopen(descriptor, "r+b") for descriptor in descriptors]
        answer = _answer(json.loads(line), files, tasks)
        for file in files:
            file.close()
        connection.sendall(format_json(answer | {"resident_mb": _give_back_memory()}, ensure_ascii=True).encode() + b"\n")


def _answer(request: dict[str, Any], files: Sequence[BinaryIO], tasks: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, request.pop("cpu_sec"))
    try:
        return {"result": tasks[request.pop("task")](*files, **request)}
    except errors.AmprefError as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return {"refused": {"class": kind.__name__} | {name: getattr(error, name) for name in _FACTS}}
    except MemoryError:
        return {"memory": True}
    except OSError as error:
        return {"os_error": error.errno}
    except Exception as error:
        return {"traceback": "".join(traceback.format_exception(error))}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _give_back_memory() -> int:
    """Return what is free to the system; MiB that are still resident, 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE >> 20


def read_clip(
    file: BinaryIO,
    *,
    robot: Mapping[str, Any],
    limits: Mapping[str, Any],
    name: str,
    format: str | None,
    options: dict[str, Any],
    mode: str,
) -> dict[str, Any]:
    """Read and check a motion for a robot and the mode that it is to be scored in; the facts of the clip that it becomes."""
    checked_limits, data = Limits(**limits), _read_all(file)
    motion = read_motion(data, name=name, format=format, limits=checked_limits, **options)
    check_proportion(data, motion)
    model = _load_robot(**robot)
    check_motion(motion, model, checked_limits)
    check_controls(motion, model, mode)
    return _describe(motion, len(data))


def make_variants(
    file: BinaryIO,
    *outputs: BinaryIO,
    robot: Mapping[str, Any],
    limits: Mapping[str, Any],
    name: str,
    format: str,
    options: dict[str, Any],
    lineage: Mapping[str, str] | None,
    augmentations: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Make variants of a clip, each into a file of `outputs`; the facts, the name and the seam of each.

    Args:
      lineage: of the clip, as the catalog has it: the word of the file counts for nothing.
    """
    checked_limits, model = Limits(**limits), _load_robot(**robot)
    source = _read_source(file, checked_limits, name, format, options, lineage)
    results = []
    for fields, output in zip(augmentations, outputs, strict=True):
        variant = make_variant(source, model, Augmentation(**fields))
        if len(variant.data) > checked_limits.max_bytes:
            raise errors.MotionRefused(
                f"the variant {variant.augmentation.text} has {len(variant.data):,} bytes",
                key="augmentations",
                expected=f"at most {checked_limits.max_bytes:,}",
                remedy="Loop it fewer times",
            )
        # As an upload would be: a variant that is too long or leaves what the robot can do is refused here.
        check_motion(variant.motion, model, checked_limits)
        output.write(variant.data)
        output.flush()
        seam = variant.seam and dataclasses.asdict(variant.seam)
        results.append({"facts": _describe(variant.motion, len(variant.data)), "name": variant.motion.name, "seam": seam})
    return results


def is_variant(
    file: BinaryIO,
    *,
    robot: Mapping[str, Any],
    limits: Mapping[str, Any],
    name: str,
    format: str,
    options: dict[str, Any],
    lineage: Mapping[str, str] | None,
    augmentation: str,
    digest: str,
) -> bool:
    """Whether a variant of a clip, made by the text of its augmentation, has the bytes of a digest."""
    source = _read_source(file, Limits(**limits), name, format, options, lineage)
    try:
        variant = make_variant(source, _load_robot(**robot), Augmentation.parse(augmentation))
    except errors.InputRefused:
        return False
    return variant.motion.source_digest == digest


TASKS: Mapping[str, Callable[..., Any]] = {"read_clip": read_clip, "make_variants": make_variants, "is_variant": is_variant}


def _read_source(
    file: BinaryIO, limits: Limits, name: str, format: str, options: dict[str, Any], lineage: Mapping[str, str] | None
) -> Motion:
    """A clip that variants are made from, with the lineage that the catalog has of it."""
    motion = read_motion(_read_all(file), name=name, format=format, limits=limits, **options)
    return dataclasses.replace(motion, lineage=Lineage(**lineage) if lineage else None)


def _read_all(file: BinaryIO) -> bytes:
    # The parent has the same file open, and with it the same position.
    file.seek(0)
    return file.read()


def _describe(motion: Motion, size: int) -> dict[str, Any]:
    return {
        "source_digest": motion.source_digest,
        "source_format": motion.source_format,
        "size": size,
        "frames_in": motion.num_frames,
        "fps_in": motion.fps,
        "duration_sec": motion.duration_sec,
        "lineage": motion.lineage and dataclasses.asdict(motion.lineage),
    }


def _load_robot(name: str, digest: str, paths: Sequence[str]) -> Robot:
    """The robot as the API has it; raises `Unavailable` where its files have changed since the API was started."""
    if name not in _robots or _robots[name].digest != digest:
        robot = find_robot(name, paths)
        if robot is None or robot.digest != digest:
            raise errors.Unavailable(
                f"the files of the robot {name!r} are others than when this service was started",
                expected=digest,
                remedy="Restart the service, and its workers, so that all have the same robot",
            )
        _robots[name] = robot
    return _robots[name]


if __name__ == "__main__":
    main()
