"""The gateway on a real port with real handshakes; a stand-in for the SuperLink behind it. Attacks are told one by one."""

import asyncio
import dataclasses
import hashlib
import random
import socket
import ssl
import sys
import time
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FakeSuperLink, Lab, LabAgent, LabReply, Party, message_ids, now, push, refused, sent_object, until

from experiments.ports import free_port
from fedsec.edge import edge_pb2, fleet_pb2, paths
from fedsec.edge.edge_client import send_call
from fedsec.edge.service import EdgeStub
from fedsec.edge.signing import Call, prove_call
from fedsec.identity.folder import make_identity
from fedsec.identity.tls import channel_credentials, channel_options
from fedsec.signing import Signer

CODE = grpc.StatusCode


class World:
    """A lab whose gateway runs and has registered its nodes."""

    def __init__(self, lab, superlink, gateway):
        self.lab, self.superlink, self.gateway = lab, superlink, gateway
        self.state = gateway.state

    def agent(self, name="node-a", **options):
        return LabAgent(self.lab, name, **options)

    def id(self, name="node-a"):
        return self.superlink.node_id(name)


def play(tmp_path, story, *, toml="", names=("node-a", "node-b")):
    """Run a story in a world of its own."""

    async def run():
        lab = Lab(tmp_path, names, toml=toml)
        with FakeSuperLink(lab) as superlink:
            async with lab.gateway() as gateway:
                await until(lambda: len(gateway.state.registry) == len(names))
                await story(World(lab, superlink, gateway))

    asyncio.run(run())


FAST = "hold_s = 1.0\nrefresh_s = 0.2\n"


def signed(agent, **changes):
    """A call of the agent, with changes, signed after them."""
    body = changes.pop("body", b"")
    headers = agent.headers()
    fields = {
        "session_id": agent.session._session_id,
        "counter": next(agent.session._counter),
        "path": paths.GET_RUN,
        "received_pull": b"",
        "public_key": headers.public_key,
        "timestamp": headers.timestamp,
        "flower_signature": headers.signature,
        "body_size": len(body),
        "body_sha256": hashlib.sha256(body).digest(),
    }
    call = Call(**{**fields, **changes})
    return call, agent.session._keys, body


def get_run(node_id):
    return fleet_pb2.GetRunRequest(node=fleet_pb2.Node(node_id=node_id), run_id=1).SerializeToString()


class TestHonest:
    def test_a_call_reaches_the_superlink_with_flowers_headers(self, tmp_path):
        async def story(world):
            seen = {}

            def answer(body, headers):
                seen.update(headers.items())
                return 200, body[::-1]

            world.superlink.answers[paths.GET_RUN] = answer
            async with world.agent() as agent:
                body = get_run(world.id())
                got = await agent.call(paths.GET_RUN, body=body)
            assert (got.status, got.body, got.delivery) == (200, body[::-1], b"")
            assert {"flwr-public-key", "flwr-timestamp", "flwr-signature"} <= {name.lower() for name in seen}

        play(tmp_path, story)

    @pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 * (1 << 20) + 7])
    def test_bodies_of_all_sizes_pass_whole_in_both_directions(self, tmp_path, size):
        async def story(world):
            answer = fleet_pb2.PullObjectResponse(
                object_found=True, object_available=True, object_content=random.randbytes(size)
            ).SerializeToString()
            world.superlink.answers[paths.PULL_OBJECT] = (200, answer)
            world.superlink.send("node-a", "asked")
            async with world.agent() as agent:
                await agent.pull(world.id())
                reply = LabReply(world.id(), chunks=(random.randbytes(size),))
                await reply.push(agent)
                assert world.superlink.objects == reply.objects
                asked = fleet_pb2.PullObjectRequest(node=fleet_pb2.Node(node_id=world.id()), run_id=1, object_id=sent_object("asked")[0])
                assert (await agent.call(paths.PULL_OBJECT, asked)).body == answer
            assert world.state.limiter.held_bytes == 0

        play(tmp_path, story)

    @pytest.mark.parametrize("status", [403, 404, 412, 500, 503])
    def test_the_superlinks_own_refusals_pass_unchanged(self, tmp_path, status):
        async def story(world):
            world.superlink.answers[paths.GET_RUN] = (status, b'{"detail": "so"}')
            async with world.agent() as agent:
                got = await agent.call(paths.GET_RUN, body=get_run(world.id()))
            assert (got.status, got.body) == (status, b'{"detail": "so"}')

        play(tmp_path, story)

    def test_nodes_json_names_who_is_served(self, tmp_path):
        from fedsec.edge.registration import read_nodes

        async def story(world):
            nodes = read_nodes(world.lab.home / "gateway" / "nodes.json")
            assert {node_id: node.client_id for node_id, node in nodes.items()} == {world.id(n): n for n in ("node-a", "node-b")}
            assert nodes[world.id()].serial_number == world.lab.nodes["node-a"].serial_number

        play(tmp_path, story)


