"""One command line from its words to its exit code: every error becomes a message."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer import Option

from amp_core.cli.exit_codes import FAILED, INTERRUPTED, TERMINATED, USAGE
from amp_core.cli.group import VerbGroup
from amp_core.cli.output import Output
from amp_core.errors import AmprefError, InputRefused

app = typer.Typer(
    name="ampref",
    cls=VerbGroup,
    help="Reference motions that a legged robot can really produce: scored in MuJoCo, locked, verified.",
    epilog="Start with: ampref demo (everything once), ampref score MOTION (no server), ampref up (a server on this machine).",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    add_completion=False,
    rich_markup_mode=None,  # The plain help needs no rich, which takes longer to import than everything else here.
    pretty_exceptions_enable=False,
)


_FAULTS = {
    "int_parsing": "{input!r} is not a whole number",
    "float_parsing": "{input!r} is not a number",
    "greater_than_equal": "{input} is less than {ge}",
    "less_than_equal": "{input} is more than {le}",
}
"""What is wrong with a value, by the type of pydantic's error."""


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ampref {version('ampref')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _reword(error: typer.TyperException, arguments: Sequence[str]) -> None:
    """Replace pydantic's message about a value, which does not repeat it; explain a file that looks like an option."""
    dash_file = next((word for word in arguments if word.startswith("-") and os.path.isfile(word)), None)
    if dash_file is not None and getattr(error, "option_name", None):
        error.message += f" (for the file: ./{dash_file})"
    if list_errors := getattr(error.__cause__, "errors", None):
        details = list_errors()[0]
        text = _FAULTS.get(details["type"], details["msg"].removeprefix("Value error, ").replace("{", "{{").replace("}", "}}"))
        error.message = text.format(input=details["input"], **details.get("ctx", {}))


def _call_verb(arguments: Sequence[str] | None) -> Any:
    """Call typer. A C library whose import Ctrl-C cuts short raises an error of its own; that is an interruption, too."""
    try:
        return typer.main.get_command(app).main(args=arguments, prog_name="ampref", standalone_mode=False)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                return INTERRUPTED
            cause = cause.__cause__ or cause.__context__
        raise


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Errors are printed; nothing but a bug leaves a traceback."""
    Output.latest = None
    try:
        result = _call_verb(arguments)
    except typer.TyperException as error:  # Wrong usage: typer's own message ends with the line to type for help.
        show = getattr(error, "show", None)
        if show is None:
            raise
        _reword(error, sys.argv[1:] if arguments is None else arguments)
        show()
        return int(getattr(error, "exit_code", USAGE))
    except BrokenPipeError:
        raise
    except (AmprefError, OSError) as error:
        if isinstance(error, OSError):
            # The disk, a folder's permissions, a lack of descriptors: for the operator to mend, and no bug.
            error = InputRefused(
                f"the system refused it: {error.strerror or error}",
                file=None if error.filename is None else os.fsdecode(error.filename),
                remedy="Check that it exists, that you may use it, and that there is room",
            )
        (Output.latest or Output()).fail(error)
        return FAILED
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    finally:
        Output.latest = None
    if result == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return result if isinstance(result, int) else 0


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that temporary files and child processes are cleaned up on the way out.
    raise SystemExit(TERMINATED)


def _mend_streams() -> None:
    """Let everything be printed: to a closed stream, in a locale of ASCII, with the name of a file that is no text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # It was closed; a file that is opened later would get its number.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> NoReturn:
    """The console script."""
    _mend_streams()
    signal.signal(signal.SIGTERM, _on_terminate)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _on_terminate)
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does, so that no message would arrive.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        code = code or FAILED
    sys.exit(code)
