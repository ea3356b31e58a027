"""What a service may really do: tried from within, one line of JSON each, ``python probe.py FOLDER [FOREIGN …]``.

Run in a unit's place (same unit, other ``ExecStart``), it shows whether the hardening holds under the systemd that is there. FOLDER is the service's
own; FOREIGN are folders and files that it must neither write nor read. Ends with 1 if something is possible that must not be, or the other way round.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _UTS = 0x10000000, b"probe"


def _syscall(done: int) -> None:
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: Path) -> Callable[[], None]:
    def act() -> None:
        made = path / ".probe"
        made.touch()
        made.unlink()

    return act


def _read(path: Path) -> Callable[[], None]:
    def act() -> None:
        if path.is_dir():
            if not list(path.iterdir()):
                raise OSError(0, "there, but empty")
        else:
            path.read_bytes()

    return act


def _set_user_id(folder: Path) -> Callable[[], None]:
    def act() -> None:
        path = folder / ".probe-suid"
        path.touch()
        try:
            path.chmod(0o4755)
        finally:
            path.unlink()

    return act


def _socket(family: int, kind: int, protocol: int = 0) -> Callable[[], None]:
    return lambda: socket.socket(family, kind, protocol).close()


def _writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def attempts(folder: Path, foreign: list[Path]) -> dict[str, tuple[bool, Callable[[], None]]]:
    """What is tried: words → (whether it must work, the deed)."""
    wanted: dict[str, tuple[bool, Callable[[], None]]] = {
        f"write {folder}": (True, _write(folder)),
        "write /tmp (its own)": (True, _write(Path("/tmp"))),  # noqa: S108 - the unit's private one is what is looked at
        "IPv4 socket": (True, _socket(socket.AF_INET, socket.SOCK_STREAM)),
        "unix socket": (True, _socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        "netlink socket": (False, _socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "raw socket": (False, _socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
        "set-user-id file": (False, _set_user_id(folder)),
        "new user namespace": (False, lambda: _syscall(_LIBC.unshare(_CLONE_NEWUSER))),
        "mount": (False, lambda: _syscall(_LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None))),
        "chroot": (False, lambda: os.chroot("/")),
        "set host name": (False, lambda: _syscall(_LIBC.sethostname(_UTS, len(_UTS)))),
        "become root": (False, lambda: os.setuid(0)),
        "kernel log": (False, _read(Path("/dev/kmsg"))),
        "see PID 1's command": (False, _read(Path("/proc/1/cmdline"))),
        "write /proc/sys": (False, lambda: Path("/proc/sys/kernel/hostname").write_text("probe", encoding="ascii") and None),
        "real-time priority": (False, lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        "a core dump": (False, lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))),
    }
    for path in (Path("/etc"), Path("/usr"), Path("/opt/fedsec"), Path("/var/lib"), Path("/var")):
        wanted[f"write {path}"] = (False, _write(path))
    for path in (Path("/home"), Path("/root"), *foreign):
        wanted[f"read {path}"] = (False, _read(path))
    return wanted


def describe(folder: Path) -> None:
    """Print what needs no attempt: no new privileges, filter, capabilities, the mode of a new file, whether memory may become code."""
    facts = {
        line.split(":")[0]: line.split()[-1] for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if ":" in line
    }
    print(json.dumps({key: facts[key] for key in ("NoNewPrivs", "Seccomp", "CapBnd", "CapEff")}), flush=True)
    made = folder / ".probe-mode"
    made.touch(mode=0o666)
    print(json.dumps({"mode of a new file": f"{stat.S_IMODE(made.stat().st_mode):o}"}), flush=True)
    made.unlink()
    try:
        _writable_code()
        print(json.dumps({"writable code": "possible"}), flush=True)
    except OSError as caught:
        print(json.dumps({"writable code": os.strerror(caught.errno or 0)}), flush=True)


def main() -> int:
    """Try everything; 1 if something is not as it should be."""
    folder, foreign = Path(sys.argv[1]), [Path(text) for text in sys.argv[2:]]
    describe(folder)
    wrong = 0
    for words, (allowed, act) in attempts(folder, foreign).items():
        try:
            act()
            error = None
        except (OSError, ValueError) as caught:
            error = os.strerror(caught.errno) if isinstance(caught, OSError) and caught.errno else str(caught)
        as_it_should = (error is None) == allowed
        wrong += not as_it_should
        print(json.dumps({"as_it_should": as_it_should, "what": words, "refused": error}), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
