"""Start a program that never outlives the process that asked for it; run as a script, so it imports the standard library only.

``python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT …]`` becomes PROGRAM. On Linux the system kills it when its parent ends, however
suddenly (prctl(2), PR_SET_PDEATHSIG; it is kept over execve). Elsewhere it starts PROGRAM and promises nothing. Signals have their default
meaning in PROGRAM: a shell that starts its parent in the background has SIGINT ignored, and that would be handed down.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent and become the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended before it could be bound to
            sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execvp(command[0], command)  # noqa: S606 - the command is the caller's


if __name__ == "__main__":
    main()
