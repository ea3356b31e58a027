"""An agent's connection, over a real gateway on loopback: what restarts, impostors, clocks, revocation and renewal do to calls under way."""

import asyncio
import contextlib
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FakeSuperLink, Lab, now, until

from experiments.ports import free_port
from fedsec.edge import fleet_pb2, paths
from fedsec.edge.agent_channel import CallFailedError, LinkSettings, LinkState
from fedsec.edge.agent_link import Link
from fedsec.edge.edge_pb2 import HelloReply, HelloRequest
from fedsec.edge.service import SERVICE
from fedsec.edge.signing import Hello, new_share, sign_hello
from fedsec.errors import FedsecError
from fedsec.identity.folder import make_identity
from fedsec.identity.tls import server_credentials
from fedsec.signing import Signer


def heartbeat(fake):
    return fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=fake.node_id("node-a"))).SerializeToString()


def pull(fake):
    return fleet_pb2.PullMessagesRequest(node=fleet_pb2.Node(node_id=fake.node_id("node-a"))).SerializeToString()


@contextlib.asynccontextmanager
async def linked(lab, *, clock=now, port=None, server_name="main", identity=None, **more):
    states = []
    settings = LinkSettings(f"127.0.0.1:{port or lab.port}", server_name, first_wait_s=0.05, longest_wait_s=0.3, refused_wait_s=0.3)
    link = Link(
        settings,
        identity or lab.nodes["node-a"].identity,
        on_state=lambda state, sentence: states.append((state, sentence)),
        clock=clock,
        **more,
    )
    link.states = states
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, ("node-a",), toml="hold_s = 2.0\nrefresh_s = 0.2\n")


@pytest.fixture
def fake(lab):
    with FakeSuperLink(lab) as superlink:
        yield superlink


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def fails(link, fake, status, *, within_s=2.0):
    with pytest.raises(CallFailedError) as caught:
        await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake) if fake else b"", timeout_s=within_s)
    assert caught.value.status == status, caught.value
    return str(caught.value)


def test_a_call_gets_the_superlinks_answer_with_headers_in_the_gateways_time_whatever_our_clock_says(lab, fake):
    """The edge's clock is five hours fast: Flower alone would refuse the node and end it."""
    stamps = []
    fake.answers[paths.SEND_NODE_HEARTBEAT] = lambda _body, headers: (stamps.append(headers["flwr-timestamp"]), (200, b"\x08\x01"))[1]

    async def story():
        async with lab.gateway(), linked(lab, clock=lambda: now() + timedelta(hours=5)) as link:
            await until(lambda: fake.nodes)
            answer = await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)
            assert (answer.status, answer.body) == (200, b"\x08\x01")
            assert link.offset_s == pytest.approx(-5 * 3600, abs=5)

    run(story())
    assert abs((datetime.fromisoformat(stamps[0]) - now()).total_seconds()) < 5


def test_an_answer_without_the_sessions_proof_reaches_no_supernode(lab, fake):
    """Somebody else answers in the gateway's place: it is not believed, and a new session asks again."""
    from fedsec.edge.signing import SessionKeys

    async def story():
        async with lab.gateway() as gateway, linked(lab) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            (strange,) = gateway.state.sessions._by_id.values()
            strange.keys = SessionKeys(strange.keys.call, bytes(32))
            fake.answers[paths.SEND_NODE_HEARTBEAT] = (200, b"\x08\x01")
            answer = await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=10)
            assert (answer.status, answer.body) == (200, b"\x08\x01")
            assert link._current.session._session_id != strange.session_id
            beats = [path for path, _ in fake.calls if path == paths.SEND_NODE_HEARTBEAT]
            assert len(beats) == 2  # the first answer was dropped

    run(story())


def test_a_gateway_whose_time_is_days_off_is_not_believed(lab, fake):
    async def story():
        async with lab.gateway(), linked(lab, clock=lambda: now() + timedelta(hours=30)) as link:
            await until(lambda: link.state is LinkState.WRONG_SERVER)
            assert "clock" in link.states[-1][1]
            await fails(link, None, 503, within_s=0.3)

    run(story())


