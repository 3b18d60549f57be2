"""The `ampref` command. Modules here import nothing heavy at the top: `ampref --help` must answer at once, everywhere."""
