"""`ampref pull`: a locked version onto this machine, verified. Works with the bare install, on a training node."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from amp_core.cli.options import Json, Quiet, Url
from amp_core.cli.output import Output
from amp_core.cli.remote import note_retries
from amp_core.cli.text import counted, size
from amp_core.client import pull as pull_version


def pull(
    spec: Annotated[str, Argument(metavar="NAME==VERSION", help="A version; or NAME@ALIAS, or NAME for the latest one.")],
    url: Url = None,
    manifest_sha256: Annotated[
        str | None, Option(metavar="DIGEST", help="The version's digest from an earlier pull; anything else is refused.")
    ] = None,
    cache_dir: Annotated[
        Path | None, Option(help="Where versions are kept; overrides AMPREF_CACHE, default ~/.cache/ampref.")
    ] = None,
    to: Annotated[Path | None, Option(metavar="DIR", help="Also copy the files into this folder.")] = None,
    offline: Annotated[
        bool | None, Option("--offline/--online", help="Ask no service; default: fall back on the cache.")
    ] = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Bring a locked version to this machine, verified, and print the lines to paste into a training config.

    Nothing is downloaded that is there already. It refuses bytes with another digest, and versions that were locked with
    other feature code than this machine has.
    """
    out = Output(json_out, quiet=quiet)
    with (
        note_retries(out),
        out.progress(f"pulling {spec}") as progress,
        warnings.catch_warnings(record=True, action="always") as caught,
    ):
        version = pull_version(
            spec,
            url=url,
            manifest_sha256=manifest_sha256,
            cache_dir=cache_dir,
            offline=offline,
            to=to,
            progress=lambda amount, total: progress.update(amount, total=total),
        )
        version.wait_for_disk()
    for warning in caught:
        out.warn(str(warning.message))
    out.print_result(version.to_dict(), [str(path) for path in version.shards])
    source = f"{size(version.downloaded_bytes)} downloaded" if version.downloaded_bytes else "the cache had everything"
    contents = f"{counted(version.num_clips, 'clip')}, {counted(version.num_frames, 'frame')}"
    out.print(f"{version.name}=={version.version}: {contents}; {source}, verified against the manifest's digests")
    for path in version.files:
        out.print(f"  {path}  {size(path.stat().st_size)}")
    out.print(f"\n{version.training_config()}".rstrip())