def test_calls_wait_through_a_gateway_restart_and_are_answered(lab, fake):
    async def story():
        async with linked(lab) as link:
            async with lab.gateway():
                await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
                assert (await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status == 200
                held = asyncio.create_task(link.forward(paths.PULL_MESSAGES, pull(fake), timeout_s=20))
                await until(lambda: any(path == paths.PULL_MESSAGES for path, _ in fake.calls))
            during = asyncio.create_task(link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=20))
            await asyncio.sleep(0.5)
            assert not during.done()
            async with lab.gateway():
                assert (await during).status == 200
                assert (await held).status == 200

    run(story())


def test_a_message_that_was_on_its_way_when_the_gateway_ended_is_served_again(lab, fake):
    async def story():
        async with linked(lab) as link:
            async with lab.gateway():
                await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
                fake.send("node-a", "first")
                answer = await link.forward(paths.PULL_MESSAGES, pull(fake), timeout_s=10)
                assert answer.delivery
            async with lab.gateway():  # nothing was acknowledged: the SuperNode died with it, say
                again = await link.forward(paths.PULL_MESSAGES, pull(fake), timeout_s=10)
                assert (again.body, again.delivery) == (answer.body, answer.delivery)
                done = await link.forward(paths.PULL_MESSAGES, pull(fake), received_pull=again.delivery, timeout_s=10)
                assert (done.body, done.delivery) == (b"", b"")

    run(story())


@contextlib.asynccontextmanager
async def wire(target):
    """A line to the gateway that can be cut: an object with ``port``, ``cut()`` and ``mend()``."""

    class Wire:
        open, broken = set(), False

        def cut(self):
            self.broken = True
            for writer in list(self.open):
                writer.transport.abort()

        def mend(self):
            self.broken = False

    line = Wire()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def accept(reader, writer):
        if line.broken:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        line.open |= {writer, far_writer}
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        line.cut()


def test_calls_wait_through_a_cut_line(lab, fake):
    async def story():
        async with lab.gateway(), wire(lab.port) as line, linked(lab, port=line.port) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            for _ in range(3):
                assert (await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status == 200
                held = asyncio.create_task(link.forward(paths.PULL_MESSAGES, pull(fake), timeout_s=20))
                await asyncio.sleep(0.3)
                line.cut()
                await until(lambda: link.state is LinkState.CONNECTING)
                during = asyncio.create_task(link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=20))
                await asyncio.sleep(0.4)
                assert not during.done()
                assert not held.done()
                line.mend()
                assert (await during).status == 200
                fake.send("node-a", "after the cut")
                answer = await held
                assert answer.status == 200
                await link.forward(paths.PULL_MESSAGES, pull(fake), received_pull=answer.delivery, timeout_s=20)

    run(story())


def test_a_connection_that_went_before_a_waiting_call_saw_it_is_waited_for_again(tmp_path):
    lab = Lab(tmp_path, ("node-a",))

    async def story():
        with FakeSuperLink(lab):
            async with lab.gateway(), linked(lab) as link:
                await until(lambda: link.state is LinkState.CONNECTED)
                link._ready.clear()
                call = asyncio.create_task(link._connection(time.monotonic() + 5))
                await asyncio.sleep(0)
                link._ready.set()
                link._ready.clear()  # both before the call goes on
                await asyncio.sleep(0.05)
                assert not call.done()
                link._ready.set()
                assert (await call).session

    run(story())


