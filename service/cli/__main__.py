"""`python -m service.cli` is `ampref`."""

from service.cli.main import main

main()
