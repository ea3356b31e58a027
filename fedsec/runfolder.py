"""The folder of one run: what lies where, who may use it, and when it may be resumed.

::

    plan.toml          the plan as run, every key
    run.json           run id, plan digest, engine, versions
    checkpoints/       the server's state after each round
    clients/<id>/      simulated clients' stores
    identities/        the throw-away CA of a simulation, everybody's keys and certificates, the signed list of clients
    log/               the transparency log: list, rounds, evidence
    rounds.json        the round of secure aggregation under way; unmasking/ holds what a restarted server opens
    evidence/          proofs against clients that lied, if any
    result.json rounds.csv model.safetensors *.png *.csv     the result
    live.jsonl         what a run in another process says while it goes on; a file stop asks it to end
    run.lock           held while a process runs in here

1. A folder that holds a run is never overwritten: it is resumed with the same plan, or removed on an explicit ``fresh``.
2. ``resume`` where nothing is yet starts the run: a script that is killed and started again needs no second form.
3. ``fresh`` removes only a folder that holds a run of ours.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fedsec
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_json, atomic_write_text, exclusive_lock
from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan

FORMAT = "fedsec/run/v1"
LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder that exists and belongs to this plan.

    Attributes:
        path: the folder.
        run_id: fedsec's id of the run; survives a resume.
        resumed: whether it held this run before.
    """

    path: Path
    run_id: str
    resumed: bool

    @property
    def checkpoints(self) -> Path:
        """Where the server's checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def clients(self) -> Path:
        """Where simulated clients keep their stores."""
        return self.path / "clients"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running in here.

        Raises:
            StorageError: one does, and did not end within ten seconds.
        """
        with exclusive_lock(self.path / "run.lock", timeout_s=LOCK_TIMEOUT_S, what="run folder"):
            yield


def prepare_run_folder(path: Path, plan: Plan, *, resume: bool, fresh: bool = False) -> RunFolder:
    """Make a new run folder, or open the one that holds this run.

    Raises:
        ConfigError: it holds a run and neither ``resume`` nor ``fresh`` was asked for, or another plan's run, or other files.
        StorageError: it cannot be written, or its ``run.json`` is damaged.
    """
    if resume and fresh:
        raise ConfigError("--resume and --fresh contradict each other", mend="give one of them")
    marker = path / "run.json"
    if fresh and path.exists():
        _remove(path)
    if marker.exists():
        if not resume:
            raise ConfigError(
                f"{path} already holds a run", mend="--resume goes on with it, --fresh removes it, --out names another folder"
            )
        return _reopen(path, plan)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not an empty folder", mend="--out names a new or empty one")
    return _make(path, plan, uuid.uuid4().hex)


def new_run_folder(parent: Path, plan: Plan) -> RunFolder:
    """Make the folder of a new run, named by its run id.

    Raises:
        StorageError: it cannot be written.
    """
    run_id = uuid.uuid4().hex
    return _make(parent / run_id, plan, run_id)


def _make(path: Path, plan: Plan, run_id: str) -> RunFolder:
    """Made under another name and renamed, so that a folder that is there is whole."""
    facts = {"format": FORMAT, "run_id": run_id, "plan_digest": plan.digest(), "fedsec_version": fedsec.__version__}
    draft = path.parent / f".{path.name}.{run_id[:8]}.tmp"
    try:
        draft.mkdir(parents=True)
        atomic_write_text(draft / "plan.toml", plan_to_toml(plan))
        atomic_write_json(draft / "run.json", facts)
        draft.rename(path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StorageError(f"cannot make {path}: {error.strerror or error}") from error
    return RunFolder(path=path, run_id=run_id, resumed=False)


def _reopen(path: Path, plan: Plan) -> RunFolder:
    marker = path / "run.json"
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or not isinstance(facts["run_id"], str):
            raise ValueError("not a run of this version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{marker} is damaged: {error}") from None
    if facts["plan_digest"] != plan.digest():
        raise ConfigError(
            f"the run in {path} was started with another plan", mend=f"resume with {path / 'plan.toml'} and no --set, or start a new run"
        )
    return RunFolder(path=path, run_id=facts["run_id"], resumed=True)


def _is_run(path: Path) -> bool:
    """Whether ``run.json`` in there is ours: any program may have a file of that name."""
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("format") == FORMAT


def _remove(path: Path) -> None:
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; --fresh removes folders only", mend="give the folder itself as --out")
    if not _is_run(path):
        if path.is_dir() and not any(path.iterdir()):
            return
        raise ConfigError(
            f"{path} holds no run of fedsec, so --fresh does not remove it", mend="remove it yourself, or choose another --out"
        )
    with exclusive_lock(path / "run.lock", timeout_s=LOCK_TIMEOUT_S, what="run folder"):
        shutil.rmtree(path)
