"""Replies at the gateway: collected, checked whole, and only then handed to the SuperLink.

The SuperLink lets the ServerApp see a reply as soon as it is announced, whatever its objects turn out to be. So the gateway answers
PushMessages itself, with a session of its own, and takes the objects; when the last one is there and all of them fit together, it
announces the reply to the SuperLink and hands the objects over.

1. An object must be declared, of the declared children, and have the hash that is its id; the root's own metadata must be the announced
   ones (``flower_objects``). What does not fit is refused and goes nowhere: the ServerApp never hears of such a reply.
2. Whatever was taken is in a file before it is acknowledged, so that a gateway that is killed goes on where it was. Files are not forced
   to the platter: a power cut may lose a reply, never make a false one, for the hash of a file is looked at before it is used, unless this
   process wrote it, saw its hash while it did, and nobody touched it since. Large objects never are in memory as a whole (``intake``).
3. Everything may be repeated: the same announcement gives the same session, an object that is there already is acknowledged again, also
   after the reply went through. The SuperLink's three minutes for a push begin when all is there.
4. A node has at most four open replies and eight finished ones that are remembered, one for each message that it answers, the newest; and
   at most ``node_bytes`` in its folder.

``collect/<node id>/<session>/``: ``announced`` (PushMessagesRequest), ``<object id>`` …, ``done`` when it went through.

Source: flwr 1.41, ``sql_linkstate.store_message_res``, ``sql_corestate.store_object``; decision 0015, findings 1, 10 and 11.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2
from fedsec.edge.flower_objects import check_head, check_kinds, check_object, check_unpacked, read_head, read_tree
from fedsec.edge.intake import Intake, Part
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.upstream import FileBody, Signature, signature_of
from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes

MAX_OPEN = 4
MAX_DONE = 8
MAX_MEMORY_BYTES = 256 * 1024 * 1024
"""Contents kept in memory beside their files, all nodes together; beyond it they are read again."""

_ANNOUNCED, _DONE, _CHUNK = "announced", "done", "ArrayChunk"
_SESSION_BYTES = 16


@dataclass(eq=False)
class Collection:
    """One reply of one node.

    Attributes:
        folder: of its files.
        session_id: given to the node.
        request: as announced; our own serialisation of it goes on.
        tree: objects and their children, the root first.
        kinds: of the objects that are there.
        memory: contents that are also in memory.
        written: files that this process wrote and checked, as they were then.
        taken: bytes in files.
        done: it went through.
        forgotten: nothing of it is kept in memory any more.
        lock: held while it goes through.
    """

    folder: Path
    session_id: str
    request: fleet_pb2.PushMessagesRequest
    tree: dict[str, tuple[str, ...]]
    kinds: dict[str, str] = field(default_factory=dict)
    memory: dict[str, bytes | memoryview] = field(default_factory=dict)
    written: dict[str, Signature] = field(default_factory=dict)
    taken: int = 0
    done: bool = False
    forgotten: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def message(self) -> fleet_pb2.Message:
        """The reply as it was announced."""
        return self.request.messages_list[0]

    @property
    def root(self) -> str:
        """The id of the message's own object."""
        return self.message.metadata.message_id

    def missing(self) -> list[str]:
        """Objects that are not there yet."""
        return [] if self.done else [name for name in self.tree if name not in self.kinds]


