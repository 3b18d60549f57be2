"""`python -m amp_core.cli` is `ampref`."""

from amp_core.cli.start import main

main()
