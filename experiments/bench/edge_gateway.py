"""The gateway's throughput: 40 MB updates through it beside the same bytes over bare TLS, small calls a second, memory over 10,000 calls.

``python -m experiments.bench.edge_gateway [--json] [--calls N] [--megabytes N]``

Three processes on loopback: this one is the agent, the gateway is the real process, and a stand-in for the SuperLink takes what it gets over
TLS 1.3 and keeps nothing. "Bare TLS" is an HTTPS POST of the same bytes from this process to the stand-in. Both are measured in turn, best of
each. What goes through the gateway is a whole reply, announced and pushed in five objects one after the other: the bytes are encrypted
twice, hashed three times, written to a file, checked, and handed on when all are there. All of that shares two cores where the machine has no more.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from experiments.bench.table import Row, parser, show
from experiments.ports import free_port
from fedsec.edge import fleet_pb2, paths
from fedsec.edge.edge_client import EdgeSession, FlowerHeaders, open_session
from fedsec.edge.fleet_calls import public_key_header
from fedsec.edge.loopback_tls import ensure_loopback_tls
from fedsec.edge.memory import keep_freed_memory
from fedsec.edge.service import CLIENT_OPTIONS, EdgeStub
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import Identity, create_identity, make_identity
from fedsec.identity.revocation import make_crl
from fedsec.identity.roster import RosterMember, make_roster
from fedsec.identity.tls import channel_credentials, channel_options
from fedsec.signing import Signer

FEDERATION, NODE_ID, RUN_ID, ASKED = "bench.example", 4711, 1, "0" * 64
LIMIT_CALLS_PER_S = 500.0
LIMIT_MB_PER_S = 200.0
LIMIT_GROWTH_MB = 5.0
AT_A_TIME = 8
PIECE = 1 << 20


def stand_in(folder: Path, port: int) -> None:
    """The SuperLink's part: registers nobody, answers what the bench sends; bodies are read and dropped."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16
        known = b""

        def do_POST(self) -> None:
            left = int(self.headers["content-length"])
            head = self.rfile.read(min(left, 4096))
            left -= len(head)
            while left:
                left -= len(self.rfile.read(min(left, PIECE)))
            answer = b""
            if self.path.endswith("/register-node"):
                Handler.known = fleet_pb2.RegisterNodeRequest.FromString(head).public_key
                answer = fleet_pb2.RegisterNodeResponse(node_id=NODE_ID).SerializeToString()
            elif self.path.endswith("/push-messages"):
                tree = fleet_pb2.PushMessagesRequest.FromString(head).message_object_trees[0]
                answer = fleet_pb2.PushMessagesResponse(objects_to_push=names_of(tree), session_id="x").SerializeToString()
            elif self.path.endswith("/push-object"):
                answer = fleet_pb2.PushObjectResponse(stored=True).SerializeToString()
            elif self.path.endswith("/pull-messages"):
                metadata = fleet_pb2.Metadata(run_id=RUN_ID, message_id=ASKED, src_node_id=1, dst_node_id=NODE_ID)
                answer = fleet_pb2.PullMessagesResponse(
                    messages_list=[fleet_pb2.Message(metadata=metadata)], message_object_trees=[fleet_pb2.ObjectTree(object_id=ASKED)]
                ).SerializeToString()
            elif self.path.endswith("/list-nodes") and Handler.known:
                info = fleet_pb2.NodeInfo(node_id=NODE_ID, public_key=Handler.known, status="online")
                answer = fleet_pb2.ListNodesResponse(nodes_info=[info]).SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def make_home(home: Path, *, port: int, superlink_port: int) -> Identity:
    """A server's folder with one node on its list; gives the node's identity."""
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(FEDERATION, now=now)
    server, node = Signer.generate(), Signer.generate()
    for name in ("superlink", "federation/certificates"):
        (home / name).mkdir(parents=True)
    ensure_loopback_tls(home / "superlink", now=now)
    issued = authority.issue_server("main", server.public_key, now=now)
    create_identity(home / "identity", server, issued.certificate_der, authority.intermediate_der, authority.root_der)
    nodes = authority.issue_node("node", node.public_key, site="here", now=now)
    roster = make_roster(
        authority.signer,
        federation=FEDERATION,
        members=[RosterMember("node", node.public_key, nodes.fingerprint)],
        cohort_size=2,
        server_public_key=server.public_key,
        server_fingerprint=issued.fingerprint,
        now=now,
    )
    federation = home / "federation"
    (federation / "certificates" / "node.der").write_bytes(nodes.certificate_der)
    (federation / "roster.json").write_bytes(roster.roster_bytes)
    (federation / "roster.signature").write_bytes(roster.signature)
    (federation / "crl.der").write_bytes(make_crl(authority, [], number=1, now=now))
    (home / "server.toml").write_text(
        f'[server]\nfederation = "{FEDERATION}"\n[superlink]\nport = {superlink_port}\n[gateway]\nlisten = "127.0.0.1:{port}"\n'
        "[limits]\ncalls_per_s = 1000000\ncalls_burst = 1000000\nbytes_per_s = 1e12\nbytes_burst = 1000000000000\n"
    )
    return make_identity(node, nodes.certificate_der, authority.intermediate_der, authority.root_der)


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that ends with the block."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()
        child.wait()


