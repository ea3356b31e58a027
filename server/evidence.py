"""Evidence of a fault that a client's own message in clear shows: what it said, kept beside the run.

Messages in clear carry no signature of the client, so this convinces whoever trusts the server and its transport, and nobody else. Under secure
aggregation evidence is signed by the liar itself (``fedsec.secagg.evidence``).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Message

from fedsec.files import atomic_write_json

MOST_ARRAYS = 100


def evidence_keeper(folder: Path) -> Callable[[int, str, str, Message], str]:
    """A function that keeps one file for each fault in ``folder/evidence``, and says where in the result folder it lies."""

    def keep(server_round: int, client_id: str, reason: str, reply: Message) -> str:
        name = f"evidence/round-{server_round:06d}-{hashlib.sha256(client_id.encode()).hexdigest()[:16]}-message.json"
        (folder / "evidence").mkdir(parents=True, exist_ok=True)
        atomic_write_json(folder / name, {"client_id": client_id, "server_round": server_round, "reason": reason, **_facts(reply)})
        return name

    return keep


def _facts(reply: Message) -> dict[str, object]:
    arrays = reply.content.array_records.get("update")
    about = reply.content.config_records.get("about")
    parts = list(itertools.islice(arrays.items(), MOST_ARRAYS)) if arrays is not None else []
    return {
        "arrays": [
            {"name": name[:200], "dtype": array.dtype[:40], "shape": [str(size)[:20] for size in list(array.shape)[:16]], "bytes": len(array.data),
             "sha256": hashlib.sha256(array.data).hexdigest()}
            for name, array in parts
        ],
        "num_arrays": len(arrays) if arrays is not None else 0,
        "declared": _declared(about) if about is not None else {},
        "authenticated": False,
    }  # fmt: skip


def _declared(about: Mapping[str, object]) -> dict[str, str]:
    """A few small values; nothing is written out before it is cut."""
    small = [(key, value) for key, value in itertools.islice(about.items(), MOST_ARRAYS) if isinstance(value, int | float | str | bytes)]
    return {key[:60]: str(value[:100] if isinstance(value, str | bytes) else value) for key, value in small}
