"""`python -m service.cli` is `ampref`."""

from service.cli.start import main

main()
