"""A federation in a folder, a stand-in for the SuperLink, and agents that behave or do not: for the gateway's tests."""

import asyncio
import base64
import contextlib
import hashlib
import http.server
import json
import socket
import ssl
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from experiments.ports import free_port
from fedsec.edge import fleet_pb2, paths
from fedsec.edge.edge_client import FlowerHeaders, open_session
from fedsec.edge.fleet_calls import flower_public_key, public_key_header
from fedsec.edge.gateway import Gateway
from fedsec.edge.loopback_tls import ensure_loopback_tls
from fedsec.edge.server_settings import load_server_settings
from fedsec.edge.service import CLIENT_OPTIONS, EdgeStub
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import create_identity, make_identity
from fedsec.identity.revocation import Revocation, make_crl
from fedsec.identity.roster import Roster, RosterMember, SignedRoster, make_roster
from fedsec.identity.tls import channel_credentials, channel_options
from fedsec.signing import Signer

FEDERATION = "hearts.example"
SERVER_APP = 1


def now():
    return datetime.now(UTC)


@dataclass
class Party:
    """A node with its key and certificate."""

    name: str
    signer: Signer
    issued: object
    identity: object

    @property
    def serial_number(self):
        return self.issued.serial_number


class Lab:
    """CA, server home, nodes."""

    def __init__(self, folder: Path, names=("node-a", "node-b"), *, superlink_port=None, toml=""):
        self.folder = folder
        self.home = folder / "home"
        self.authority = CertificateAuthority.create(FEDERATION, now=now())
        self.nodes = {}
        self.revoked = []
        self.crl_number = 0
        self.roster = None
        self.superlink_port = superlink_port or free_port()
        self.port = free_port()
        (self.home / "superlink").mkdir(parents=True)
        (self.home / "federation" / "certificates").mkdir(parents=True)
        ensure_loopback_tls(self.home / "superlink", now=now())
        signer = Signer.generate()
        self.server_signer = signer
        self.server_issued = self.authority.issue_server("main", signer.public_key, now=now())
        create_identity(
            self.home / "identity", signer, self.server_issued.certificate_der, self.authority.intermediate_der, self.authority.root_der
        )
        for name in names:
            self.add(name, listed=False)
        self.write_lists()
        self.write_settings(toml)

    def write_settings(self, toml=""):
        text = (
            f'[server]\nfederation = "{FEDERATION}"\n[superlink]\nport = {self.superlink_port}\n'
            f'[gateway]\nlisten = "127.0.0.1:{self.port}"\n'
        )
        (self.home / "server.toml").write_text(text + toml)

    def issue(self, name, signer, *, at=None):
        return self.authority.issue_node(name, signer.public_key, site="basel", now=at or now())

    def add(self, name, *, listed=True, signer=None, at=None):
        signer = signer or Signer.generate()
        issued = self.issue(name, signer, at=at)
        identity = make_identity(signer, issued.certificate_der, self.authority.intermediate_der, self.authority.root_der)
        self.nodes[name] = Party(name, signer, issued, identity)
        if listed:
            self.write_lists()
        return self.nodes[name]

    def write_lists(self, *, crl_lifetime=timedelta(hours=72), leave_out=()):
        federation = self.home / "federation"
        listed = {name: node for name, node in self.nodes.items() if name not in leave_out}
        members = [RosterMember(n.name, n.signer.public_key, n.issued.fingerprint) for n in listed.values()]
        for node in listed.values():
            (federation / "certificates" / f"{node.name}.der").write_bytes(node.issued.certificate_der)
        signed: SignedRoster = make_roster(
            self.authority.signer,
            federation=FEDERATION,
            members=members,
            cohort_size=max(2, len(members)),
            server_public_key=self.server_signer.public_key,
            server_fingerprint=self.server_issued.fingerprint,
            now=now(),
            previous=self.roster,
        )
        self.roster = Roster.decode(signed.roster_bytes)
        (federation / "roster.json").write_bytes(signed.roster_bytes)
        (federation / "roster.signature").write_bytes(signed.signature)
        self.write_crl(lifetime=crl_lifetime)

    def write_crl(self, *, lifetime=timedelta(hours=72), at=None):
        self.crl_number += 1
        der = make_crl(self.authority, self.revoked, number=self.crl_number, now=at or now(), lifetime=lifetime)
        (self.home / "federation" / "crl.der").write_bytes(der)

    def revoke(self, name):
        self.revoked.append(Revocation(self.nodes[name].serial_number, now()))
        self.write_crl()

    @contextlib.asynccontextmanager
    async def gateway(self):
        gateway = Gateway(load_server_settings(self.home))
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.stop(grace_s=0.5)

    def audit(self):
        return [json.loads(line) for line in (self.home / "gateway" / "audit.jsonl").read_text().splitlines()]