def test_a_gateway_that_ends_old_connections_costs_no_call(tmp_path):
    """gRPC's maximum age of a connection: the channel would reconnect by itself; the link says Hello anew instead."""
    lab = Lab(tmp_path, ("node-a",), toml="hold_s = 1.0\nmax_connection_age_s = 1.0\n")
    failed, answered = [], []

    async def story():
        with FakeSuperLink(lab) as fake:
            async with lab.gateway(), linked(lab) as link:
                await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
                end = asyncio.get_running_loop().time() + 4
                while asyncio.get_running_loop().time() < end:
                    try:
                        answered.append((await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status)
                    except CallFailedError as error:
                        failed.append(error)
                    await asyncio.sleep(0.02)
                assert sum(state is LinkState.CONNECTED for state, _ in link.states) >= 3

    run(story())
    assert not failed
    assert set(answered) == {200}


def test_without_a_gateway_a_call_ends_in_its_time_as_an_outage(lab):
    async def story():
        async with linked(lab, port=free_port()) as link:
            began = asyncio.get_running_loop().time()
            await fails(link, None, 503, within_s=0.5)
            assert asyncio.get_running_loop().time() - began < 2

    run(story())


@contextlib.asynccontextmanager
async def impostor(lab, identity, answer):
    """A gRPC server with another identity of the federation; keeps the methods that were called."""
    called = []

    async def handle(request, _context):
        return await answer(request)

    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            called.append(details.method)
            if details.method == f"/{SERVICE}/Hello":
                return grpc.unary_unary_rpc_method_handler(handle)
            return None

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Anything(),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: identity))
    await server.start()
    try:
        yield port, called
    finally:
        await server.stop(0)


def test_another_server_of_the_same_federation_is_not_ours(lab):
    """Its certificate is sound, and its subject names another server: TLS ends the handshake, and not even Hello goes there."""
    signer = Signer.generate()
    issued = lab.authority.issue_server("backup", signer.public_key, now=now())
    identity = make_identity(signer, issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der)

    async def answer(_request):
        return HelloReply(session_id=bytes(16), server_certificate=issued.certificate_der, intermediate=lab.authority.intermediate_der).SerializeToString()  # fmt: skip

    async def story():
        async with impostor(lab, identity, answer) as (port, called), linked(lab, port=port) as link:
            await until(lambda: link.state is LinkState.WRONG_SERVER)
            assert "is not the server main" in link.states[-1][1]
            await fails(link, None, 503, within_s=0.3)
            assert called == []

    run(story())


def test_another_key_under_the_servers_name_cannot_hand_on_what_the_server_signs(lab):
    """A certificate for the name ``main`` in other hands passes TLS; the true gateway would have seen another client certificate than ours."""
    signer = Signer.generate()
    issued = lab.authority.issue_server("main", signer.public_key, now=now())
    identity = make_identity(signer, issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der)
    session, time_ms = bytes(range(16)), int(now().timestamp() * 1000)

    async def answer(request):
        asked, share = HelloRequest.FromString(request), new_share().public_key().public_bytes_raw()
        hello = Hello(asked.client_nonce, asked.client_share, session, time_ms, share, issued.certificate_der)
        signature = sign_hello(lab.server_signer, hello)  # what it got for its own connection
        return HelloReply(
            session_id=session, server_time_ms=time_ms, server_certificate=lab.server_issued.certificate_der,
            intermediate=lab.authority.intermediate_der, signature=signature, server_share=share,
        ).SerializeToString()  # fmt: skip

    async def story():
        async with impostor(lab, identity, answer) as (port, called), linked(lab, port=port) as link:
            await until(lambda: link.state is LinkState.WRONG_SERVER)
            assert "does not verify" in link.states[-1][1]
            await fails(link, None, 503, within_s=0.3)
            assert set(called) == {f"/{SERVICE}/Hello"}  # no call, no body ever went there

    run(story())


