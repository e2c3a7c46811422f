"""Runs a program and does not leave it behind: ``python train_command_guard.py PARENT JOB PROGRAM ARGUMENT…``.

It leads a process group in which the program runs. When the process PARENT that started it or the process JOB
is gone, however it went, the whole group ends: a worker that Ray has lost its driver of may live on for half a
minute. The exit status is the program's, 128 + n where signal n ended it, 127 where it did
not start. Only the standard library, because it runs as a file of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

_WATCH_SECONDS = 0.2


def main(parent: int, job: int, command: list[str]) -> int:
    """Run the command to its end, or to that of the parent or the job."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{command[0]} does not start: {error.strerror}\n")
        return 127
    while True:
        try:
            status = child.wait(_WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent or not _exists(job):
                os.killpg(os.getpgrp(), signal.SIGKILL)
            continue
        return status if status >= 0 else 128 - status


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