class Collector:
    """All replies that are being collected, or were lately.

    Args:
        folder: exists; nobody else writes into it.
        node_bytes: most bytes of one node's open replies.

    Raises:
        StorageError: the folder cannot be read. A damaged collection is removed: its reply is lost, and refused from then on.
    """

    def __init__(self, folder: Path, *, node_bytes: int) -> None:
        self._folder, self._node_bytes = folder, node_bytes
        self._nodes: dict[int, dict[str, Collection]] = {}
        self._memory = 0
        self._reserved: dict[int, int] = {}
        self._lock = threading.Lock()
        try:
            for node in (path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()):
                for path in sorted(node.iterdir(), key=lambda path: path.stat().st_mtime):
                    self._load(int(node.name), path)
        except OSError as error:
            raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error

    def _load(self, node_id: int, path: Path) -> None:
        try:
            request = fleet_pb2.PushMessagesRequest.FromString((path / _ANNOUNCED).read_bytes())
            found = Collection(path, path.name, request, read_tree(request.message_object_trees[0]))
            found.done = (path / _DONE).exists()
            for name in found.missing():
                if (path / name).exists():
                    content = (path / name).read_bytes()
                    found.kinds[name] = _checked(found, name, content)
                    found.taken += len(content)
            for left in path.iterdir():  # of calls that were cut, and of replies that went through
                if left.name not in {_ANNOUNCED, _DONE} and left.name not in found.kinds:
                    left.unlink()
        except (OSError, ProtobufError, IndexError, Refused):
            shutil.rmtree(path, ignore_errors=True)
        else:
            self._nodes.setdefault(node_id, {})[path.name] = found

    def __len__(self) -> int:
        return sum(not one.done for known in self._nodes.values() for one in known.values())

    def announce(self, node_id: int, request: fleet_pb2.PushMessagesRequest) -> Collection:
        """Begin a reply, or go on with the same one; it is on disk when this returns.

        Args:
            node_id: whose.
            request: checked by ``fleet_calls`` and ``deliveries``.

        Raises:
            Refused: the tree is malformed or too large.
            StorageError: the file system refused.
        """
        tree, data = read_tree(request.message_object_trees[0]), request.SerializeToString(deterministic=True)
        known = self._nodes.setdefault(node_id, {})
        for one in known.values():
            if one.request.messages_list == request.messages_list and one.tree == tree:
                return one
        answers = request.messages_list[0].metadata.reply_to_message_id
        for one in [one for one in known.values() if not one.done and one.message.metadata.reply_to_message_id == answers]:
            self._remove(node_id, one)  # the SuperNode started anew and answers once more
        session_id = secrets.token_hex(_SESSION_BYTES)
        found = Collection(self._folder / str(node_id) / session_id, session_id, request, tree)
        try:
            found.folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise StorageError(f"cannot make {found.folder}: {error.strerror or error}") from error
        atomic_write_bytes(found.folder / _ANNOUNCED, data, mode=0o600, durable=False)
        known[session_id] = found
        self._trim(node_id)
        return found

    def _trim(self, node_id: int) -> None:
        known = self._nodes[node_id]
        for done, most in ((False, MAX_OPEN), (True, MAX_DONE)):
            for one in [one for one in known.values() if one.done is done][:-most]:
                self._remove(node_id, one)

    def _remove(self, node_id: int, one: Collection) -> None:
        self._nodes[node_id].pop(one.session_id, None)
        self._forget_contents(one)
        shutil.rmtree(one.folder, ignore_errors=True)

    def _forget_contents(self, one: Collection) -> None:
        with self._lock:  # threads may be taking objects of it at this moment
            one.forgotten = True
            self._memory -= sum(map(len, one.memory.values()))
            one.memory.clear()
            one.written.clear()

    def find(self, node_id: int, session_id: str, run_id: int, object_id: str) -> Collection:
        """The reply that an object is of.

        Raises:
            Refused: no such session of this node, or it has no such object.
        """
        found = self._nodes.get(node_id, {}).get(session_id)
        if found is None or found.message.metadata.run_id != run_id or object_id not in found.tree:
            raise Refused(Reason.MESSAGE, "the object belongs to no reply that this node announced")
        return found

    def take(self, node_id: int, found: Collection, object_id: str, content: bytes | memoryview) -> None:
        """Check an object and write it down; blocks. Nothing happens if it is there.

        Raises:
            Refused: it is not what was declared, or there are too many bytes.
            StorageError: the file system refused.
        """
        if object_id not in found.missing():
            return
        self._reserve(node_id, len(content))
        try:
            kind = self._write(found, object_id, content)
            with self._lock:
                if object_id in found.kinds:  # the same object came twice at the same time
                    return
                found.taken += len(content)
                if not found.forgotten and self._memory + len(content) <= MAX_MEMORY_BYTES:
                    found.memory[object_id] = content
                    self._memory += len(content)
                found.kinds[object_id] = kind
        finally:
            with self._lock:
                self._reserved[node_id] -= len(content)

    def part(self, node_id: int, run_id: int, object_id: str, start: memoryview, size: int) -> Part | None:
        """Begin to take a large object while it comes; its bytes are reserved until :meth:`release`.

        None: it is to be taken as a whole, and refused when it is there if need be. A caller that is refused in the middle of its body may
        see its own failing write instead of the reason.

        Args:
            node_id: whose.
            run_id: of the reply.
            object_id: of the object.
            start: its first bytes.
            size: of all of it.
        """
        known = self._nodes.get(node_id, {}).values()
        found = next((one for one in known if one.message.metadata.run_id == run_id and object_id in one.missing()), None)
        try:
            head = read_head(start, size)
            if found is None or head.kind != _CHUNK:
                return None
            self._reserve(node_id, size)
        except Refused:
            return None
        path = found.folder / f"{object_id}.{secrets.token_hex(4)}"
        return Part(node_id=node_id, object_id=object_id, head=head, size=size, path=path)

    def release(self, part: Part) -> None:
        """The bytes of a part are counted elsewhere by now, or gone."""
        with self._lock:
            self._reserved[part.node_id] -= part.size

    def adopt(self, found: Collection, intake: Intake) -> None:
        """:meth:`take` for an object whose file is written already; blocks, raises the same."""
        part = intake.part
        check_head(part.head, found.tree[part.object_id], root=found.message if part.object_id == found.root else None)
        if intake.object_sha256 != part.object_id:
            raise Refused(Reason.MESSAGE, "an object's id is not its hash")
        with self._lock:
            if part.object_id in found.missing():
                self._name(found, part)

    def _name(self, found: Collection, part: Part) -> None:
        path = found.folder / part.object_id
        try:
            part.path.replace(path)
            found.written[part.object_id] = signature_of(path.stat())
        except OSError as error:
            raise StorageError(f"cannot write an object of a reply: {error.strerror or error}") from error
        found.taken += part.size
        found.kinds[part.object_id] = part.head.kind

    def _reserve(self, node_id: int, size: int) -> None:
        """Count bytes before they are written, for a node may send many objects at the same time."""
        with self._lock:
            open_bytes = sum(one.taken for one in list(self._nodes.get(node_id, {}).values()) if not one.done)
            reserved = self._reserved.get(node_id, 0)
            if open_bytes + reserved + size > self._node_bytes:
                raise Refused(Reason.SIZE, f"this node's unfinished replies would have over {self._node_bytes} bytes")
            self._reserved[node_id] = reserved + size

    @staticmethod
    def _write(found: Collection, object_id: str, content: bytes | memoryview) -> str:
        part = found.folder / f"{object_id}.{secrets.token_hex(4)}"
        with ThreadPoolExecutor(1) as pool:  # a large object is written while it is hashed; its name it gets afterwards
            writing = pool.submit(atomic_write_bytes, part, content, mode=0o600, durable=False)
            try:
                kind = _checked(found, object_id, content)
                writing.result()
                part.replace(found.folder / object_id)
            except OSError as error:
                raise StorageError(f"cannot write an object of a reply: {error.strerror or error}") from error
            finally:
                writing.exception()
                part.unlink(missing_ok=True)
        return kind

    def content(self, found: Collection, object_id: str) -> bytes | memoryview | FileBody:
        """An object that is there; blocks. Of a file that this process wrote and nobody touched since, the hash is not looked at once more.

        Raises:
            StorageError: its file is gone or damaged.
        """
        if (kept := found.memory.get(object_id)) is not None:
            return kept
        path, written = found.folder / object_id, found.written.get(object_id)
        try:
            if written is not None and signature_of(path.stat()) == written:
                return FileBody(path, written)
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read an object of a reply: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != object_id:
            raise StorageError("an object of a reply is damaged on disk")
        return content

    def check_whole(self, found: Collection) -> None:
        """Refuse a reply whose objects do not fit into each other, or unpack to too much; all are there. Blocks.

        Raises:
            Refused: it must be dropped.
            StorageError: a file is gone.
        """
        check_kinds(found.tree, found.kinds)
        try:
            sizes = {name: (found.folder / name).stat().st_size for name in found.tree}
        except OSError as error:
            raise StorageError(f"cannot read an object of a reply: {error.strerror or error}") from error
        check_unpacked(found.root, found.kinds, sizes, lambda name: self._small(found, name), more_bytes=self._node_bytes // MAX_OPEN)

    @staticmethod
    def _small(found: Collection, name: str) -> bytes | memoryview:
        """An object that holds others."""
        kept = found.memory.get(name)
        if kept is not None:
            return kept
        try:
            return (found.folder / name).read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read an object of a reply: {error.strerror or error}") from error

    def finish(self, node_id: int, found: Collection) -> None:
        """It went through: remember only that; blocks. Its files are :meth:`tidy`'s.

        Raises:
            StorageError: the file system refused.
        """
        atomic_write_bytes(found.folder / _DONE, b"", mode=0o600, durable=False)
        found.done = True
        self._forget_contents(found)
        self._trim(node_id)

    @staticmethod
    def tidy(found: Collection) -> None:
        """Remove the files of a reply that went through; blocks, and nobody need wait for it."""
        with contextlib.suppress(OSError):
            for name in found.kinds:
                (found.folder / name).unlink(missing_ok=True)

    def drop(self, found: Collection) -> None:
        """Forget a reply that cannot go through."""
        for node_id, known in self._nodes.items():
            if known.get(found.session_id) is found:
                self._remove(node_id, found)
                return

    def forget(self, node_id: int) -> None:
        """The node is gone, and its replies with it."""
        for one in list(self._nodes.get(node_id, {}).values()):
            self._remove(node_id, one)
        self._nodes.pop(node_id, None)
        shutil.rmtree(self._folder / str(node_id), ignore_errors=True)


def _checked(found: Collection, object_id: str, content: bytes | memoryview) -> str:
    """An object's kind, if it is what was declared; raises Refused."""
    read_head(content)  # cheap, and most that is wrong shows here
    if hashlib.sha256(content).hexdigest() != object_id:
        raise Refused(Reason.MESSAGE, "an object's id is not its hash")
    return check_object(content, found.tree[object_id], root=found.message if object_id == found.root else None)
