"""What a client keeps of secure aggregation, so that no secret serves twice and nothing is answered in two ways.

1. **Outbox**: a reply is stored before it is sent. The same request for a (context, stage) gets the same bytes, another one is refused.
2. **One context an attempt**: the first CONFIG of (run, round, attempt) binds it. Rounds and attempts of a run only rise.
3. **Attempts**: a retry has the first attempt's CONFIG but for the attempt and the nonce; who answered UNMASK in a round takes no part in
   any later attempt of it. Joining erases every reply of the run's earlier attempts and rounds, and ends them: they are answered no more.
4. A nonce commitment that was seen before is refused: R would be known (decision 0010, finding 3).
5. **Roster**: the newest version seen of each federation's list, with the newest head of its log. An older one is refused.
6. Each commit is one transaction of the store, under its lock: two processes cannot both pass a check.

Source: design note SECAGG, "Binding and persistence"; decision 0010, findings 3, 11, 15, 18 and 19.
"""

from __future__ import annotations

import contextlib
import hmac
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from fedsec.errors import LocalProtocolError, PeerError, StorageError
from fedsec.secagg.labels import Phase

KEPT_RUNS = 4
"""Runs whose replies are kept, the newest ones: a server could fill the disk with run ids otherwise."""

Commit = Callable[[], AbstractContextManager[sqlite3.Connection]]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at one round, as its CONFIG says.

    Attributes:
        run_id: fedsec's id of the run.
        server_round: from 1.
        attempt: from 1.
        context: hash of the whole CONFIG.
        retry: hash of what all attempts of the round have in common.
        commitment: to the server's nonce.
    """

    run_id: str
    server_round: int
    attempt: int
    context: bytes
    retry: bytes
    commitment: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply, and what it answers.

    Attributes:
        context: of the attempt.
        stage: phase, with the peer's index for BLAME_OPEN.
        request_hash: of the request's canonical content.
        data: what is sent.
        phase: kind and bytes of the machine's next phase, to keep in the same commit; None where it lives in memory only.
    """

    context: bytes
    stage: str
    request_hash: bytes
    data: bytes = field(repr=False)
    phase: tuple[int, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class KeptRoster:
    """The list of a federation's clients that this client goes by.

    Attributes:
        federation: its name.
        version: rises with every list.
        digest: of the signed list.
        body: what the client made of it: its cohort, canonical.
        log_size: leaves of the log when it was seen last.
        log_root: its root then.
    """

    federation: str
    version: int
    digest: bytes
    body: bytes
    log_size: int
    log_root: bytes


class ProtocolRecords:
    """The protocol's part of an open :class:`fedsec.clientstore.store.ClientStore`."""

    def __init__(self, connection: sqlite3.Connection, commit: Commit, folder: Path) -> None:
        self._connection, self._commit, self._folder = connection, commit, folder

    def known_reply(self, context: bytes, stage: str, request_hash: bytes) -> bytes | None:
        """The bytes that answered this request before; None if the stage was not answered.

        Raises:
            PeerError: another request was answered, or the answer is erased.
        """
        with database_errors(self._folder):
            row = self._connection.execute(
                "SELECT request_hash, reply FROM outbox WHERE context = ? AND stage = ?", (context, stage)
            ).fetchone()
        if row is None:
            return None
        if not hmac.compare_digest(bytes(row[0]), request_hash):
            raise PeerError("server", stage, "this stage was answered to another request")
        if row[1] is None:
            raise PeerError("server", stage, "this stage is over; its answer is erased")
        return bytes(row[1])

    def join(self, attempt: Attempt, reply: Reply) -> None:
        """Bind an attempt to its context, store its first reply, and erase what earlier attempts and rounds of the run left.

        Raises:
            PeerError: it must not be joined; nothing changed.
        """
        with database_errors(self._folder):
            self._check(attempt)
            with self._commit() as connection:
                connection.execute(  # the rows stay: what they answered is refused from now on, not computed anew
                    "UPDATE outbox SET reply = NULL WHERE context IN (SELECT context FROM attempts WHERE run_id = ?)", (attempt.run_id,)
                )
                connection.execute(
                    "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
                    (attempt.run_id, attempt.server_round, attempt.attempt, attempt.context, attempt.retry, attempt.commitment),
                )
                _insert(connection, reply)
                newest = "SELECT run_id FROM attempts GROUP BY run_id ORDER BY max(rowid) DESC LIMIT ?"
                stale = f"SELECT context FROM attempts WHERE run_id NOT IN ({newest})"  # noqa: S608 - constants only
                connection.execute(f"UPDATE outbox SET reply = NULL WHERE context IN ({stale})", (KEPT_RUNS,))  # noqa: S608
                connection.execute(f"DELETE FROM phases WHERE run_id NOT IN ({newest})", (KEPT_RUNS,))  # noqa: S608

    def _check(self, new: Attempt) -> None:
        phase = Phase.ADVERTISE_KEYS
        latest = self._connection.execute(
            "SELECT server_round, attempt FROM attempts WHERE run_id = ? ORDER BY server_round DESC, attempt DESC LIMIT 1", (new.run_id,)
        ).fetchone()
        if latest is not None and (new.server_round, new.attempt) <= tuple(latest):
            raise PeerError("server", phase, f"round {latest[0]}, attempt {latest[1]} was joined; rounds and attempts only rise")
        if self._connection.execute("SELECT 1 FROM attempts WHERE commitment = ?", (new.commitment,)).fetchone() is not None:
            raise PeerError("server", phase, "this nonce commitment was used before")
        earlier = self._connection.execute(
            "SELECT retry, unmasked FROM attempts WHERE run_id = ? AND server_round = ?", (new.run_id, new.server_round)
        ).fetchall()
        if any(unmasked for _, unmasked in earlier):
            raise PeerError("server", phase, "this client answered UNMASK in an earlier attempt of the round")
        if any(not hmac.compare_digest(bytes(retry), new.retry) for retry, _ in earlier):
            raise PeerError("server", phase, "a retry may differ in its attempt and nonce only")

    def write_upload(self, connection: sqlite3.Connection, reply: Reply, *, num_rows: int) -> None:
        """Within a commit of the caller's: store the masked input, and charge the sketch rows that it makes due."""
        _check_newest(connection, reply)
        connection.execute("UPDATE attempts SET sketch_rows = ? WHERE context = ?", (num_rows, reply.context))
        _insert(connection, reply)

    def store_upload(self, reply: Reply, *, num_rows: int) -> None:
        """:meth:`write_upload` in a commit of its own: the input was stored by an earlier attempt."""
        with database_errors(self._folder), self._commit() as connection:
            self.write_upload(connection, reply, num_rows=num_rows)

    def store_reply(self, reply: Reply, *, unmask: bool = False) -> None:
        """Store a reply before it is sent.

        After SKETCH the masked input is not asked for again, so its bytes go; with UNMASK those of all stages before it.

        Args:
            reply: of any stage but the first.
            unmask: it releases shares: the round is answered, for all attempts.

        Raises:
            PeerError: the attempt was not joined, or a later one was.
            LocalProtocolError: the round is answered.
        """
        with database_errors(self._folder), self._commit() as connection:
            _check_newest(connection, reply)
            if unmask:
                self._mark_unmasked(connection, reply.context)
                connection.execute("UPDATE outbox SET reply = NULL WHERE context = ?", (reply.context,))
            elif reply.stage == Phase.SKETCH:
                connection.execute("UPDATE outbox SET reply = NULL WHERE context = ? AND stage = ?", (reply.context, Phase.MASKED_INPUT))
            _insert(connection, reply)

    def _mark_unmasked(self, connection: sqlite3.Connection, context: bytes) -> None:
        row = connection.execute("SELECT run_id, server_round FROM attempts WHERE context = ?", (context,)).fetchone()
        if row is None:
            raise LocalProtocolError("UNMASK in an attempt that was not joined")
        if connection.execute("SELECT 1 FROM attempts WHERE run_id = ? AND server_round = ? AND unmasked = 1", tuple(row)).fetchone():
            raise LocalProtocolError("UNMASK of this round was answered before")
        connection.execute("UPDATE attempts SET unmasked = 1 WHERE context = ?", (context,))

    def phase(self, run_id: str) -> tuple[int, bytes] | None:
        """The phase kept of a run, if any."""
        with database_errors(self._folder):
            row = self._connection.execute("SELECT kind, data FROM phases WHERE run_id = ?", (run_id,)).fetchone()
        return (int(row[0]), bytes(row[1])) if row is not None else None

    def sketch_rows(self) -> int:
        """Sketch rows charged so far, over all runs: aborted rounds included."""
        with database_errors(self._folder):
            return int(self._connection.execute("SELECT coalesce(sum(sketch_rows), 0) FROM attempts").fetchone()[0])

    def roster(self, federation: str) -> KeptRoster | None:
        """The newest list seen of a federation."""
        with database_errors(self._folder):
            row = self._connection.execute(
                "SELECT version, digest, body, log_size, log_root FROM rosters WHERE federation = ?", (federation,)
            ).fetchone()
        if row is None:
            return None
        return KeptRoster(
            federation=federation, version=row[0], digest=bytes(row[1]), body=bytes(row[2]), log_size=row[3], log_root=bytes(row[4])
        )

    def keep_roster(self, roster: KeptRoster) -> None:
        """Go by a newer list, or by a newer head of the log.

        Raises:
            PeerError: an older version, another list of the same version, or a shorter log than was seen.
        """
        kept = self.roster(roster.federation)
        if kept is not None:
            if roster.version < kept.version or (roster.version == kept.version and roster.digest != kept.digest):
                raise PeerError("server", "roster", f"version {kept.version} of the list of clients was seen; this one is older or another")
            if roster.log_size < kept.log_size or (roster.log_size == kept.log_size and roster.log_root != kept.log_root):
                raise PeerError("server", "roster", "the log is shorter than it was, or another one")
        with database_errors(self._folder), self._commit() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rosters VALUES (?, ?, ?, ?, ?, ?)",
                (roster.federation, roster.version, roster.digest, roster.body, roster.log_size, roster.log_root),
            )


