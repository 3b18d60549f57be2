"""Runs a command while holding a lock file, so that two `make` in one folder do not install over each other.

    python one_at_a_time.py LOCK COMMAND...

The lock goes with the process, however it ends; the file stays and means nothing by itself.
"""

import fcntl
import os
import sys

path, *command = sys.argv[1:]
descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("another make is installing here; waiting for it", file=sys.stderr)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
except OSError:
    pass  # A file system that has no locks; then it is as it always was.
os.set_inheritable(descriptor, True)
os.execvp(command[0], command)