def headers_of(signer: Signer) -> FlowerHeaders:
    key = serialization.load_pem_private_key(signer.to_pem(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    stamp = datetime.now(UTC).isoformat()
    signature = base64.b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode()
    return FlowerHeaders(public_key_header(signer.public_key), stamp, signature)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, without what it only maps."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("Anonymous:")) / 1024


def names_of(tree: fleet_pb2.ObjectTree) -> list[str]:
    return [name for child in tree.children for name in names_of(child)] + [tree.object_id]


def flower_object(kind: str, body: bytes, children: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """Id and content of an object, as flwr writes it."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


class Update:
    """A reply with one array of that size.

    Args:
        chunk: its largest object.
        number: makes it another reply.
    """

    def __init__(self, chunk: tuple[str, bytes], number: int) -> None:
        self.objects = [chunk]
        array = {"dtype": "float32", "shape": [len(chunk[1]) // 4], "stype": "numpy.ndarray", "arraychunk_ids": [0]}
        for kind, body in (("Array", array), ("ArrayRecord", "w"), ("RecordDict", "update")):
            child = self.objects[-1][0]
            self.objects.append(flower_object(kind, json.dumps({body: child} if isinstance(body, str) else body).encode(), (child,)))
        facts = fleet_pb2.Metadata(
            run_id=RUN_ID, src_node_id=NODE_ID, dst_node_id=1, reply_to_message_id=ASKED, message_type="train", created_at=float(number)
        )
        self.objects.append(flower_object("Message", fleet_pb2.Message(metadata=facts).SerializeToString(), (self.objects[-1][0],)))
        facts.message_id = self.objects[-1][0]
        tree = fleet_pb2.ObjectTree(object_id=chunk[0])
        for name, _ in self.objects[1:]:
            tree = fleet_pb2.ObjectTree(object_id=name, children=[tree])
        message = fleet_pb2.Message(metadata=facts, content=fleet_pb2.RecordDict())
        self.announcement = fleet_pb2.PushMessagesRequest(
            node=fleet_pb2.Node(node_id=NODE_ID), messages_list=[message], message_object_trees=[tree]
        ).SerializeToString()

    def bodies(self, session_id: str) -> list[bytes]:
        """The requests that push it, in order."""
        node = fleet_pb2.Node(node_id=NODE_ID)
        return [
            fleet_pb2.PushObjectRequest(
                node=node, run_id=RUN_ID, object_id=name, object_content=content, session_id=session_id
            ).SerializeToString()
            for name, content in self.objects
        ]


async def push(session: EdgeSession, update: Update, headers: FlowerHeaders) -> float:
    """Seconds for a whole reply, but for making its requests."""
    began = time.perf_counter()
    answer = await session.forward(paths.PUSH_MESSAGES, update.announcement, headers, timeout_s=60)
    spent = time.perf_counter() - began
    bodies = update.bodies(fleet_pb2.PushMessagesResponse.FromString(answer.body).session_id)
    began = time.perf_counter()
    for body in bodies:
        answer = await session.forward(paths.PUSH_OBJECT, body, headers, timeout_s=60)
        assert fleet_pb2.PushObjectResponse.FromString(answer.body).stored
    return spent + time.perf_counter() - began


def post_bare(connection: http.client.HTTPSConnection, body: bytes) -> float:
    """Seconds for one POST to the stand-in, past the gateway."""
    began = time.perf_counter()
    connection.request("POST", paths.PUSH_OBJECT, body, {"content-type": "application/protobuf"})
    connection.getresponse().read()
    return time.perf_counter() - began


async def ready(stub: EdgeStub, identity: Identity) -> EdgeSession:
    """A session, as soon as gateway and registration are there."""
    end = time.monotonic() + 30
    while True:
        try:
            session = await open_session(
                stub,
                identity.signer,
                certificate_der=identity.certificate_der,
                root_der=identity.root_der,
                federation=FEDERATION,
                server_name="main",
                agent_version="bench",
                now=datetime.now(UTC),
            )
            await session.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(), headers_of(identity.signer), timeout_s=5)
        except grpc.aio.AioRpcError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)
        else:
            return session


def heartbeat() -> bytes:
    return fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=NODE_ID)).SerializeToString()


def pull() -> bytes:
    return fleet_pb2.PullMessagesRequest(node=fleet_pb2.Node(node_id=NODE_ID)).SerializeToString()


async def many_calls(session: EdgeSession, signer: Signer, number: int) -> float:
    """Seconds for so many small calls, some at a time."""
    headers, left = headers_of(signer), iter(range(number))

    async def worker() -> None:
        for _ in left:
            await session.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(), headers, timeout_s=30)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_A_TIME)))
    return time.perf_counter() - began


async def measure(
    arguments: argparse.Namespace, home: Path, identity: Identity, port: int, superlink_port: int, gateway_pid: int
) -> list[Row]:
    tls = ssl.create_default_context(cafile=home / "superlink" / "ca.pem")
    bare = http.client.HTTPSConnection("127.0.0.1", superlink_port, context=tls)
    options = [*channel_options("main"), *CLIENT_OPTIONS]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", channel_credentials(identity), options=options) as channel:
        session = await ready(EdgeStub(channel), identity)
        await many_calls(session, identity.signer, 3000)  # threads, arenas and caches are warm
        before = resident_mb(gateway_pid)
        rate = arguments.calls / await many_calls(session, identity.signer, arguments.calls)
        growth = resident_mb(gateway_pid) - before
        pulled = await session.forward(paths.PULL_MESSAGES, pull(), headers_of(identity.signer), timeout_s=30)
        assert pulled.delivery
        chunk = flower_object("ArrayChunk", os.urandom(arguments.megabytes * 1_000_000))
        body = chunk[1]
        ours, peer = [], []
        for number in range(arguments.rounds):
            peer.append(post_bare(bare, body))
            ours.append(await push(session, Update(chunk, number), headers_of(identity.signer)))
    megabytes = len(body) / 1e6
    bare.close()
    return [
        Row(what=f"{megabytes:.0f} MB update, seconds", ours=min(ours), peer=min(peer), peer_name="bare TLS", unit="s"),
        Row(what="the same, against twice bare TLS", ours=min(ours), peer=2 * min(peer), peer_name="limit, or the next", unit="s"),
        Row(what="time for 200 MB", ours=200 * min(ours) / megabytes, peer=1.0, peer_name=f"limit, {LIMIT_MB_PER_S:.0f} MB/s", unit="s"),
        Row(what="one small call", ours=1000 / rate, peer=1000 / LIMIT_CALLS_PER_S, peer_name="limit, 500 calls/s", unit="ms"),
        Row(what=f"memory grown over {arguments.calls} calls", ours=growth, peer=LIMIT_GROWTH_MB, peer_name="limit", unit="MB"),
    ]


def run(arguments: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        home, port, superlink_port = Path(folder) / "home", free_port(), free_port()
        identity = make_home(home, port=port, superlink_port=superlink_port)
        stub = (sys.executable, "-m", "experiments.bench.edge_gateway", "--stand-in", str(home / "superlink"), str(superlink_port))
        with process(*stub), process(sys.executable, "-m", "fedsec.edge.gateway", "--home", str(home)) as gateway:
            return asyncio.run(measure(arguments, home, identity, port, superlink_port, gateway.pid))


def main() -> None:
    if sys.argv[1:2] == ["--stand-in"]:
        stand_in(Path(sys.argv[2]), int(sys.argv[3]))
        return
    made = parser(__doc__ or "")
    made.add_argument("--calls", type=int, default=10_000)
    made.add_argument("--megabytes", type=int, default=40)
    made.add_argument("--rounds", type=int, default=25)
    arguments = made.parse_args()
    keep_freed_memory()  # as the agent does, whose part this process plays
    show("The gateway", run(arguments), as_json=arguments.json)


if __name__ == "__main__":
    main()
