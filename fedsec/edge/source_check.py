"""Whether a site's source gives records, asked before a token is spent and before a round runs.

1. It is loaded in a child process with the environment and the kind of working folder (an empty one) that the ClientApp will have, and from the same Python: a
   module that only the operator's shell or current folder knows is missed here, as it would be in a round.
2. The site's code may hang, crash or print: the child has a time limit, is killed with all that it started, and answers in one JSON line.
3. Under systemd the agent has another environment than a shell: what the unit's ``PYTHONPATH`` says must be set for this check as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsec.edge.supernode import SOURCE_ONLY, plain_environment
from fedsec.errors import ConfigError
from fedsec.identity.crl_file import DEPLOYED_VARIABLE

MODULE = "client.sourcecheck"
TIMEOUT_S = 300.0
"""Records may come from a slow disk; the first import of a site's libraries takes seconds."""
MEND = "mend its module, install it beside fedsec or set PYTHONPATH, for the agent too; --no-check-source if the data is mounted later"
MAX_SAID = 300


@dataclass(frozen=True)
class Source:
    """What a source gave.

    Attributes:
        records: for training.
        test_records: for testing.
        classes: of the task.
    """

    records: int
    test_records: int
    classes: int


def check_source(source: str, *, base: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Source:
    """Load a site's records once, in a process of its own.

    Args:
        source: ``module:function``.
        base: the environment that the agent would have; None: this process's.
        timeout_s: for all of it.

    Raises:
        ConfigError: it cannot be imported, it raised, or what it gave is not a data set; says why and the mend.
    """
    environment = plain_environment(os.environ if base is None else base) | {DEPLOYED_VARIABLE: "1"}
    with tempfile.TemporaryDirectory(prefix="fedsec-source-") as folder:
        process = subprocess.Popen(  # noqa: S603 - this Python, our module; the source is an argument
            [*SOURCE_ONLY, MODULE, source],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            said, noise = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{source} gave no records within {timeout_s:g} s", field="source", mend=MEND) from None
        finally:
            _kill(process)
    return _read(source, said, noise, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read(source: str, said: bytes, noise: bytes, status: int) -> Source:
    try:
        facts = json.loads(said)
        if "error" not in facts:
            return Source(int(facts["records"]), int(facts["test_records"]), int(facts["classes"]))
        error, mend = str(facts["error"]), str(facts["mend"])
    except (ValueError, KeyError, TypeError):
        last = noise.decode("utf-8", "replace").strip().splitlines()[-1:]
        error, mend = f"{source} ended the process that loads it (status {status}): {''.join(last)[:MAX_SAID]}", ""
    raise ConfigError(f"the source gives no records: {error}", field="source", mend=mend or MEND)


def source_of(settings_file: Path) -> str:
    """The source that a client's ``settings.toml`` names; empty: there is none, or the file cannot be read."""
    try:
        return str(tomllib.loads(settings_file.read_text(encoding="utf-8")).get("source") or "")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return ""