def test_a_server_that_was_revoked_is_left_at_once_and_gets_nothing_more(lab, fake):
    """Its certificate is valid for days yet; TLS cannot see the revocation list, the agent can."""
    revoked = set()

    async def story():
        async with lab.gateway(), linked(lab, is_revoked=lambda serial_number: serial_number in revoked) as link:
            await until(lambda: fake.nodes)
            assert (await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status == 200
            link.check_server()
            assert link.state is LinkState.CONNECTED
            revoked.add(link._current.session.server_serial_number)
            link.check_server()
            await until(lambda: link.state is LinkState.WRONG_SERVER)
            assert "was revoked" in link.states[-1][1]
            calls = len(fake.calls)
            await fails(link, fake, 503, within_s=0.5)
            assert len(fake.calls) == calls
            revoked.clear()
            await until(lambda: link.state is LinkState.CONNECTED)

    run(story())


def test_a_node_that_listens_at_the_gateways_address_gets_nothing(lab):
    node = lab.nodes["node-a"].identity

    async def answer(_request):
        raise AssertionError("TLS lets a client's certificate be a server's")

    async def story():
        async with impostor(lab, node, answer) as (port, called), linked(lab, port=port) as link:
            await fails(link, None, 503, within_s=1.0)
            assert called == []

    run(story())


def test_a_revoked_node_is_told_401_and_asks_again_now_and_then(lab, fake):
    async def story():
        async with lab.gateway(), linked(lab) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            body = heartbeat(fake)  # the gateway takes the node off the SuperLink too
            lab.revoke("node-a")
            for _ in range(50):
                try:
                    await link.forward(paths.SEND_NODE_HEARTBEAT, body, timeout_s=2)
                except CallFailedError as error:
                    assert error.status == 401  # noqa: PT017
                    break
                await asyncio.sleep(0.1)
            assert link.state is LinkState.UNAUTHORISED
            assert "revoked" in link.states[-1][1]
            await asyncio.sleep(1.0)
            assert link.state is LinkState.UNAUTHORISED  # and it stays so: no flapping
            assert await fails(link, None, 401) == "this node is unauthorised"

    run(story())


def test_an_expired_certificate_is_told_apart_from_an_outage(lab, fake):
    late = lambda: now() + timedelta(hours=80)  # noqa: E731

    async def story():
        async with linked(lab, clock=late, port=free_port()) as link:
            await until(lambda: link.state is LinkState.EXPIRED)
            assert "enrol again" in link.states[-1][1]
            await fails(link, None, 401)

    run(story())


def test_a_renewal_under_load_drops_no_call(lab, fake):
    """Heartbeats side by side and a held poll, while the certificate changes five times."""
    answered, failed = [], []

    async def beat(link, stop):
        while not stop.is_set():
            try:
                answered.append((await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status)
            except CallFailedError as error:
                failed.append(error)

    async def story():
        async with lab.gateway(), linked(lab) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            stop = asyncio.Event()
            beats = [asyncio.create_task(beat(link, stop)) for _ in range(4)]
            held = asyncio.create_task(link.forward(paths.PULL_MESSAGES, pull(fake), timeout_s=20))
            for _ in range(5):
                issued = lab.issue("node-a", lab.nodes["node-a"].signer)
                renewed = make_identity(lab.nodes["node-a"].signer, issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der)  # fmt: skip
                await link.adopt(renewed)
                await asyncio.sleep(0.1)
            assert (await held).status == 200
            stop.set()
            await asyncio.gather(*beats)
            assert link.identity is renewed

    run(story())
    assert not failed
    assert len(answered) > 20
    assert set(answered) == {200}


def test_a_new_certificate_that_the_gateway_refuses_leaves_the_old_connection_in_use(lab, fake):
    async def story():
        async with lab.gateway(), linked(lab) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            with pytest.raises(FedsecError, match="no connection with the new certificate"):
                await link.adopt(Lab(lab.folder / "other", ("node-a",)).nodes["node-a"].identity)
            assert (await link.forward(paths.SEND_NODE_HEARTBEAT, heartbeat(fake), timeout_s=5)).status == 200

    run(story())


def test_a_forbidden_call_is_not_repeated(lab, fake):
    async def story():
        async with lab.gateway(), linked(lab) as link:
            await until(lambda: fake.nodes and link.state is LinkState.CONNECTED)
            foreign = fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=4711)).SerializeToString()
            with pytest.raises(CallFailedError) as caught:
                await link.forward(paths.SEND_NODE_HEARTBEAT, foreign, timeout_s=5)
            assert caught.value.status == 400
            assert link.state is LinkState.CONNECTED

    run(story())
    assert not [path for path, _ in fake.calls if path == paths.SEND_NODE_HEARTBEAT]
