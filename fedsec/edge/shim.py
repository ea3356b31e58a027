"""``flwr-clientapp`` as SuperExec finds it first in PATH: hands the call to the fork server, and is the process's double until it ends.

``python -I -S shim.py FOLDER REAL [ARGUMENT …]``: run as a script, so it imports the standard library only and starts in milliseconds.

1. The arguments and the two output streams go to the fork server in FOLDER, which looks at each argument.
2. Signals are passed on; the exit status, or the signal that ended the process, becomes this one's.
3. Without a fork server it becomes REAL, the stock command: slower, otherwise the same. A fork server that is still loading is waited for, up to
   a minute: the stock command would load the same.
4. SuperExec puts the task's token on the command line, where every local user can read it. It is wiped from there at once, and the stock
   command gets it in a file without a name. What is left are the milliseconds before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

SOCKET = "fork.socket"
RUNTIME_FILE = "runtime.json"
REFUSED = "refused"
LOADING_S = 60.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Hand the call over, or become the stock command."""
    folder, real, *arguments = sys.argv[1:]
    wipe_command_line("flwr-clientapp")
    request = json.dumps({"arguments": arguments}).encode("ascii")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.getcwd()  # noqa: PTH109 - pathlib would cost as much time as all the rest
    try:
        os.chdir(folder)  # a socket's address has 107 bytes at most, a path may have more
        connection.settimeout(LOADING_S)
        connection.connect(SOCKET)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [1, 2])
        connection.sendall(request)
        answer = _line(connection)
        if answer == REFUSED:
            sys.exit(1)
        pid = int(answer)
        connection.settimeout(None)
    except (OSError, ValueError):
        connection.close()
        os.chdir(here)
        os.execv(real, [real, *_without_token(arguments)])  # noqa: S606 - the stock command

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    _end(_line(connection))


def wipe_command_line(name: str) -> None:
    """Overwrite what /proc shows of our arguments by a name."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as handle:  # noqa: PTH123 - as above
            fields = handle.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
            memory.seek(start)
            memory.write(name.encode("ascii").ljust(end - start, b"\0")[: end - start])


def _without_token(arguments: list[str]) -> list[str]:
    """The same arguments, with the token in a file that only this process's successor has."""
    if "--token" not in arguments[:-1]:
        return arguments
    place = arguments.index("--token")
    descriptor = os.memfd_create("token", 0)
    os.write(descriptor, arguments[place + 1].encode("utf-8", "surrogateescape"))
    return [*arguments[:place], "--token-file", f"/proc/self/fd/{descriptor}", *arguments[place + 2 :]]


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
