"""The exit codes of the command; 0 is success."""

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