def flower_headers(signer: Signer, at: datetime) -> FlowerHeaders:
    """Flower's own headers, as a SuperNode makes them."""
    key = serialization.load_pem_private_key(signer.to_pem(), None)
    stamp = at.astimezone(UTC).isoformat()
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return FlowerHeaders(public_key_header(signer.public_key), stamp, base64.b64encode(signature).decode())


class LabAgent:
    """An agent of the lab: connects, says Hello, forwards."""

    def __init__(self, lab: Lab, name: str, *, port=None, party=None, options=()):
        self.lab = lab
        self.party = party or lab.nodes[name]
        self.channel = grpc.aio.secure_channel(
            f"127.0.0.1:{port or lab.port}",
            channel_credentials(self.party.identity),
            options=[*channel_options("main"), *CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *options],
        )
        self.stub = EdgeStub(self.channel)
        self.session = None

    async def __aenter__(self):
        await self.hello()
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    async def hello(self):
        self.session = await open_session(
            self.stub,
            self.party.signer,
            certificate_der=self.party.identity.certificate_der,
            root_der=self.party.identity.root_der,
            federation=FEDERATION,
            server_name="main",
            agent_version="test",
            now=now(),
        )
        return self.session

    def headers(self):
        return flower_headers(self.party.signer, now())

    async def call(self, path, message=None, *, body=None, received_pull=b"", timeout_s=20.0, headers=None):
        body = message.SerializeToString() if body is None else body
        return await self.session.forward(path, body, headers or self.headers(), received_pull=received_pull, timeout_s=timeout_s)

    async def heartbeat(self, node_id):
        return await self.call(paths.SEND_NODE_HEARTBEAT, fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=node_id)))

    async def pull(self, node_id, **options):
        return await self.call(paths.PULL_MESSAGES, fleet_pb2.PullMessagesRequest(node=fleet_pb2.Node(node_id=node_id)), **options)


