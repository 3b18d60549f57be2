"""`python -m amp_core` is `ampref`."""

from amp_core.cli.start import main

main()