class TestWhoMayCall:
    def test_no_certificate_no_handshake(self, tmp_path):
        async def story(world):
            root = world.lab.nodes["node-a"].identity.root_der
            credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(root).encode())
            async with grpc.aio.secure_channel(f"127.0.0.1:{world.gateway.port}", credentials, options=channel_options("main")) as channel:
                with refused(CODE.UNAVAILABLE):
                    await EdgeStub(channel).hello(edge_pb2.HelloRequest(client_nonce=bytes(32)), timeout=5)

        play(tmp_path, story)

    def test_another_federations_certificate_no_handshake(self, tmp_path):
        async def story(world):
            foreign = Lab(tmp_path / "foreign")
            agent = world.agent(party=foreign.nodes["node-a"])
            with refused(CODE.UNAVAILABLE):
                await agent.stub.hello(edge_pb2.HelloRequest(client_nonce=bytes(32)), timeout=5)
            await agent.channel.close()

        (tmp_path / "foreign").mkdir()
        play(tmp_path / "own", story)

    def test_a_server_certificate_is_no_node(self, tmp_path):
        """root ── intermediate ── server "main": under the same root, right TLS, wrong role."""

        async def story(world):
            lab = world.lab
            identity = make_identity(
                lab.server_signer, lab.server_issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der
            )
            agent = world.agent(party=Party("main", lab.server_signer, lab.server_issued, identity))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await agent.stub.hello(edge_pb2.HelloRequest(client_nonce=bytes(32)), timeout=5)
            assert caught.value.code() in (CODE.UNAUTHENTICATED, CODE.UNAVAILABLE)
            await agent.channel.close()

        play(tmp_path, story)

    def test_a_tls_12_client_is_refused_above_tls(self, tmp_path):
        """The handshake of TLS 1.2 succeeds in gRPC; the first call says why it ends."""

        async def story(world):
            party = world.lab.nodes["node-a"]
            folder = tmp_path / "pem"
            folder.mkdir()
            chain = b"".join(
                ssl.DER_cert_to_PEM_cert(der).encode() for der in (party.identity.certificate_der, party.identity.intermediate_der)
            )
            (folder / "chain.pem").write_bytes(chain)
            (folder / "key.pem").write_bytes(party.signer.to_pem())
            status = await asyncio.to_thread(hello_over_tls12, world.gateway.port, folder)
            assert status == str(CODE.UNAUTHENTICATED.value[0])
            assert any(line.get("refused") == "tls" for line in world.lab.audit())

        play(tmp_path, story)

    def test_revoked_certificates_are_refused_and_their_node_leaves(self, tmp_path):
        async def story(world):
            node_id = world.id()
            async with world.agent() as agent:
                await agent.heartbeat(node_id)
                world.lab.revoke("node-a")
                await until(lambda: world.superlink.unregistered == [node_id], timeout_s=5)
                with refused(CODE.UNAUTHENTICATED, "revoked"):
                    await agent.heartbeat(node_id)
                with refused(CODE.UNAUTHENTICATED, "revoked"):
                    await agent.hello()
            async with world.agent("node-b") as other:
                await other.heartbeat(world.id("node-b"))

        play(tmp_path, story, toml=FAST)

    def test_a_held_call_of_a_revoked_certificate_is_cut_within_five_seconds(self, tmp_path):
        """Default settings: the agent is in the middle of a long poll on a live channel."""

        async def story(world):
            async with world.agent() as agent:
                held = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: len(world.state.holders) == 1)
                began = time.monotonic()
                world.lab.revoke("node-a")
                with refused(CODE.UNAUTHENTICATED, "revoked"):
                    await held
                assert time.monotonic() - began < 5.0
                assert len(world.state.sessions) == 0

        play(tmp_path, story)

    def test_an_expired_certificate_is_refused_on_a_channel_that_is_open(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await agent.heartbeat(world.id())
                later = now() + timedelta(hours=73)
                world.lab.write_crl(at=later, lifetime=timedelta(hours=1))
                world.state.trust._clock = lambda: later
                await until(lambda: world.state.trust.standing.crl.number == 2)
                with refused(CODE.UNAUTHENTICATED, "certificate"):
                    await agent.heartbeat(world.id())

        play(tmp_path, story, toml=FAST)

    def test_without_a_good_revocation_list_nobody_passes_and_it_is_an_outage(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                world.state.trust._clock = lambda: now() + timedelta(hours=71, minutes=59)
                await agent.heartbeat(world.id())
                real = world.state.trust.standing
                world.state.trust.standing = dataclasses.replace(
                    real, crl=dataclasses.replace(real.crl, next_update=now() - timedelta(seconds=1))
                )
                with refused(CODE.UNAVAILABLE, "no-revocation-list"):
                    await agent.heartbeat(world.id())

        play(tmp_path, story)

    def test_an_older_revocation_list_does_not_bring_a_client_back(self, tmp_path):
        """Whoever can write the file puts yesterday's list into its place; across a restart too."""

        async def story(world):
            path = world.lab.home / "federation" / "crl.der"
            old = path.read_bytes()
            world.lab.revoke("node-a")
            await until(lambda: world.state.trust.standing.crl.number == 2)
            path.write_bytes(old)
            await until(lambda: any(line["event"] == "fault" for line in world.lab.audit()))
            with refused(CODE.UNAUTHENTICATED, "revoked"):
                await world.agent().hello()
            async with Restarted(world):
                with refused(CODE.UNAVAILABLE, "no-revocation-list"):
                    await world.agent().hello()

        play(tmp_path, story, toml=FAST)

    def test_a_session_that_ends_while_its_call_runs_gets_no_answer(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                ask, key = world.state.ask, agent.party.signer.public_key

                async def ends(*arguments, **options):
                    answer = await ask(*arguments, **options)
                    assert world.state.sessions.end(key) == 1
                    return answer

                world.state.ask = ends
                with refused(CODE.FAILED_PRECONDITION, "session"):
                    await agent.heartbeat(world.id())

        play(tmp_path, story)

    def test_a_client_not_on_the_list_waits(self, tmp_path):
        async def story(world):
            world.lab.add("node-c", listed=False)
            async with world.agent("node-c") as agent:
                with refused(CODE.UNAVAILABLE, "not-registered"):
                    await agent.heartbeat(1)
                world.lab.write_lists()
                await until(lambda: len(world.state.registry) == 3)
                await agent.heartbeat(world.id("node-c"))

        play(tmp_path, story, toml=FAST)


class Restarted:
    """The world's gateway ends and another one begins on the same folder and port."""

    def __init__(self, world):
        self.world = world

    async def __aenter__(self):
        await self.world.gateway.stop(grace_s=0.2)
        self.context = self.world.lab.gateway()
        self.gateway = await self.context.__aenter__()
        return self.gateway

    async def __aexit__(self, *exception):
        await self.context.__aexit__(*exception)
        self.world.gateway.stop = _nothing


async def _nothing(**_):
    pass


def hello_over_tls12(port, folder):
    """A Hello by hand over HTTP/2 on TLS 1.2; gives the call's grpc-status."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as secure:
        assert secure.version() == "TLSv1.2"

        def frame(kind, flags, stream, payload):
            return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

        def literal(name, value):
            return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

        headers = b"".join(
            literal(name, value)
            for name, value in [
                (b":method", b"POST"),
                (b":scheme", b"https"),
                (b":path", b"/fedsec.edge.v1.Edge/Hello"),
                (b":authority", b"x"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            ]
        )
        message = edge_pb2.HelloRequest(client_nonce=bytes(32)).SerializeToString()
        data = b"\x00" + len(message).to_bytes(4, "big") + message
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers) + frame(0, 1, 1, data))
        received = b""
        while b"grpc-status" not in received:
            piece = secure.recv(65536)
            assert piece, "closed without an answer"
            received += piece
        value = received.split(b"grpc-status", 1)[1]
        return value[1 : 1 + value[0]].decode()


class TestCalls:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/control/start-run",
            "/v1/control/list-nodes",
            "/v1/control/register-node",
            "/v1/runtime/acquire-task",
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
            "/v1/fleet/../control/start-run",
            "/v1/fleet/get-run/",
            "/v1/fleet/get-run?x",
            "/V1/fleet/get-run",
            "v1/fleet/get-run",
            "",
            "/",
            "/v1/fleet/get-run\r\nx: y",
        ],
    )
    def test_no_other_path_passes(self, tmp_path, path):
        async def story(world):
            before = len(world.superlink.calls)
            async with world.agent() as agent:
                with refused(CODE.PERMISSION_DENIED, "path"):
                    await agent.call(path, body=get_run(world.id()))
            assert not any(called == path for called, _ in world.superlink.calls[before:])

        play(tmp_path, story)

    def test_a_captured_call_with_another_body_path_or_counter_is_worth_nothing(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                call, keys, body = signed(agent, body=get_run(world.id()))
                assert (await send_call(agent.stub, call, keys, body)).status == 200
                with refused(CODE.FAILED_PRECONDITION, "counter"):
                    await send_call(agent.stub, call, keys, body)
                other = push(world.id()).SerializeToString()
                fresh, keys, _ = signed(agent, body=body)
                with refused(CODE.PERMISSION_DENIED, "signature"):
                    await send_call(agent.stub, fresh, keys, body[:-1] + b"\x02")
                changed = [
                    {"path": paths.PUSH_MESSAGES, "body_size": len(other), "body_sha256": hashlib.sha256(other).digest()},
                    {"counter": fresh.counter + 5},
                    {"path": paths.GET_FAB},
                    {"received_pull": bytes(32)},
                    {"timestamp": "2026-01-01T00:00:00+00:00"},
                ]
                fresh, keys, _ = signed(agent, body=body)
                proof = prove_call(keys, fresh)
                for change in changed:
                    with refused(CODE.PERMISSION_DENIED, "signature"):
                        await send_call(agent.stub, dataclasses.replace(fresh, **change), keys, other, proof=proof)
                assert (await send_call(agent.stub, fresh, keys, body)).status == 200

        play(tmp_path, story)

    def test_another_clients_session_and_an_invented_one_do_not_exist(self, tmp_path):
        async def story(world):
            async with world.agent() as mine, world.agent("node-b") as theirs:
                for session_id in (theirs.session._session_id, bytes(16)):
                    with refused(CODE.FAILED_PRECONDITION, "session"):
                        await send_call(mine.stub, *signed(mine, session_id=session_id, body=get_run(world.id())))
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await send_call(mine.stub, *signed(mine, session_id=b"", body=get_run(world.id())))

        play(tmp_path, story)

    def test_a_counter_far_ahead_or_zero_is_refused(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                for counter in (0, 5000, 2**64 - 1):
                    with refused(CODE.FAILED_PRECONDITION, "counter"):
                        await send_call(agent.stub, *signed(agent, counter=counter, body=get_run(world.id())))
                await agent.heartbeat(world.id())

        play(tmp_path, story)

    def test_another_node_signs_with_the_sessions_id_over_its_own_channel(self, tmp_path):
        """node-b has captured node-a's session id and signs with its own key."""

        async def story(world):
            async with world.agent() as victim, world.agent("node-b") as thief:
                call, _, body = signed(victim, body=get_run(world.id()))
                with refused(CODE.FAILED_PRECONDITION, "session"):
                    await send_call(thief.stub, call, thief.session._keys, body)
                with refused(CODE.PERMISSION_DENIED, "signature"):
                    await send_call(victim.stub, call, thief.session._keys, body)

        play(tmp_path, story)

    def test_no_node_speaks_for_another_or_commands_one(self, tmp_path):
        async def story(world):
            mine, theirs = world.id("node-b"), world.id("node-a")
            async with world.agent("node-b") as agent:
                for request in (
                    push(mine, source=1, destination=theirs, reply_to=""),
                    push(mine, source=theirs),
                    push(mine, destination=theirs),
                    push(mine, reply_to=""),
                    push(mine, count=2),
                ):
                    with refused(CODE.PERMISSION_DENIED, "message"):
                        await agent.call(paths.PUSH_MESSAGES, request)
                with refused(CODE.PERMISSION_DENIED, "node"):
                    await agent.call(paths.PUSH_MESSAGES, push(theirs))
                with refused(CODE.PERMISSION_DENIED, "node"):
                    await agent.pull(theirs)
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await agent.call(paths.PUSH_MESSAGES, body=b"\xff\xff\xff")
                assert not any(path == paths.PUSH_MESSAGES for path, _ in world.superlink.calls)
                world.superlink.send("node-b", "asked")
                await agent.pull(mine)
                assert (await LabReply(mine).announce(agent)).session_id

        play(tmp_path, story)

    def test_flowers_headers_of_another_key_are_refused(self, tmp_path):
        from gateway_lab import flower_headers

        async def story(world):
            async with world.agent() as agent:
                with refused(CODE.PERMISSION_DENIED, "public-key"):
                    await agent.call(paths.GET_RUN, body=get_run(world.id()), headers=flower_headers(Signer.generate(), now()))

        play(tmp_path, story)


class TestLimits:
    def test_a_body_announced_as_too_large_is_refused_before_it_comes(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                for path, size in ((paths.GET_RUN, 65537), (paths.PUSH_MESSAGES, 2 << 20), (paths.PUSH_OBJECT, 2_000_001)):
                    with refused(CODE.RESOURCE_EXHAUSTED, "size"):
                        await send_call(agent.stub, *signed(agent, path=path, body_size=size))

        play(tmp_path, story, toml="[limits]\nobject_bytes = 2000000\n")

    def test_a_large_body_waits_until_its_head_was_taken_so_that_a_refusal_is_heard(self, tmp_path):
        """Sent on at once, four in five of these ended as "Internal error from Core", and the agent tried them again until its time was up."""

        async def story(world):
            async with world.agent() as agent:
                body = bytes(3_000_000)
                for _ in range(30):
                    with refused(CODE.RESOURCE_EXHAUSTED, "size"):
                        await send_call(agent.stub, *signed(agent, path=paths.PUSH_OBJECT, body=body)[:2], body)
                sound = bytes(1_900_000)  # two pieces, and no object of Flower's
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await send_call(agent.stub, *signed(agent, path=paths.PUSH_OBJECT, body=sound)[:2], sound)

        play(tmp_path, story, toml="[limits]\nobject_bytes = 2000000\ncalls_burst = 100\n")

    def test_more_or_less_than_announced_is_refused(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                body = get_run(world.id())
                call, keys, _ = signed(agent, body=body)
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await send_call(agent.stub, call, keys, body + bytes(10))
                call, keys, _ = signed(agent, body=body)
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await send_call(agent.stub, call, keys, body[:-1])

        play(tmp_path, story)

    def test_a_slow_body_is_cut_and_its_memory_given_back(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                call, keys, _ = signed(agent, path=paths.PUSH_OBJECT, body_size=1000)

                async def trickle():
                    yield edge_pb2.ForwardRequest(**vars(call), proof=prove_call(keys, call), chunk=b"x")
                    for _ in range(100):
                        await asyncio.sleep(0.1)
                        yield edge_pb2.ForwardRequest(chunk=b"x")

                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in agent.stub.forward(trickle(), timeout=20):
                        pass
                # Now and then the refusal meets a piece under way, and gRPC shows the caller the failure of that piece.
                assert caught.value.code() in (CODE.RESOURCE_EXHAUSTED, CODE.INTERNAL)
                assert {"method": "forward", "client": "node-a", "refused": "slow"}.items() <= world.lab.audit()[-1].items()
                assert world.state.limiter.held_bytes == 0

        play(tmp_path, story, toml="body_timeout_s = 0.5\n")

    def test_announced_and_never_sent_ends_soon_and_keeps_nobody_out(self, tmp_path):
        """A body of this size has over an hour to come; a pause in it has not."""

        async def story(world):
            async with world.agent() as agent, world.agent("node-b") as other:

                async def silent():
                    call, keys, _ = signed(agent, path=paths.PUSH_OBJECT, body_size=200 << 20)

                    async def head():
                        yield edge_pb2.ForwardRequest(**vars(call), proof=prove_call(keys, call), chunk=b"x")
                        await asyncio.sleep(20)

                    try:
                        async for _ in agent.stub.forward(head(), timeout=20):
                            pass
                    except grpc.aio.AioRpcError as error:
                        return error.details()

                silence = [asyncio.create_task(silent()) for _ in range(4)]
                await asyncio.sleep(0.3)
                assert world.state.limiter.held_bytes == 200 << 20  # one of the four
                assert (await other.heartbeat(world.id("node-b"))).status == 200
                told = await asyncio.gather(*silence)
                assert sorted(text.split(":")[0] for text in told) == ["busy", "busy", "busy", "slow"]
                assert world.state.limiter.held_bytes == 0

        play(tmp_path, story, toml="body_timeout_s = 1.0\n")

    def test_a_flood_hits_the_flooder_only(self, tmp_path):
        async def story(world):
            async with world.agent() as flooder, world.agent("node-b") as other:
                results = await asyncio.gather(*(flooder.heartbeat(world.id()) for _ in range(60)), return_exceptions=True)
                hit = [error for error in results if isinstance(error, grpc.aio.AioRpcError)]
                assert len(hit) >= 30
                assert {error.code() for error in hit} == {CODE.RESOURCE_EXHAUSTED}
                for _ in range(10):
                    assert (await other.heartbeat(world.id("node-b"))).status == 200

        play(tmp_path, story, toml="[limits]\ncalls_per_s = 1\ncalls_burst = 20\n")


class TestPulling:
    def test_a_message_comes_as_soon_as_it_is_there(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                held = asyncio.create_task(agent.pull(world.id()))
                await asyncio.sleep(0.6)
                assert not held.done()
                world.superlink.send("node-a", "m1")
                began = time.monotonic()
                answer = await held
                assert message_ids(answer) == ["m1"]
                assert len(answer.delivery) == 32
                assert time.monotonic() - began < 1.5

        play(tmp_path, story)

    def test_nothing_comes_when_the_time_is_up(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                answer = await agent.pull(world.id())
                assert (answer.status, answer.body, answer.delivery) == (200, b"", b"")

        play(tmp_path, story, toml="hold_s = 0.5\n")

    def test_served_again_until_confirmed_then_the_next(self, tmp_path):
        async def story(world):
            world.superlink.send("node-a", "m1")
            world.superlink.send("node-a", "m2")
            async with world.agent() as agent:
                first = await agent.pull(world.id())
                again = await agent.pull(world.id())
                wrong = await agent.pull(world.id(), received_pull=b"w" * 32)
                assert first.delivery == again.delivery == wrong.delivery
                assert message_ids(again) == ["m1"]
                second = await agent.pull(world.id(), received_pull=first.delivery)
                assert message_ids(second) == ["m2"]
            async with world.agent() as agent:  # a new session: confirmations go on
                third = await agent.pull(world.id(), received_pull=second.delivery)
                assert third.body == b""

        play(tmp_path, story, toml="hold_s = 0.5\n")

    def test_a_caller_that_is_gone_stops_the_asking_and_loses_nothing(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                world.superlink.delay_s = 0.4
                world.superlink.send("node-a", "m1")
                held = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: any(path == paths.PULL_MESSAGES for path, _ in world.superlink.calls))
                held.cancel()  # while the SuperLink hands the message out
                await until(lambda: len(world.state.spool) == 1)
                asked = len(world.superlink.calls)
                await asyncio.sleep(1.0)
                assert len(world.superlink.calls) == asked
                world.superlink.delay_s = 0
                assert message_ids(await agent.pull(world.id())) == ["m1"]

        play(tmp_path, story)

    def test_a_second_pull_takes_the_place_of_the_first(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                first = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: len(world.state.holders) == 1)
                second = asyncio.create_task(agent.pull(world.id()))
                assert (await first).body == b""
                world.superlink.send("node-a", "m1")
                assert message_ids(await second) == ["m1"]

        play(tmp_path, story)

    def test_stopping_answers_held_calls(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                held = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: len(world.state.holders) == 1)
                world.state.stopping.set()
                assert (await held).body == b""
                with refused(CODE.UNAVAILABLE, "stopping"):
                    await agent.heartbeat(world.id())

        play(tmp_path, story)


class TestOutages:
    def test_a_superlink_that_is_down_is_503_and_comes_back(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await agent.heartbeat(world.id())
                world.superlink.__exit__()
                with refused(CODE.UNAVAILABLE, "superlink"):
                    await agent.heartbeat(world.id())
                world.superlink.__enter__()
                await agent.heartbeat(world.id())

        play(tmp_path, story)

    def test_a_superlink_that_forgot_its_nodes_is_503_not_401_and_they_are_registered_again(self, tmp_path):
        async def story(world):
            before = world.id()
            async with world.agent() as agent:
                world.superlink.nodes.clear()
                world.superlink.answers[paths.SEND_NODE_HEARTBEAT] = (401, b"{}")
                with refused(CODE.UNAVAILABLE, "superlink"):
                    await agent.heartbeat(before)
                await until(lambda: len(world.superlink.nodes) == 2)
                del world.superlink.answers[paths.SEND_NODE_HEARTBEAT]
                await until(lambda: world.state.registry.find(agent.party.signer.public_key).node_id == world.id())
                await agent.heartbeat(world.id())

        play(tmp_path, story)

    def test_a_renewed_certificate_drops_no_call_in_flight(self, tmp_path):
        """The session is the key's: the old channel's held call goes on, the new channel uses the same session."""

        async def story(world):
            async with world.agent() as agent:
                held = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: len(world.state.holders) == 1)
                old = agent.party
                renewed = world.lab.add("node-a", listed=False, signer=old.signer)
                assert renewed.serial_number != old.serial_number
                async with LabAgent(world.lab, "node-a") as new:
                    new.session._session_id = agent.session._session_id
                    new.session._counter, new.session._keys = agent.session._counter, agent.session._keys
                    assert (await new.heartbeat(world.id())).status == 200
                    world.superlink.send("node-a", "m1")
                    assert message_ids(await held) == ["m1"]

        play(tmp_path, story)

    def test_the_servers_own_renewal_is_used_by_the_next_handshake_and_keeps_open_channels(self, tmp_path):
        from fedsec.identity.folder import replace_certificate

        async def story(world):
            async with world.agent() as agent:
                held = asyncio.create_task(agent.pull(world.id()))
                await until(lambda: len(world.state.holders) == 1)
                lab = world.lab
                issued = lab.authority.issue_server("main", lab.server_signer.public_key, now=now())
                replace_certificate(lab.home / "identity", issued.certificate_der, lab.authority.intermediate_der)
                await until(lambda: world.state.trust.identity().serial_number == issued.serial_number)
                seen = await asyncio.to_thread(served_certificate, world.gateway.port)
                assert seen == issued.certificate_der
                world.superlink.send("node-a", "m1")
                assert message_ids(await held) == ["m1"]

        play(tmp_path, story, toml="refresh_s = 0.2\n")

    def test_old_connections_are_renewed_without_losing_calls(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                end = time.monotonic() + 3.5
                while time.monotonic() < end:
                    assert (await agent.heartbeat(world.id())).status == 200

        play(tmp_path, story, toml="max_connection_age_s = 1.0\n[limits]\ncalls_per_s = 100000\ncalls_burst = 100000\n")


def served_certificate(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True)


def test_health_follows_the_superlink_and_the_lists(tmp_path):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async def story(world):
        party = world.lab.nodes["node-a"]
        address = f"127.0.0.1:{world.gateway.port}"
        async with grpc.aio.secure_channel(address, channel_credentials(party.identity), options=channel_options("main")) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            serving = health_pb2.HealthCheckResponse.SERVING
            assert (await check(health_pb2.HealthCheckRequest())).status == serving
            world.superlink.__exit__()
            world.state.sync_wanted.set()
            for _ in range(100):
                if (await check(health_pb2.HealthCheckRequest())).status != serving:
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("still serving")
            world.superlink.__enter__()

    play(tmp_path, story, toml=FAST)


def test_metrics_and_audit_tell_without_bodies_or_secrets(tmp_path):
    async def story(world):
        async with world.agent() as agent:
            await agent.heartbeat(world.id())
            with refused(CODE.PERMISSION_DENIED):
                await agent.call("/v1/control/start-run", body=b"SECRET-BODY")
        text = world.state.metrics.text()
        assert 'path="send-node-heartbeat",result="ok"} 1' in text
        assert 'result="path"' in text
        log = (world.lab.home / "gateway" / "audit.jsonl").read_text()
        assert "SECRET-BODY" not in log
        assert agent.session._session_id.hex() not in log
        assert {"method": "forward", "client": "node-a", "refused": "path"}.items() <= world.lab.audit()[-1].items()

    play(tmp_path, story)


def test_metrics_and_health_are_on_loopback_only_and_nothing_else_is(tmp_path):
    port = free_port()

    async def story(world):
        async def get(line):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(line + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer

        assert b"fedsec_gateway_nodes 2" in await get(b"GET /metrics HTTP/1.1")
        await until(lambda: world.gateway._care.is_healthy())
        assert b" 200 " in await get(b"GET /healthz HTTP/1.1")
        world.state.stopping.set()
        assert b" 503 " in await get(b"GET /healthz HTTP/1.1")
        for line in (b"POST /metrics HTTP/1.1", b"GET / HTTP/1.1", b"GET /../etc/passwd HTTP/1.1", b"rubbish"):
            assert b" 404 " in await get(line)
        assert await get(b"x" * 10000) == b""

    play(tmp_path, story, toml=f"metrics_port = {port}\n")


# --- Waiting that is spared -----------------------------------------------------------------------------------------------------------


def pull_object(node_id, text="asked"):
    return fleet_pb2.PullObjectRequest(node=fleet_pb2.Node(node_id=node_id), run_id=1, object_id=sent_object(text)[0])


def objects_after(number, content=b"there"):
    """Answers of a SuperLink that has an object after so many questions."""
    asked = []

    def answer(_body, _headers):
        asked.append(time.monotonic())
        found = len(asked) > number
        return 200, fleet_pb2.PullObjectResponse(
            object_found=True, object_available=found, object_content=content if found else b""
        ).SerializeToString()

    return answer, asked


def test_an_object_that_is_on_its_way_is_waited_for(tmp_path):
    """A SuperNode sleeps a second for every "not yet", and the ServerApp sends objects just after their message."""

    async def story(world):
        answer, asked = objects_after(3)
        world.superlink.answers[paths.PULL_OBJECT] = answer
        world.superlink.send("node-a", "asked")
        async with world.agent() as agent:
            await agent.pull(world.id())
            found = fleet_pb2.PullObjectResponse.FromString((await agent.call(paths.PULL_OBJECT, pull_object(world.id()))).body)
            assert found.object_content == b"there"
            assert len(asked) == 4

    play(tmp_path, story)


def test_an_object_that_does_not_come_is_waited_for_only_so_long_and_an_unknown_one_not_at_all(tmp_path, monkeypatch):
    from fedsec.edge import pulling

    monkeypatch.setattr(pulling, "OBJECT_HOLD_S", 0.3)

    async def story(world):
        answer, asked = objects_after(1000)
        world.superlink.answers[paths.PULL_OBJECT] = answer
        world.superlink.send("node-a", "asked")
        async with world.agent() as agent:
            await agent.pull(world.id())
            found = fleet_pb2.PullObjectResponse.FromString((await agent.call(paths.PULL_OBJECT, pull_object(world.id()))).body)
            assert found.object_found
            assert not found.object_available
            assert 0.25 <= asked[-1] - asked[0] < 2
            asked.clear()
            unknown = fleet_pb2.PullObjectResponse(object_found=False).SerializeToString()
            world.superlink.answers[paths.PULL_OBJECT] = lambda *_: asked.append(0) or (200, unknown)
            await agent.call(paths.PULL_OBJECT, pull_object(world.id()))
            assert len(asked) == 1

    play(tmp_path, story)


def test_who_is_revoked_while_an_object_is_waited_for_does_not_get_it(tmp_path):
    async def story(world):
        answer, asked = objects_after(1000)
        world.superlink.answers[paths.PULL_OBJECT] = answer
        world.superlink.send("node-a", "asked")
        async with world.agent() as agent:
            await agent.pull(world.id())
            waiting = asyncio.create_task(agent.call(paths.PULL_OBJECT, pull_object(world.id())))
            await until(lambda: len(asked) > 1)
            world.lab.revoke("node-a")
            with refused(CODE.UNAUTHENTICATED, "revoked"):
                await waiting

    play(tmp_path, story, toml=FAST)


def test_the_nodes_messages_are_asked_for_as_soon_as_the_serverapp_has_sent_some(tmp_path, monkeypatch):
    from fedsec.edge import longpoll

    monkeypatch.setattr(longpoll, "POLL_S", 60.0)

    async def story(world):
        async with world.agent("node-a") as one, world.agent("node-b") as two:
            held = [asyncio.create_task(one.pull(world.id("node-a"))), asyncio.create_task(two.pull(world.id("node-b")))]
            await until(lambda: sum(path == paths.PULL_MESSAGES for path, _ in world.superlink.calls) == 2)
            for name in ("node-a", "node-b"):
                world.superlink.send(name, "asked")
            (world.lab.home / "gateway" / "asked").touch()
            answers = await asyncio.wait_for(asyncio.gather(*held), 5)
            assert [message_ids(answer) for answer in answers] == [["asked"], ["asked"]]

    play(tmp_path, story)


def test_what_is_sent_while_the_superlink_is_asked_is_not_missed(tmp_path, monkeypatch):
    """The hint comes while the question is under way, whose answer is still "nothing"."""
    from fedsec.edge import longpoll

    monkeypatch.setattr(longpoll, "POLL_S", 60.0)

    async def story(world):
        asked = []

        def slow(_body, _headers):
            asked.append(0)
            if len(asked) == 1:
                (world.lab.home / "gateway" / "asked").touch()
                time.sleep(0.3)
                return 200, b""
            return 200, world.superlink.inbox[world.id()].pop(0)

        world.superlink.send("node-a", "asked")
        world.superlink.answers[paths.PULL_MESSAGES] = slow
        async with world.agent() as agent:
            assert message_ids(await asyncio.wait_for(agent.pull(world.id()), 5)) == ["asked"]

    play(tmp_path, story)
