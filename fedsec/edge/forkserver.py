"""A process that has flwr, torch and the client's modules loaded, and forks a copy for every ``flwr-clientapp`` that is asked for.

1. It loads, never computes: one thread, no channel, no pool. A second thread or an OpenMP region before a fork can hang the copy.
2. A copy runs flwr's own console entry point. Its arguments are built here: the SuperNode's address and CA come from the agent's file, and
   of the caller's words only a token and a process id count; an option that leads elsewhere is refused. Its environment and folder are
   this process's, its generators are seeded anew.
3. Who asks while it is still loading waits; who has gone away meanwhile gets no copy, for the stock command took the task.
4. A copy dies with this process (``PR_SET_PDEATHSIG``) and is asked to end when its caller is gone.
5. Only processes of the same user are served: the socket lies in a private folder, and the system says who connects.

``python -P -m fedsec.edge.forkserver FOLDER [MODULE | MODULE:FUNCTION …]``
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import re
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedsec.edge.forked import ENTRY_POINT, live
from fedsec.edge.shim import REFUSED, RUNTIME_FILE, SOCKET

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MAX_REQUEST_BYTES = 4 * 1024 * 1024
READ_TIMEOUT_S = 5.0
GRACE_S = 5.0
"""How long a copy whose caller is gone may take to end."""

_OPTIONS = {"--runtime-api-address", "--root-certificates", "--token", "--parent-pid"}
_TOKEN = re.compile(r"[0-9A-Za-z_-]{8,256}", re.ASCII)
_PID = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


@dataclass(eq=False)
class _Copy:
    pid: int
    pidfd: int
    caller: socket.socket
    kill_at: float | None = None


class ForkServer:
    """Serves one socket.

    Args:
        folder: private; the socket is made in it.
        run: what a copy runs; it may raise SystemExit.
        build: makes a copy's arguments of the caller's; raises ValueError.
    """

    def __init__(self, folder: Path, run: Callable[[], Any], build: Callable[[list[str]], list[str]]) -> None:
        self._run, self._build = run, build
        self._copies: dict[int, _Copy] = {}
        self._selector = selectors.EpollSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(folder)  # a socket's address has 107 bytes at most, a path may have more
        for left in (SOCKET, f"{SOCKET}.new"):
            Path(left).unlink(missing_ok=True)
        self._listener.bind(f"{SOCKET}.new")
        Path(f"{SOCKET}.new").chmod(0o600)
        self._listener.listen(64)
        Path(f"{SOCKET}.new").rename(SOCKET)  # it is there once one can connect to it
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def serve(self) -> NoReturn:
        """Serve until this process is ended."""
        while True:
            deadlines = [copy.kill_at for copy in self._copies.values() if copy.kill_at is not None]
            timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self._selector.select(timeout):
                if key.data is None:
                    self._accept()
                elif key.data.pidfd == key.fd:
                    self._reap(key.data)
                elif key.data.pid in self._copies:
                    self._hang_up(key.data)
            for copy in list(self._copies.values()):
                if copy.kill_at is not None and time.monotonic() >= copy.kill_at:
                    _signal(copy, signal.SIGKILL)
                    copy.kill_at = None

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        caller.settimeout(READ_TIMEOUT_S)
        descriptors: list[int] = []
        try:
            arguments = self._build(_read_request(caller, descriptors))
            if threading.active_count() > 1:
                raise ValueError("a thread of ours is running; a copy could hang")
            if _is_gone(caller):
                raise ValueError("who asked is gone")
            pid = self._fork(arguments, descriptors, caller)
            copy = _Copy(pid, os.pidfd_open(pid), caller)
            caller.settimeout(READ_TIMEOUT_S)
            self._copies[pid] = copy
            self._selector.register(copy.pidfd, selectors.EVENT_READ, copy)
            self._selector.register(caller, selectors.EVENT_READ, copy)
            caller.sendall(b"%d\n" % pid)
        except (OSError, ValueError, KeyError) as error:
            print(f"no process: {error}", file=sys.stderr)  # noqa: T201 - the agent keeps this in a log
            if not any(copy.caller is caller for copy in self._copies.values()):
                with contextlib.suppress(OSError):
                    caller.sendall(f"{REFUSED}\n".encode("ascii"))
                caller.close()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, arguments: list[str], descriptors: Sequence[int], caller: socket.socket) -> int:
        entropy, parent = os.urandom(32), os.getpid()
        pid = os.fork()
        if pid == 0:
            foreign = [self._listener.fileno(), caller.fileno(), self._selector.fileno()]
            for copy in self._copies.values():
                foreign += [copy.pidfd, copy.caller.fileno()]
            live(self._run, arguments, descriptors, foreign, parent, entropy)
        return pid

    def _reap(self, copy: _Copy) -> None:
        _, status = os.waitpid(copy.pid, 0)
        for item in (copy.pidfd, copy.caller):
            with contextlib.suppress(KeyError):
                self._selector.unregister(item)
        os.close(copy.pidfd)
        del self._copies[copy.pid]
        with contextlib.suppress(OSError):
            copy.caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        copy.caller.close()

    def _hang_up(self, copy: _Copy) -> None:
        """The caller sends nothing more, so this is its end: ask the copy to end too."""
        self._selector.unregister(copy.caller)
        copy.kill_at = time.monotonic() + GRACE_S
        _signal(copy, signal.SIGTERM)


def _is_gone(caller: socket.socket) -> bool:
    """Whether the caller closed its end; it sends nothing after its request."""
    caller.setblocking(False)
    try:
        return not caller.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        caller.settimeout(READ_TIMEOUT_S)


def _signal(copy: _Copy, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(copy.pidfd, number)


def _read_request(caller: socket.socket, descriptors: list[int]) -> list[str]:
    """The caller's arguments; the streams go to ``descriptors``, which the caller of this closes.

    Raises:
        ValueError: another user, or not a request.
        OSError: it did not come in time.
    """
    credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.getuid():
        raise ValueError("another user asked for a process")
    head, found, _, _ = socket.recv_fds(caller, 4, 2)
    descriptors += found
    size = int.from_bytes(head, "big")
    if len(head) != 4 or len(found) != 2 or not 0 < size <= MAX_REQUEST_BYTES:
        raise ValueError("not a request for a process")
    data = bytearray()
    while len(data) < size:
        piece = caller.recv(size - len(data))
        if not piece:
            raise ValueError("a request that ends early")
        data += piece
    request = json.loads(data)
    arguments = request.get("arguments") if isinstance(request, dict) else None
    if not isinstance(arguments, list) or not all(isinstance(item, str) for item in arguments):
        raise ValueError("not a request for a process")
    return arguments


def build_arguments(given: list[str], *, address: str, root_certificates: str) -> list[str]:
    """A copy's arguments: the agent's own address and CA, the caller's token and process id.

    Args:
        given: what SuperExec asked for.
        address: of the SuperNode's runtime.
        root_certificates: path of the loopback's CA.

    Raises:
        ValueError: an option that is not exactly what the agent's own SuperExec gives.
    """
    options = dict(zip(given[::2], given[1::2], strict=False))
    if len(given) != 2 * len(options) or set(options) != _OPTIONS:
        raise ValueError("options that SuperExec does not give")
    if (options["--runtime-api-address"], options["--root-certificates"]) != (address, root_certificates):
        raise ValueError("a process for another SuperNode than ours")
    if not _TOKEN.fullmatch(options["--token"]) or not _PID.fullmatch(options["--parent-pid"]):
        raise ValueError("not a token or not a process id")
    fixed = ["--runtime-api-address", address, "--root-certificates", root_certificates]
    return [*fixed, "--token", options["--token"], "--parent-pid", options["--parent-pid"]]


def _build_from(folder: Path) -> Callable[[list[str]], list[str]]:
    """:func:`build_arguments` for the SuperNode that runs now: its port is another one at each of its starts."""

    def build(given: list[str]) -> list[str]:
        runtime = json.loads((folder / RUNTIME_FILE).read_bytes())
        return build_arguments(given, address=runtime["address"], root_certificates=runtime["root_certificates"])

    return build


# --- Start ------------------------------------------------------------------------------------------------------------------------


def preload(names: Sequence[str]) -> None:
    """Import modules, or call ``module:function``; one that fails is named on stderr and left out, for a cold start would say why."""
    for name in names:
        module, _, function = name.partition(":")
        try:
            found = importlib.import_module(module)
            if function:
                getattr(found, function)()
        except Exception:  # noqa: BLE001 - the modules are the operator's choice
            print(f"cannot preload {name}", file=sys.stderr)  # noqa: T201 - the agent keeps this in a log
            traceback.print_exc()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _remember_platform() -> None:
    """Ask once what kind of machine this is.

    Flower asks at the start and at the end of every ``flwr-clientapp``, for telemetry that is off, and each time Python starts the commands
    ``uname`` and ``file``. Copies of this process have the answers.
    """
    found = platform.uname()
    _ = found.processor  # kept with the rest once it was asked for
    architecture = platform.architecture()
    stock = platform.architecture

    def known(executable: str = sys.executable, bits: str = "", linkage: str = "") -> tuple[str, str]:
        return architecture if (executable, bits, linkage) == (sys.executable, "", "") else stock(executable, bits, linkage)

    platform.architecture = known


def _threads() -> int:
    """Of this process, those of native libraries included."""
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    return threading.active_count()


def main() -> None:
    """Load, then serve."""
    folder, *names = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for variable in THREAD_VARIABLES:  # read by the numeric libraries when they are loaded
        os.environ[variable] = "1"
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=ENTRY_POINT)
    place = Path(folder).absolute()
    server = ForkServer(place, lambda: run(), _build_from(place))  # noqa: PLW0108 - it is loaded below: whoever asks from now on waits
    run = entry.load()
    _remember_platform()
    preload(names)
    gc.collect()
    gc.freeze()  # pages of what is loaded stay shared
    if (threads := _threads()) > 1:
        print(f"{threads} threads after loading; a copy may hang", file=sys.stderr)  # noqa: T201 - kept in a log
    server.serve()


if __name__ == "__main__":
    main()
