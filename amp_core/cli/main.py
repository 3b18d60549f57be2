"""The entry point: one place where every error becomes a message and an exit code.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from types import FrameType
from typing import Annotated, NoReturn

import typer

from amp_core.cli import augment, buckets, clips, dataset, jobs, pull, robots, score, submit, verify
from amp_core.cli.output import fail, forget_output
from amp_core.cli.remote import stop_telling_retries
from amp_core.errors import AmprefError, InputRefused

USAGE = 2
INTERRUPTED = 130
TERMINATED = 143

# The extra that brings each package which the bare install does without.
_EXTRA_OF = {
    "mujoco": "physics",
    "yaml": "physics",
    "celery": "worker",
    "kombu": "worker",
    "redis": "worker",
}

app = typer.Typer(
    name="ampref",
    help="Reference motions that a legged robot can really produce: scored in MuJoCo, locked, verified.",
    epilog="Start with: ampref demo (everything once), ampref score MOTION (no server), ampref up (a server on this machine).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # The plain help needs no rich, which takes longer to import than everything else here.
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ampref {version('ampref')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def register(app: typer.Typer) -> None:
    """Add the verbs that need nothing of the service: a training node and `ampref score` have these."""
    app.command("score")(score.score)
    app.command("buckets")(buckets.buckets)
    app.command("verify")(verify.verify)
    app.command("augment")(augment.augment)
    app.command("submit")(submit.submit)
    app.command("clips")(clips.clips)
    app.command("clip")(clips.clip)
    app.command("jobs")(jobs.jobs)
    app.command("job")(jobs.job)
    app.command("robots")(robots.robots)
    app.add_typer(dataset.app, name="dataset")
    app.command("pull")(pull.pull)


for _package in entry_points(group="ampref.verbs"):
    _package.load()(app)


class MissingExtra(AmprefError):
    """A verb was called whose packages this environment does not have."""

    slug = "missing-extra"
    title = "A part of ampref is not installed"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Errors are printed; nothing but a bug leaves a traceback."""
    command = typer.main.get_command(app)
    forget_output()
    try:
        result = command.main(args=arguments, prog_name="ampref", standalone_mode=False)
    except typer.TyperException as error:  # Wrong usage: typer's own message ends with the line to type for help.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", USAGE))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"amp_core", "ampref_service", "ampref_workers", "ampref_migrations", ""}:
            raise
        extra = _EXTRA_OF.get(package, "service")
        fail(
            MissingExtra(
                f"this needs the package {package!r}, which is not installed here",
                remedy=f"pip install '.[{extra}]' in the checkout that ampref came from, or its wheel with [{extra}]",
            )
        )
        return 1
    except AmprefError as error:
        fail(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        # The disk, a folder's permissions, a lack of descriptors: for the operator to mend, and no bug.
        name = None if error.filename is None else os.fsdecode(error.filename)
        fail(
            InputRefused(
                f"the system refused it: {error.strerror or error}",
                file=name,
                remedy="Check that it exists, that you may use it, and that there is room",
            )
        )
        return 1
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        stop_telling_retries()
        forget_output()
    if result == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return result if isinstance(result, int) else 0


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that temporary files and child processes are cleaned up on the way out.
    raise SystemExit(TERMINATED)


def main() -> NoReturn:
    """The console script."""
    signal.signal(signal.SIGTERM, _on_terminate)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _on_terminate)
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does; there is nobody to tell.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        code = code or 1
    sys.exit(code)
