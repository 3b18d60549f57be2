"""Runs the API under uvicorn in a process of its own: `python server.py DATA_DIR [SETTING=VALUE …]`; prints its port."""

from __future__ import annotations

import sys
from pathlib import Path

from ampref_service import logs
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.server import listen, make_server
from ampref_service.settings import Settings


def main() -> None:
    overrides = dict(argument.split("=", 1) for argument in sys.argv[2:])
    settings = Settings(**{"data_dir": Path(sys.argv[1]), "port": 0, **overrides})
    logs.configure("warning", json=True)
    schema.upgrade(settings.database_url)
    listener = listen(settings)
    print(listener.getsockname()[1], flush=True)
    make_server(create_app(settings), settings).run(sockets=[listener])


if __name__ == "__main__":
    main()