@dataclass
class FakeSuperLink:
    """Control and Fleet calls of a SuperLink, as far as the gateway needs them; marks a message delivered when it is pulled."""

    lab: Lab
    answers: dict = field(default_factory=dict)
    delay_s: float = 0.0

    def __post_init__(self):
        self.nodes = {}
        self.unregistered = []
        self.inbox = defaultdict(list)
        self.calls = []
        self.announced = []
        self.objects = {}
        self.next_id = 1000
        self._server = None

    def __enter__(self):
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = fake.answer(self.path, body, self.headers)
                self.send_response(status)
                self.send_header("content-type", "application/protobuf" if status == 200 else "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.open = set()

            def get_request(self):
                # The handshake is left to the connection's own thread.
                plain, address = self.socket.accept()
                secure = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                self.open.add(secure)
                return secure, address

            def handle_error(self, *_):
                pass

        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = self.lab.home / "superlink"
        tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self._server = Server(("127.0.0.1", self.lab.superlink_port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def answer(self, path, body, headers):  # noqa: PLR0911
        self.calls.append((path, len(body)))
        if self.delay_s:
            time.sleep(self.delay_s)
        if path in self.answers:
            return self.answers[path](body, headers) if callable(self.answers[path]) else self.answers[path]
        if path == "/v1/control/list-nodes":
            infos = [fleet_pb2.NodeInfo(node_id=i, public_key=pem, status="online") for pem, i in self.nodes.items()]
            return 200, fleet_pb2.ListNodesResponse(nodes_info=infos).SerializeToString()
        if path == "/v1/control/register-node":
            pem = fleet_pb2.RegisterNodeRequest.FromString(body).public_key
            self.next_id += 1
            self.nodes[pem] = self.next_id
            return 200, fleet_pb2.RegisterNodeResponse(node_id=self.next_id).SerializeToString()
        if path == "/v1/control/unregister-node":
            gone = fleet_pb2.UnregisterNodeRequest.FromString(body).node_id
            self.nodes = {pem: i for pem, i in self.nodes.items() if i != gone}
            self.unregistered.append(gone)
            return 200, b""
        if path == paths.PULL_MESSAGES:
            inbox = self.inbox[fleet_pb2.PullMessagesRequest.FromString(body).node.node_id]
            return 200, inbox.pop(0) if inbox else b""
        if path == paths.PUSH_MESSAGES:
            request = fleet_pb2.PushMessagesRequest.FromString(body)
            names = list(dict.fromkeys(_names(request.message_object_trees[0])))
            self.announced.append(request)
            wanted = [name for name in names if name not in self.objects]
            return 200, fleet_pb2.PushMessagesResponse(objects_to_push=wanted, session_id="upstream").SerializeToString()
        if path == paths.PUSH_OBJECT:
            request = fleet_pb2.PushObjectRequest.FromString(body)
            stored = request.object_id not in self.objects and request.session_id == "upstream"
            self.objects[request.object_id] = request.object_content
            return 200, fleet_pb2.PushObjectResponse(stored=stored).SerializeToString()
        if path == paths.SEND_NODE_HEARTBEAT:
            return 200, fleet_pb2.SendNodeHeartbeatResponse(success=True).SerializeToString()
        return 200, b""

    def node_id(self, name):
        return self.nodes[flower_public_key(self.lab.nodes[name].signer.public_key)]

    def send(self, name, text="hello"):
        """A message for a node."""
        metadata = fleet_pb2.Metadata(run_id=1, message_id=text, src_node_id=SERVER_APP, dst_node_id=self.node_id(name))
        answer = fleet_pb2.PullMessagesResponse(
            messages_list=[fleet_pb2.Message(metadata=metadata)],
            message_object_trees=[fleet_pb2.ObjectTree(object_id=sent_object(text)[0])],
        )
        self.inbox[self.node_id(name)].append(answer.SerializeToString())


def _names(tree):
    return [name for child in tree.children for name in _names(child)] + [tree.object_id]


def sent_object(text):
    """Id and content of the object that stands for a message of the server's."""
    return flower_object("Message", text.encode())


def flower_object(kind, body, children=()):
    """Id and content of an object, as flwr writes it."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


@dataclass
class LabReply:
    """A reply with its objects: one record of settings and one of an array with two chunks."""

    node_id: int
    reply_to: str = "asked"
    outer: dict = field(default_factory=dict)
    inner: dict = field(default_factory=dict)
    chunks: tuple = (b"\x93NUMPY first", b"second")

    def __post_init__(self):
        facts = {"run_id": 1, "src_node_id": self.node_id, "dst_node_id": SERVER_APP, "reply_to_message_id": self.reply_to,
                 "message_type": "train", "ttl": 600.0, "created_at": 1.5}  # fmt: skip
        objects = [flower_object("ArrayChunk", chunk) for chunk in self.chunks]
        chunks = [name for name, _ in objects]
        array = {"dtype": "float32", "shape": [2], "stype": "numpy.ndarray", "arraychunk_ids": [*range(len(chunks))]}
        objects.append(flower_object("Array", json.dumps(array).encode(), chunks))
        objects.append(flower_object("ArrayRecord", json.dumps({"w": objects[-1][0]}).encode(), [objects[-1][0]]))
        objects.append(flower_object("ConfigRecord", b"\x0a\x08\x0a\x02on\x12\x02\x20\x01"))  # {"on": True}
        records = [objects[-2][0], objects[-1][0]]
        objects.append(flower_object("RecordDict", json.dumps({"update": records[0], "about": records[1]}).encode(), records))
        metadata = fleet_pb2.Metadata(**{**facts, **self.inner})
        body = fleet_pb2.Message(metadata=metadata).SerializeToString()
        objects.append(flower_object("Message", body, [objects[-1][0]]))
        self.objects = dict(objects)
        self.message_id = objects[-1][0]
        self.metadata = fleet_pb2.Metadata(**{**facts, **self.outer}, message_id=self.message_id)
        self.tree = tree_of(self.objects, self.message_id)

    def announcement(self):
        return fleet_pb2.PushMessagesRequest(
            node=fleet_pb2.Node(node_id=self.node_id),
            messages_list=[fleet_pb2.Message(metadata=self.metadata, content=fleet_pb2.RecordDict())],
            message_object_trees=[self.tree],
            clientapp_runtime_list=[1.5],
        )

    async def announce(self, agent):
        return fleet_pb2.PushMessagesResponse.FromString((await agent.call(paths.PUSH_MESSAGES, self.announcement())).body)

    async def push_one(self, agent, session_id, object_id, *, content=None, **changes):
        request = fleet_pb2.PushObjectRequest(
            **{"node": fleet_pb2.Node(node_id=self.node_id), "run_id": 1, "object_id": object_id, "session_id": session_id,
               "object_content": self.objects[object_id] if content is None else content, **changes}
        )  # fmt: skip
        answer = await agent.call(paths.PUSH_OBJECT, request)
        return answer.status == 200 and fleet_pb2.PushObjectResponse.FromString(answer.body).stored

    async def push(self, agent):
        """All of it, as an honest SuperNode does."""
        told = await self.announce(agent)
        for object_id in [name for name in self.objects if name in set(told.objects_to_push)]:
            assert await self.push_one(agent, told.session_id, object_id)
        return told


def tree_of(objects, object_id):
    children = [text for text in objects[object_id].split(b"\0")[0].split(b" ")[1].decode().split(",") if text]
    return fleet_pb2.ObjectTree(object_id=object_id, children=[tree_of(objects, child) for child in children])


def message_ids(answer):
    return [message.metadata.message_id for message in fleet_pb2.PullMessagesResponse.FromString(answer.body).messages_list]


def push(node_id, *, source=None, destination=SERVER_APP, reply_to="asked", message_id="m", count=1, trees=1):
    """A PushMessages request; the defaults are honest."""
    metadata = fleet_pb2.Metadata(
        run_id=1,
        message_id=message_id,
        src_node_id=node_id if source is None else source,
        dst_node_id=destination,
        reply_to_message_id=reply_to,
        message_type="train",
    )
    return fleet_pb2.PushMessagesRequest(
        node=fleet_pb2.Node(node_id=node_id),
        messages_list=[fleet_pb2.Message(metadata=metadata)] * count,
        message_object_trees=[fleet_pb2.ObjectTree(object_id=message_id)] * trees,
    )


async def until(check, timeout_s=10.0, every_s=0.02):
    """Wait for something that must become true."""
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(every_s)


@contextlib.contextmanager
def refused(status, reason=None):
    """The block's call is refused with this status and word."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is status, caught.value.details()
    assert reason is None or caught.value.details().startswith(f"{reason}: "), caught.value.details()
