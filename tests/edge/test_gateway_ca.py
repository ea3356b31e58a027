"""The gateway and a real enrolment service: lists fetched, a revocation in effect within five seconds, renewals passed on."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FakeSuperLink, LabAgent, Party, message_ids, now, refused, until
from typer.testing import CliRunner

from experiments.ports import free_port
from fedsec.cli.server import app as server_app
from fedsec.edge import edge_pb2
from fedsec.edge.authority import store_bundle, store_crl, wants_renewal
from fedsec.edge.ca_host import CaHost
from fedsec.edge.ca_settings import CaSettings
from fedsec.edge.enrolment_client import enrol
from fedsec.edge.enrolment_service import make_server
from fedsec.edge.gateway import Gateway
from fedsec.edge.limits import RENEWALS_BURST
from fedsec.edge.server_settings import load_server_settings
from fedsec.errors import CertificateError, FedsecError
from fedsec.identity.enrolment import make_renewal
from fedsec.identity.folder import load_identity, make_identity
from fedsec.identity.names import Role
from fedsec.identity.revocation import Reason
from fedsec.signing import Signer

FEDERATION = "hearts.example"
CODE = grpc.StatusCode


class CaWorld:
    """A CA with its service, a server that was enrolled by the command line, and nodes that were enrolled by token."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ca_address = f"127.0.0.1:{free_port()}"
        self.host = CaHost.create(folder / "ca", FEDERATION, CaSettings(address=self.ca_address), now=now())
        self.service, _ = make_server(self.host, self.ca_address)
        self.service.start()
        self.home = folder / "home"
        self.port, self.superlink_port = free_port(), free_port()
        self.nodes = {}
        self.command("init", "--federation", FEDERATION, "--listen", f"127.0.0.1:{self.port}", "--superlink-port", str(self.superlink_port))
        token, _ = self.host.token(Role.SERVER, None, "main", now=now())
        (folder / "token").write_text(token + "\n")
        (folder / "token").chmod(0o600)
        self.command("enroll", "--token-file", str(folder / "token"))
        for name in ("node-a", "node-b"):
            self.enrol(name)

    def command(self, *arguments):
        done = CliRunner().invoke(server_app, [*arguments, "--home", str(self.home)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def enrol(self, name):
        token, _ = self.host.token(Role.NODE, "basel", name, now=now())
        signer = Signer.generate()
        enrolled = enrol(None, token, signer)
        identity = make_identity(signer, enrolled.certificate_der, enrolled.intermediate_der, enrolled.root_der)
        self.nodes[name] = Party(name, signer, None, identity)

    def agent(self, name):
        return LabAgent(self, name)

    @contextlib.asynccontextmanager
    async def running(self):
        with FakeSuperLink(self) as superlink:
            gateway = Gateway(load_server_settings(self.home))
            await gateway.start()
            try:
                await until(lambda: len(gateway.state.registry) == len(self.nodes))
                yield gateway, superlink
            finally:
                await gateway.stop(grace_s=0.5)


@pytest.fixture
def world(tmp_path):
    world = CaWorld(tmp_path)
    yield world
    world.service.stop(0).wait()


def test_the_servers_certificate_is_renewed_by_hand(world):
    before = load_identity(world.home / "identity")
    facts = json.loads(world.command("renew", "--json"))
    after = load_identity(world.home / "identity")
    assert (after.serial_number != before.serial_number, after.signer.public_key) == (True, before.signer.public_key)
    assert facts["serial_number"] == f"{after.serial_number:X}"
    world.host.revoke("main", Reason.CESSATION, now=now())
    with pytest.raises(FedsecError, match="revoked"):
        world.command("renew")
    assert load_identity(world.home / "identity").serial_number == after.serial_number


def test_a_gateway_process_reads_its_key_with_a_passphrase_that_no_other_user_sees(world, tmp_path):
    """The process's arguments and environment hold the file's path, and the passphrase is in neither."""
    key, file = world.home / "identity" / "key.pem", tmp_path / "passphrase"
    key.write_bytes(Signer.from_pem(key.read_bytes()).to_pem(passphrase=b"open sesame"))
    file.write_text("open sesame\n")
    file.chmod(0o600)
    command = [sys.executable, "-m", "fedsec.edge.gateway", "--home", str(world.home)]
    bare = {name: value for name, value in os.environ.items() if name != "FEDSEC_PASSPHRASE_FILE"}
    for more, environment in (((), {**bare, "FEDSEC_PASSPHRASE_FILE": str(file)}), (("--passphrase-file", str(file)), bare)):
        with subprocess.Popen([*command, *more], env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert "listening on port" in process.stdout.readline()
                for part in ("cmdline", "environ"):
                    assert b"sesame" not in Path(f"/proc/{process.pid}/{part}").read_bytes()
            finally:
                process.terminate()
                assert process.wait(20) == 0
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "is encrypted: name the file with its passphrase" in done.stderr


def test_enrolled_listed_served_and_revoked_within_five_seconds(world):
    """From `fedsec ca revoke` on the CA's host to the end of the node's held call at the gateway, with the settings as they are."""

    async def story():
        async with world.running() as (gateway, superlink), world.agent("node-a") as agent, world.agent("node-b") as other:
            node_id = superlink.node_id("node-a")
            held = asyncio.create_task(agent.pull(node_id))
            kept = asyncio.create_task(other.pull(superlink.node_id("node-b")))
            await until(lambda: len(gateway.state.holders) == 2)
            began = time.monotonic()
            await asyncio.to_thread(lambda: world.host.revoke("node-a", Reason.KEY_COMPROMISE, now=now()))
            with refused(CODE.UNAUTHENTICATED, "revoked"):
                await held
            assert time.monotonic() - began < 5.0
            await until(lambda: superlink.unregistered == [node_id])
            superlink.send("node-b", "m1")
            assert message_ids(await kept) == ["m1"]
            assert gateway.state.trust.standing.roster.version > 1
            assert not (world.home / "federation" / "certificates" / "node-a.der").exists()

    asyncio.run(story())


def test_a_node_renews_through_the_gateway_and_loses_nothing(world):
    async def story():
        async with world.running() as (gateway, superlink), world.agent("node-a") as agent:
            held = asyncio.create_task(agent.pull(superlink.node_id("node-a")))
            await until(lambda: len(gateway.state.holders) == 1)
            old = world.nodes["node-a"]
            asked = make_renewal(old.signer, old.identity.certificate_der, time_ms=int(agent.session.now().timestamp() * 1000))
            reply = await agent.stub.renew(edge_pb2.RenewRequest(csr=asked.csr, issued_for_ms=asked.time_ms, signature=asked.signature))
            identity = make_identity(old.signer, reply.certificate, reply.intermediate, old.identity.root_der)
            assert identity.serial_number != old.identity.serial_number
            world.nodes["node-a"] = Party("node-a", old.signer, None, identity)
            async with world.agent("node-a") as renewed:
                assert (await renewed.heartbeat(superlink.node_id("node-a"))).status == 200
            superlink.send("node-a", "m1")
            assert message_ids(await held) == ["m1"]
            from fedsec.edge.registration import read_nodes

            nodes = world.home / "gateway" / "nodes.json"
            await until(lambda: read_nodes(nodes)[superlink.node_id("node-a")].serial_number == identity.serial_number)

    asyncio.run(story())


def test_hostile_renewals_are_refused_and_stop_no_node(world):
    async def story():
        async with world.running() as (gateway, _), world.agent("node-a") as agent:

            async def never(_renewal):
                raise AssertionError("the CA was asked")

            gateway.state.authority.pass_on = never
            mine, theirs = world.nodes["node-a"], world.nodes["node-b"]
            time_ms = int(now().timestamp() * 1000)
            good = make_renewal(mine.signer, mine.identity.certificate_der, time_ms=time_ms)
            other = make_renewal(theirs.signer, theirs.identity.certificate_der, time_ms=time_ms)
            for csr, at, signature in (
                (other.csr, time_ms, other.signature),  # another client's request over our channel
                (other.csr, time_ms, good.signature),
                (good.csr, time_ms + 1, good.signature),
                (good.csr, time_ms, bytes(64)),
                (b"", time_ms, good.signature),
                astuple(make_renewal(mine.signer, mine.identity.certificate_der, time_ms=time_ms - 3_600_000))[1:],  # a recorded one
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await agent.stub.renew(edge_pb2.RenewRequest(csr=csr, issued_for_ms=at, signature=signature))
                assert caught.value.code() is CODE.PERMISSION_DENIED
            for request in (
                edge_pb2.RenewRequest(csr=bytes(5000), issued_for_ms=1, signature=b"x"),
                edge_pb2.RenewRequest(csr=b"x", issued_for_ms=2**60, signature=b"x"),
            ):
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await agent.stub.renew(request)

    asyncio.run(story())


def test_a_flood_of_renewals_reaches_the_ca_a_few_times_and_stops_no_other_node(world):
    """The CA answers a gateway's nodes from one account, which one node could use up, and the revocation list with it."""

    async def story():
        async with world.running() as (gateway, _), world.agent("node-a") as flooder, world.agent("node-b") as other:

            def ask(agent):
                party = agent.party
                asked = make_renewal(party.signer, party.identity.certificate_der, time_ms=int(now().timestamp() * 1000))
                return agent.stub.renew(edge_pb2.RenewRequest(csr=asked.csr, issued_for_ms=asked.time_ms, signature=asked.signature))

            asked, pass_on = [], gateway.state.authority.pass_on

            async def counted(renewal):
                asked.append(renewal)
                return await pass_on(renewal)

            gateway.state.authority.pass_on = counted
            for _ in range(RENEWALS_BURST):
                await ask(flooder)
            for _ in range(10):
                with refused(CODE.RESOURCE_EXHAUSTED, "rate"):
                    await ask(flooder)
            assert len(asked) == RENEWALS_BURST
            assert (await ask(other)).certificate

    asyncio.run(story())


def test_without_the_ca_calls_go_on_and_renewals_are_an_outage(world):
    async def story():
        async with world.running() as (_, superlink), world.agent("node-a") as agent:
            world.service.stop(0).wait()
            assert (await agent.heartbeat(superlink.node_id("node-a"))).status == 200
            mine = world.nodes["node-a"]
            asked = make_renewal(mine.signer, mine.identity.certificate_der, time_ms=int(now().timestamp() * 1000))
            with refused(CODE.UNAVAILABLE, "ca"):
                await agent.stub.renew(edge_pb2.RenewRequest(csr=asked.csr, issued_for_ms=asked.time_ms, signature=asked.signature))

    asyncio.run(story())


def test_the_gateway_renews_its_own_certificate(world):
    async def story():
        async with world.running() as (gateway, _):
            before = load_identity(world.home / "identity")
            later = before.not_before + (before.not_after - before.not_before) * 0.7
            assert not wants_renewal(before, now())
            assert wants_renewal(before, later)
            real = gateway.state.trust.standing.identity
            # two thirds of its life are over: as if it had been issued long ago
            import dataclasses

            old = dataclasses.replace(real, not_before=real.not_before - timedelta(days=30))
            gateway.state.trust.standing = dataclasses.replace(gateway.state.trust.standing, identity=old)
            await until(lambda: load_identity(world.home / "identity").serial_number != before.serial_number, timeout_s=10)
            await until(lambda: gateway.state.trust.identity().serial_number != before.serial_number)
            assert load_identity(world.home / "identity").signer.public_key == before.signer.public_key

    asyncio.run(story())


def test_the_bundle_holds_releases_and_the_list(world):
    async def story():
        async with world.running() as (gateway, _), world.agent("node-a") as agent:
            (world.home / "releases" / "r1.json").write_bytes(b"release one")
            reply = await agent.stub.bundle(edge_pb2.BundleRequest())
            assert list(reply.releases) == [b"release one"]
            assert reply.crl == (world.home / "federation" / "crl.der").read_bytes()
            assert reply.roster_version == gateway.state.trust.standing.roster.version

    asyncio.run(story())


class TestArrivals:
    """What comes from the CA's address is believed only if it verifies, and nothing is written else."""

    def test_another_ca_changes_nothing(self, world, tmp_path):
        foreign = CaHost.create(tmp_path / "foreign", FEDERATION, CaSettings(), now=now())
        identity = load_identity(world.home / "identity")
        folder = world.home / "federation"
        with pytest.raises(CertificateError):
            store_bundle(folder, foreign.bundle(now=now()), identity, now=now(), minimum_version=0, minimum_number=0)
        with pytest.raises(CertificateError):
            store_crl(folder, foreign.crl(now=now()), identity, now=now(), minimum_number=0)
        assert list(folder.iterdir()) == []

    def test_older_lists_change_nothing(self, world):
        identity, folder = load_identity(world.home / "identity"), world.home / "federation"
        old = world.host.bundle(now=now())
        world.host.revoke("node-a", Reason.CESSATION, now=now())
        new = world.host.bundle(now=now())
        found = store_bundle(folder, new, identity, now=now(), minimum_version=0, minimum_number=0)
        floors = {"minimum_version": found.roster.roster.version, "minimum_number": found.crl.number}
        with pytest.raises(CertificateError):
            store_bundle(folder, old, identity, now=now(), **floors)
        with pytest.raises(CertificateError):
            store_crl(folder, old.crl, identity, now=now(), minimum_number=floors["minimum_number"])
        assert (folder / "crl.der").read_bytes() == new.crl

    def test_a_wrong_fingerprint_is_no_ca(self, world):
        from fedsec.edge.authority import CaClient
        from fedsec.edge.server_settings import CaSettings as Pinned

        client = CaClient(Pinned(address=world.ca_address, fingerprint="00" * 32))
        with pytest.raises(CertificateError):
            asyncio.run(client.crl())


def test_a_token_for_somebody_else_enrols_no_server(world, tmp_path):
    from fedsec.errors import FedsecError

    home = tmp_path / "second"
    runner = CliRunner()
    runner.invoke(server_app, ["init", "--federation", FEDERATION, "--home", str(home)], catch_exceptions=False)
    token, _ = world.host.token(Role.NODE, "basel", "node-c", now=now())
    (tmp_path / "other").write_text(token)
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(FedsecError, match="the token is for"):
        runner.invoke(server_app, ["enroll", "--token-file", str(tmp_path / "other"), "--home", str(home)], catch_exceptions=False)
    assert not (home / "identity").exists()
