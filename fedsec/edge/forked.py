"""A copy of the fork server, from the fork to its end: one run of Flower's ``flwr-clientapp`` in a process of its own.

1. It keeps nothing of the server's but what is loaded: other descriptors are closed, signals have their default meaning, it has a session
   of its own, files that it makes are its user's only.
2. Its generators are seeded anew: a fork copies them, and all copies would draw the same numbers.
3. It ends with ``os._exit``, so nothing that the server registered runs twice, and with the status that Python itself would give.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

ENTRY_POINT = "flwr-clientapp"

_PR_SET_PDEATHSIG = 1


def live(
    run: Callable[[], Any], arguments: list[str], streams: Sequence[int], foreign: Sequence[int], parent: int, entropy: bytes
) -> NoReturn:  # fmt: skip
    """The whole life of a copy; does not return.

    Args:
        run: what it runs; may raise SystemExit.
        arguments: of the command.
        streams: descriptors of stdout and stderr.
        foreign: descriptors of the server's that it must not keep.
        parent: process id of the server.
        entropy: 32 random bytes of its own.
    """
    code = 1
    try:
        _detach(streams, foreign, parent)
        _seed_generators(entropy)
        sys.argv = [ENTRY_POINT, *arguments]
        code = _exit_code(run)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except BaseException:  # noqa: BLE001 - the last chance to say anything
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _exit_code(run: Callable[[], Any]) -> int:
    """Run, and say what Python itself would exit with."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)  # noqa: T201 - as Python does
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0


def _detach(streams: Sequence[int], foreign: Sequence[int], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for descriptor in foreign:
        os.close(descriptor)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, stream in enumerate((nothing, *streams)):
        os.dup2(stream, target)
    for stream in {nothing, *streams} - {0, 1, 2}:
        os.close(stream)
    os.umask(0o077)


def _seed_generators(entropy: bytes) -> None:
    """Global generators are copied by a fork: without this all copies draw the same numbers."""
    random.seed(entropy)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed([int.from_bytes(entropy[at : at + 4], "little") for at in (0, 4, 8, 12)])
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(entropy[16:24], "little"))
