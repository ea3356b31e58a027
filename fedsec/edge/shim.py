"""``flwr-clientapp`` as SuperExec finds it first in PATH: hands the call to the fork server, and is the process's double until it ends.

``python -I -S shim.py FOLDER REAL [ARGUMENT …]``: run as a script, so it imports the standard library only and starts in milliseconds.

1. Arguments, environment, working folder and the three standard streams go to the fork server in FOLDER.
2. Signals are passed on; the exit status, or the signal that ended the process, becomes this one's.
3. Without a fork server it becomes REAL, the stock command: slower, otherwise the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

SOCKET = "fork.socket"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Hand the call over, or become the stock command."""
    folder, real, *arguments = sys.argv[1:]
    here = os.getcwd()  # noqa: PTH109 - pathlib would cost as much time as all the rest
    request = json.dumps({"arguments": arguments, "cwd": here, "environ": dict(os.environ)}).encode("ascii")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.chdir(folder)  # a socket's address has 107 bytes at most, a path may have more
        connection.connect(SOCKET)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        pid = int(_line(connection))
    except (OSError, ValueError):
        os.chdir(here)
        os.execv(real, [real, *arguments])  # noqa: S606 - the stock command

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    _end(_line(connection))


def _line(connection: socket.socket) -> str:
    """The next line; empty if the fork server is gone."""
    found = b""
    while not found.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece:
            break
        found += piece
    return found.decode("ascii").strip()


def _end(status: str) -> None:
    """End as the other process did: with its exit status, or by its signal."""
    if not status:
        sys.exit(70)  # EX_SOFTWARE: the fork server died, and its children with it
    code = int(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
