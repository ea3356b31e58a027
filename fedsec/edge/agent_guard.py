"""What a server may make a SuperNode run: the answers about runs and FABs, rebuilt or refused.

1. Flower loads an app from a folder that the *server's* words name (id, version, hash of the run). Here those words are the manifest's.
2. A FAB passes if the run, the request, the answer's own hash and the bytes all say the same SHA-256, and the site's release is that FAB.
3. The decision is asked again for every message: a run that the SuperNode knows already must not outlive an expired, revoked or replaced
   release. It then starts anew and meets the refusal like a new run.
4. A refused FAB arrives empty and without verification: the SuperNode runs nothing and the server is told error 7 (``INVALID_FAB``).
   A server's own verifications are dropped in any case.
5. A run that the SuperNode knows is never forgotten here: when the table is full, the SuperNode starts anew, and both know none.
6. A run cannot override the app's config on this node, and has a state of its own.

Source: flwr 1.41, ``start_client_internal._pull_and_store_message``, ``_verify_fab``, ``get_project_dir``; decision 0015, findings 4 and 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import Callable
from datetime import datetime

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.admission.decision import VerifiedRelease
from fedsec.edge import fleet_pb2
from fedsec.edge.agent_releases import ReleaseStore
from fedsec.edge.agent_status import Status
from fedsec.edge.edge_client import Answer
from fedsec.edge.loopback import Loopback
from fedsec.errors import AdmissionError, DecodeError, FedsecError

_logger = logging.getLogger(__name__)

PROTOBUF = "application/protobuf"
NO_FAB_ID, NO_FAB_VERSION = "fedsec/refused", "0"
MAX_RUNS = 4096
RUN_NOT_RUNNING, COME_BACK = 403, 503
"""Upstream answers that the SuperNode understands as they are."""

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PRIMARY_TASK_TYPE, _SERIES_ID = 16, 18
_SERVER_APP = b"flwr-serverapp"


class RunGuard:
    """Decides about the runs of one SuperNode.

    Args:
        releases: the site's.
        loopback: signs for admitted FABs.
        status: told of every decision.
        clock: this machine's, aware.
    """

    def __init__(self, releases: ReleaseStore, loopback: Loopback, status: Status, *, clock: Callable[[], datetime]) -> None:
        self._releases, self._loopback, self._status, self._clock = releases, loopback, status, clock
        self._hashes: dict[int, str] = {}
        self._admitted: dict[int, str] = {}

    def forget(self) -> None:
        """The SuperNode starts anew and knows no run."""
        self._hashes.clear()
        self._admitted.clear()

    async def may_go_on(self, run_id: int) -> bool:
        """Whether a message of this run may reach a SuperNode that may know the run; False: it must start anew first."""
        admitted = self._admitted.get(run_id)
        if admitted is None:
            if len(self._admitted) < MAX_RUNS:
                return True
            self._status.event("supernode-restart", run_id=str(run_id), reason=f"it knows {MAX_RUNS} runs, as many as are remembered")
            return False
        try:
            release = await asyncio.to_thread(self._releases.current)
        except FedsecError as error:
            self._status.event("run-stopped", run_id=str(run_id), reason=str(error))
            return False
        if release.manifest_sha256 != admitted:
            self._status.event("run-stopped", run_id=str(run_id), reason="the site's release is another one now")
            return False
        return True

    async def run_answer(self, request: bytes, answer: Answer) -> Answer:
        """The answer to GetRun, rebuilt: nothing of the server's words chooses what is loaded, or how it is configured.

        Raises:
            DecodeError: it is no answer to that request.
        """
        if answer.status != 200:
            return answer
        try:
            asked = fleet_pb2.GetRunRequest.FromString(request).run_id
            run = fleet_pb2.GetRunResponse.FromString(answer.body).run
        except ProtobufError:
            raise DecodeError("not an answer about a run") from None
        if run.run_id != asked:
            raise DecodeError("an answer about another run")
        fab_hash = run.fab_hash if _SHA256.fullmatch(run.fab_hash) else "0" * 64
        fab_id, fab_version = NO_FAB_ID, NO_FAB_VERSION
        with contextlib.suppress(FedsecError):  # a refusal is given, and its reason said, when the FAB is asked for
            fab = (await asyncio.to_thread(self._releases.current)).manifest.fab
            fab_id, fab_version = fab.fab_id, fab.fab_version
        while len(self._hashes) >= MAX_RUNS:
            del self._hashes[next(iter(self._hashes))]
        self._hashes[asked] = fab_hash
        rebuilt = fleet_pb2.Run(run_id=asked, fab_id=fab_id, fab_version=fab_version, fab_hash=fab_hash).SerializeToString()
        rebuilt += _field(_PRIMARY_TASK_TYPE, 2) + _varint(len(_SERVER_APP)) + _SERVER_APP  # fleet.proto declares what is read, and no more
        rebuilt += _field(_SERIES_ID, 0) + _varint(asked)
        body = _field(1, 2) + _varint(len(rebuilt)) + rebuilt
        return Answer(200, PROTOBUF, body, b"")

    async def fab_answer(self, request: bytes, answer: Answer) -> Answer:
        """The answer to GetFab: with our verification, or with nothing in it."""
        if answer.status in (RUN_NOT_RUNNING, COME_BACK):
            return answer
        run_id, found = 0, ""
        try:
            asked = fleet_pb2.GetFabRequest.FromString(request)
            run_id = asked.run_id
            fab = fleet_pb2.GetFabResponse.FromString(answer.body).fab if answer.status == 200 else fleet_pb2.Fab()
            found = hashlib.sha256(fab.content).hexdigest()
            if answer.status != 200:
                raise AdmissionError(f"the SuperLink gave no FAB (status {answer.status})")
            if not self._hashes.get(run_id, "") == asked.hash_str == fab.hash_str == found:
                raise AdmissionError("the FAB is not the one of the run that was asked for: the hashes differ")
            release = await asyncio.to_thread(self._releases.admit, fab.content)
        except (FedsecError, ProtobufError, OSError) as error:
            reason = str(error) if isinstance(error, FedsecError) else f"it could not be read ({type(error).__name__})"
            return self._refused(run_id, found, reason)
        if run_id not in self._admitted and len(self._admitted) >= MAX_RUNS:  # may_go_on has the SuperNode start anew before that
            return self._refused(run_id, found, f"the SuperNode knows {MAX_RUNS} runs, as many runs as are remembered")
        return self._passed(run_id, found, fab.content, release)

    def _passed(self, run_id: int, found: str, content: bytes, release: VerifiedRelease) -> Answer:
        self._admitted[run_id] = release.manifest_sha256
        facts: dict[str, str | int] = {
            "name": release.manifest.release,
            "version": release.manifest.version,
            "manifest_sha256": release.manifest_sha256,
        }
        self._status.event("fab-admitted", run_id=str(run_id), fab_sha256=found, **facts)
        self._status.set(release={**facts, "approvers": list(release.approvers), "not_after": release.manifest.not_after.isoformat()})
        response = fleet_pb2.GetFabResponse(fab=fleet_pb2.Fab(hash_str=found, content=content))
        for key, value in self._loopback.verifications(content, self._clock()).items():
            response.fab.verifications[key] = value
        return Answer(200, PROTOBUF, response.SerializeToString(), b"")

    def _refused(self, run_id: int, found: str, reason: str) -> Answer:
        _logger.error("a FAB of run %s was refused: %s", run_id, reason)
        self._status.refuse(run_id=run_id, fab_sha256=found, reason=reason)
        response = fleet_pb2.GetFabResponse(fab=fleet_pb2.Fab(hash_str=self._hashes.get(run_id, "")))
        return Answer(200, PROTOBUF, response.SerializeToString(), b"")


def _field(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
