"""The server's state after a round, on disk: whole, hashed, and enough to go on bit for bit.

1. A checkpoint is one safetensors file (arrays) whose header holds the rest as canonical JSON, plus its SHA-256 in the name of a
   pointer file that is replaced last: a crash between the two leaves the previous checkpoint in force.
2. The newest two are kept, so that a damaged newest one costs one round, never the run.
3. A checkpoint of another run or another plan is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import DecodeError, StorageError
from fedsec.files import atomic_write_bytes, atomic_write_json, sha256_file

FORMAT = "fedsec/checkpoint/v1"
KEPT = 2

ArrayMap = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The server's state after ``server_round`` rounds.

    Attributes:
        run_id: fedsec's id of the run.
        plan_digest: of the plan that made it.
        server_round: last finished round; 0 before the first.
        arrays: named arrays, any dtype that safetensors holds.
        state: JSON-able rest (history, clients asked, seconds).
    """

    run_id: str
    plan_digest: str
    server_round: int
    arrays: ArrayMap
    state: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints of one run in one folder."""

    def __init__(self, folder: Path, *, run_id: str, plan_digest: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._plan_digest = plan_digest

    def save(self, server_round: int, arrays: ArrayMap, state: Mapping[str, Any]) -> None:
        """Write the state after a round; the previous one stays until this one is whole.

        Raises:
            StorageError: the file system refused; the previous checkpoint is untouched.
        """
        from safetensors.numpy import save  # noqa: PLC0415 - only a run needs it

        header = {"format": FORMAT, "run_id": self._run_id, "plan": self._plan_digest, "round": server_round, "state": dict(state)}
        payload = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"fedsec": canonical_json(header).decode()})
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"round-{server_round:06d}.safetensors"
        atomic_write_bytes(path, payload)
        previous = [item for item in self._listed() if item["round"] != server_round][: KEPT - 1]
        listed = [{"round": server_round, "file": path.name, "sha256": sha256_file(path)}, *previous]
        atomic_write_json(self._folder / "latest.json", {"format": FORMAT, "checkpoints": listed})
        for old in self._folder.glob("round-*.safetensors"):
            if old.name not in {item["file"] for item in listed}:
                old.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none at all.

        Raises:
            StorageError: checkpoints exist, but none of them is whole, or they belong to another run or plan.
        """
        listed = self._listed()
        faults = []
        for item in listed:
            try:
                return self._read(item)
            except DecodeError as error:
                faults.append(str(error))
        if faults:
            raise StorageError(f"no usable checkpoint in {self._folder}: {'; '.join(faults)}; start a new run")
        return None

    def _listed(self) -> list[dict[str, Any]]:
        pointer = self._folder / "latest.json"
        if not pointer.exists():
            return []
        try:
            import json  # noqa: PLC0415 - readable JSON, not canonical

            listed = json.loads(pointer.read_text(encoding="utf-8"))["checkpoints"]
            for item in listed:
                if type(item["round"]) is not int or Path(item["file"]).name != item["file"]:
                    raise ValueError("a bad entry")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{pointer} is damaged ({error}); start a new run") from None
        return list(listed)

    def _read(self, item: Mapping[str, Any]) -> Checkpoint:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only a resume needs it

        path = self._folder / item["file"]
        if not path.exists():
            raise DecodeError(f"{path.name} is missing")
        if sha256_file(path) != item["sha256"]:
            raise DecodeError(f"{path.name} does not match its SHA-256")
        try:
            with safe_open(path, framework="numpy") as handle:
                header = decode_canonical_json(handle.metadata()["fedsec"].encode())
                arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError) as error:
            raise DecodeError(f"{path.name} is not a checkpoint: {error}") from None
        if header.get("format") != FORMAT or header.get("run_id") != self._run_id:
            raise StorageError(f"{path} belongs to another run; choose another folder")
        if header.get("plan") != self._plan_digest:
            raise StorageError(f"{path} was made under another plan; a run resumes only with the plan it was started with")
        return Checkpoint(
            run_id=self._run_id, plan_digest=self._plan_digest, server_round=header["round"], arrays=arrays, state=header["state"]
        )