def _check_newest(connection: sqlite3.Connection, reply: Reply) -> None:
    """Only the attempt that was joined last may be answered: joining it ended all others of its run, whatever a node's memory still holds."""
    newest = connection.execute(
        "SELECT context FROM attempts WHERE run_id = (SELECT run_id FROM attempts WHERE context = ?)"
        " ORDER BY server_round DESC, attempt DESC LIMIT 1",
        (reply.context,),
    ).fetchone()
    if newest is None or not hmac.compare_digest(bytes(newest[0]), reply.context):
        raise PeerError("server", reply.stage, "this attempt was not joined, or a later one was")


def _insert(connection: sqlite3.Connection, reply: Reply) -> None:
    try:
        connection.execute("INSERT INTO outbox VALUES (?, ?, ?, ?)", (reply.context, reply.stage, reply.request_hash, reply.data))
    except sqlite3.IntegrityError:
        raise LocalProtocolError(f"stage {reply.stage} was answered before") from None
    if reply.phase is not None:
        connection.execute(
            "INSERT OR REPLACE INTO phases SELECT run_id, ?, ? FROM attempts WHERE context = ?", (*reply.phase, reply.context)
        )


@contextlib.contextmanager
def database_errors(folder: Path) -> Iterator[None]:
    """Say of any failure of the database that nothing was sent."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"the store in {folder} failed: {error}; nothing was sent") from error
