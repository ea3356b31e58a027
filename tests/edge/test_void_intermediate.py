"""A thief holds the old intermediate's key after the rekey: whatever he signs with it, no holder of the root's statement believes it."""

import ast
import asyncio
import contextlib
import functools
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FEDERATION, FakeSuperLink, Lab, LabAgent, now, until
from test_agent_link import linked
from test_gateway_ca import CaWorld

from client.credentials import credentials_of
from client.settings import DeployedClient
from fedsec.admission.manifest import Approval
from fedsec.edge.agent_channel import LinkState
from fedsec.edge.agent_releases import ReleaseStore, begin_floor
from fedsec.edge.authority import store_bundle, store_crl
from fedsec.edge.ca_host import CaHost
from fedsec.edge.enrolment_client import enrol_folder, verify_bundle
from fedsec.edge.enrolment_service import make_server
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.service import STATEMENT_METADATA
from fedsec.edge.trust import Trust
from fedsec.errors import CertificateError, FedsecError, SignatureError, StorageError
from fedsec.flower.signed import Trust as RequestTrust
from fedsec.identity.crl_file import CrlFile
from fedsec.identity.folder import create_identity, load_identity, replace_certificate
from fedsec.identity.intermediates import STATEMENT_FILE, keep_statement, load_statement, make_statement
from fedsec.identity.names import Role
from fedsec.identity.revocation import make_crl, verify_crl
from fedsec.identity.roster import RosterMember, make_roster, verify_roster
from fedsec.identity.verify import verify_peer
from fedsec.policy import ClientPolicy
from fedsec.signing import Signer

CODE = grpc.StatusCode
ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def _made(signer, number, keys):
    return make_statement(signer, federation=FEDERATION, number=number, public_keys=list(keys))


class Rekeyed:
    """A federation below an old intermediate, whose key is the thief's by now; the fresh one; and what the root says of them."""

    def __init__(self, folder):
        self.lab = Lab(folder / "lab", ("node-a", "node-b"), toml="refresh_s = 0.2\nhold_s = 2.0\n")
        self.old = self.lab.authority
        self.fresh, self.root = self.old.with_fresh_intermediate(now=now())
        self.chain = {"intermediate_der": self.old.intermediate_der, "root_der": self.old.root_der}

    def statement(self, number=1, *, signer=None, authority=None):
        keys = ((authority or self.fresh).signer.public_key,)
        return _made(signer or self.root, number, keys)

    def accepted(self, folder):
        return keep_statement(folder, self.statement(), root_der=self.old.root_der, federation=FEDERATION)

    def move(self, folder):
        """An identity's holder enrols anew and keeps the key, as `enroll --keep-key` does."""
        identity = load_identity(folder)
        name, key = identity.name, identity.signer.public_key
        issued = {
            Role.SERVER: lambda: self.fresh.issue_server(name.name, key, now=now()),
            Role.NODE: lambda: self.fresh.issue_node(name.name, key, site=name.site, now=now()),
        }[name.role]()
        return replace_certificate(folder, issued.certificate_der, self.fresh.intermediate_der)

    def trust(self, faults=None):
        told = (lambda what, error: faults.append((what, str(error)))) if faults is not None else (lambda *_: None)
        return Trust(self.lab.home, federation=FEDERATION, server_name="main", clock=now, on_fault=told)

    def offer(self, data):
        (self.lab.home / "federation" / STATEMENT_FILE).write_bytes(data)


@pytest.fixture
def rekeyed(tmp_path):
    (tmp_path / "lab").mkdir()
    return Rekeyed(tmp_path)


def forged_roster(world):
    server, member = Signer.generate(), Signer.generate()
    members = [RosterMember("mallory", member.public_key, bytes(32))]
    return make_roster(world.old.signer, federation=FEDERATION, members=members, cohort_size=2, server_public_key=server.public_key,
                       server_fingerprint=b"\1" * 32, now=now())  # fmt: skip


def test_a_fresh_certificate_a_list_and_a_roster_of_the_old_key_are_believed_before_and_refused_after(rekeyed, tmp_path):
    key, world = Signer.generate().public_key, rekeyed
    leaves = {
        Role.NODE: world.old.issue_node("mallory", key, site="x", now=now()),
        Role.SERVER: world.old.issue_server("main", key, now=now()),
        Role.ADMIN: world.old.issue_admin("ada", key, now=now()),
    }
    crl, roster = make_crl(world.old, [], number=1 << 40, now=now()), forged_roster(world)
    asked = {**world.chain, "federation": FEDERATION, "now": now()}
    calls = [
        lambda role=role, leaf=leaf, **more: verify_peer(leaf.certificate_der, **asked, role=role, **more) for role, leaf in leaves.items()
    ]
    calls += [lambda **more: verify_crl(crl, **asked, **more), lambda **more: verify_roster(roster, **asked, **more)]
    accepted = world.accepted(tmp_path)
    for call in calls:
        call()
        with pytest.raises(CertificateError, match="not one that the root stands by since its statement 1"):
            call(accepted=accepted)
    twin = world.old.with_new_intermediate(now=now()).intermediate_der  # another certificate of the stolen key: just as void
    with pytest.raises(CertificateError, match="stands by"):
        verify_crl(crl, **{**asked, "intermediate_der": twin}, accepted=accepted)


def test_a_gateway_lets_nobody_pass_below_a_void_intermediate_and_everybody_who_enrolled_anew(rekeyed):
    world, lab = rekeyed, rekeyed.lab
    trust = world.trust()
    node = lab.nodes["node-a"].issued.certificate_der
    trust.check_caller(node)
    world.offer(world.statement())
    assert trust.reload()
    assert (trust.can_serve(), trust.standing.statement) == (False, world.statement())
    with pytest.raises(Refused, match="the gateway's own intermediate") as caught:
        trust.check_caller(node)
    assert caught.value.reason is Reason.NO_REVOCATION_LIST
    with pytest.raises(CertificateError, match="stands by"):  # nor does a list or a request for renewal of the old key get in
        store_crl(lab.home / "federation", make_crl(world.old, [], number=99, now=now()), trust.identity(), now=now(), minimum_number=0)
    world.move(lab.home / "identity")
    (lab.home / "federation" / "crl.der").write_bytes(make_crl(world.fresh, [], number=50, now=now()))
    trust.reload()
    with pytest.raises(Refused) as caught:
        trust.check_caller(world.old.issue_node("node-a", Signer.generate().public_key, site="basel", now=now()).certificate_der)
    assert caught.value.reason is Reason.CERTIFICATE
    assert trust.check_caller(world.fresh.issue_node("node-a", Signer.generate().public_key, site="basel", now=now()).certificate_der)


def test_a_running_gateway_forgets_the_list_that_the_old_key_signed(rekeyed):
    """The thief's list revokes nobody and is good for days: the gateway read it before the statement came, and must not go on with it."""
    world, lab = rekeyed, rekeyed.lab
    (lab.home / "federation" / "crl.der").write_bytes(make_crl(world.old, [], number=99, now=now()))
    trust = world.trust()
    assert trust.standing.crl.number == 99
    world.offer(world.statement())
    world.move(lab.home / "identity")
    trust.reload()
    node = world.fresh.issue_node("node-a", Signer.generate().public_key, site="basel", now=now()).certificate_der
    with pytest.raises(Refused) as caught:
        trust.check_caller(node)
    assert (caught.value.reason, trust.can_serve(), trust.standing.crl_der) == (Reason.NO_REVOCATION_LIST, False, b"")
    (lab.home / "federation" / "crl.der").write_bytes(make_crl(world.fresh, [], number=100, now=now()))
    trust.reload()
    assert trust.check_caller(node)
    world.offer(world.statement(2))  # what the root still stands by needs no new list
    trust.reload()
    assert trust.check_caller(node)


def test_a_gateway_goes_by_no_older_other_or_forged_statement_and_remembers_after_a_restart(rekeyed):
    world, faults = rekeyed, []
    world.offer(world.statement(2))
    trust = world.trust(faults)
    assert trust.standing.identity.accepted.number == 2
    older, twin = world.statement(1, authority=world.old), world.statement(2, authority=world.old)
    for bad, words in ((older, "replaced by 2"), (twin, "another one of number 2"), (world.statement(3, signer=world.old.signer), "signature"),
                       (b"junk", "statement")):  # fmt: skip
        world.offer(bad)
        trust.reload()
        again = world.trust(faults)  # a restart is not a new beginning: the newest one lies in the identity's folder
        for one in (trust, again):
            assert one.standing.identity.accepted.number == 2
            with pytest.raises(Refused):
                one.check_caller(world.lab.nodes["node-a"].issued.certificate_der)
        assert any(words in text for _, text in faults), (words, faults)
    (world.lab.home / "federation" / STATEMENT_FILE).unlink()  # taken away: what was seen stays
    assert world.trust().standing.identity.accepted.number == 2
    (world.lab.home / "identity" / STATEMENT_FILE).write_bytes(b"")
    with pytest.raises(StorageError, match="damaged"):
        world.trust()


def test_a_cas_bundle_without_the_statement_or_with_an_older_one_is_refused_and_a_newer_one_kept_whatever_else_is_wrong(tmp_path):
    (tmp_path / "home" / "federation").mkdir(parents=True)
    from fedsec.edge.ca_settings import CaSettings

    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    shutil.copytree(tmp_path / "ca", tmp_path / "copy")
    host.rekey(now=now())
    newest, copy = CaHost.open(tmp_path / "ca"), CaHost.open(tmp_path / "copy")
    signer = Signer.generate()
    issued = newest.authority.issue_server("main", signer.public_key, now=now())
    folder = tmp_path / "home" / "identity"
    create_identity(folder, signer, issued.certificate_der, newest.authority.intermediate_der, newest.authority.root_der, statement=newest.statement())  # fmt: skip
    identity, asked = load_identity(folder), {"root_der": newest.authority.root_der, "federation": FEDERATION, "now": now()}
    assert verify_bundle(newest.bundle(now=now()), **asked, known=identity.accepted).crl.number
    with pytest.raises(CertificateError, match="none, where number 1 was seen"):  # the CA put back from a copy, or the thief's
        verify_bundle(copy.bundle(now=now()), **asked, known=identity.accepted)
    with pytest.raises(CertificateError, match="stands by"):  # the statement is the root's, the rest is the thief's
        verify_bundle(type(copy.bundle(now=now()))(**{**vars(copy.bundle(now=now())), "root_statement": newest.statement()}), **asked)
    newest.rekey(now=now())
    last = CaHost.open(tmp_path / "ca")
    broken = type(last.bundle(now=now()))(**{**vars(last.bundle(now=now())), "crl": b"junk"})
    with pytest.raises(CertificateError, match="revocation list"):
        store_bundle(tmp_path / "home" / "federation", broken, identity, now=now(), minimum_version=0, minimum_number=0)
    assert (tmp_path / "home" / "federation" / STATEMENT_FILE).read_bytes() == last.statement()


def test_an_agent_learns_it_from_a_gateway_that_refuses_it_and_leaves_the_thiefs_gateway_for_good(rekeyed, tmp_path):
    """First the honest gateway, which enrolled anew: it refuses the old certificate, with the root's statement. Then the thief takes the address."""
    world, lab = rekeyed, rekeyed.lab
    folder = tmp_path / "agent"
    party = lab.nodes["node-a"]
    create_identity(folder, party.signer, party.issued.certificate_der, world.old.intermediate_der, world.old.root_der)
    thief = lab.home.with_name("thief")
    shutil.copytree(lab.home, thief)  # certificates and lists of the old key, all of them still in time

    async def story():
        with FakeSuperLink(lab) as fake:
            async with lab.gateway(), linked(lab, identity=load_identity(folder)) as link:
                await reached(link, LinkState.CONNECTED)  # before the rekey all is well
            world.offer(world.statement())
            keep_statement(lab.home / "identity", world.statement(), root_der=world.old.root_der, federation=FEDERATION)
            world.move(lab.home / "identity")
            (lab.home / "federation" / "crl.der").write_bytes(make_crl(world.fresh, [], number=50, now=now()))
            async with lab.gateway(), linked(lab, identity=load_identity(folder), on_statement=lambda data: told.append(data)) as link:
                await reached(link, LinkState.UNAUTHORISED)
            assert told[0] == world.statement()
            keep_statement(folder, told[0], root_der=world.old.root_der, federation=FEDERATION)
            del fake
            lab.home = thief
            async with lab.gateway(), linked(lab, identity=load_identity(folder)) as link:
                await reached(link, LinkState.WRONG_SERVER)
                assert "stands by" in link.states[-1][1]
                assert LinkState.CONNECTED not in [state for state, _ in link.states]

    async def reached(link, state):
        await until(lambda: link.state is state)

    told = []
    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_connected_agent_leaves_its_server_when_the_statement_comes(rekeyed, tmp_path):
    world, lab = rekeyed, rekeyed.lab
    folder = tmp_path / "agent"
    party = lab.nodes["node-a"]
    create_identity(folder, party.signer, party.issued.certificate_der, world.old.intermediate_der, world.old.root_der)

    async def story():
        async with lab.gateway(), linked(lab, identity=load_identity(folder)) as link:
            await until(lambda: link.state is LinkState.CONNECTED)
            keep_statement(folder, world.statement(), root_der=world.old.root_der, federation=FEDERATION)
            link.identity = load_identity(folder)
            link.check_server()
            await until(lambda: link.state is LinkState.WRONG_SERVER)

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_refusal_carries_the_statement_and_a_good_answer_does_not(rekeyed):
    world, lab = rekeyed, rekeyed.lab

    async def story():
        async with lab.gateway() as gateway:
            world.offer(world.statement())
            gateway.state.trust.reload()
            agent = LabAgent(lab, "node-a")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await agent.hello()
            await agent.channel.close()
            assert (caught.value.code(), caught.value.details()[:18]) == (CODE.UNAVAILABLE, "no-revocation-list")
            assert dict(caught.value.trailing_metadata())[STATEMENT_METADATA] == world.statement()

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_site_goes_by_no_list_and_no_approval_of_the_old_key(rekeyed, tmp_path):
    world = rekeyed
    party, folder = world.lab.nodes["node-a"], tmp_path / "agent"
    (folder / "releases").mkdir(parents=True)
    create_identity(folder / "identity", party.signer, party.issued.certificate_der, world.old.intermediate_der, world.old.root_der)
    begin_floor(folder / "floor.json")
    store = ReleaseStore(folder / "releases", load_identity(folder / "identity"), approvers=["ada"], approvals=1,
                         floor_file=folder / "floor.json", clock=now, scan=tuple)  # fmt: skip
    assert store.offer([], make_crl(world.old, [], number=3, now=now())) == []
    assert store.crl_number == 3
    admin = Signer.generate()
    issued = world.old.issue_admin("ada", admin.public_key, now=now())
    approval = Approval(certificate=issued.certificate_der, intermediate=world.old.intermediate_der, approved_at=now(), signature=bytes(64))
    assert store._identify(approval).name == "ada"
    world.accepted(folder / "identity")
    store.use(load_identity(folder / "identity"))
    assert store.crl_number == 0  # nothing is admitted without a list
    assert "stands by" in store.offer([], make_crl(world.old, [], number=4, now=now()))[0]
    with pytest.raises(CertificateError, match="stands by"):
        store._identify(approval)
    world.move(folder / "identity")
    store.use(load_identity(folder / "identity"))
    assert store.offer([], make_crl(world.fresh, [], number=5, now=now())) == []
    assert store.crl_number == 5


def test_a_client_app_reads_the_statement_anew_for_every_request(rekeyed, tmp_path):
    world, party = rekeyed, rekeyed.lab.nodes["node-a"]
    folder = tmp_path / "identity"
    create_identity(folder, party.signer, party.issued.certificate_der, world.old.intermediate_der, world.old.root_der)
    chain = {**world.chain, "federation": FEDERATION}
    kept = CrlFile(path=tmp_path / "crl.der", floor_path=tmp_path / "crl-floor.json", **chain)
    kept.take(make_crl(world.old, [], number=1, now=now()), now=now())
    client = DeployedClient(client_id="node-a", home=tmp_path, source="x:y", batch_size=None, policy=ClientPolicy(epsilon_cap=1.0, delta=1e-5), identity=folder)  # fmt: skip
    assert credentials_of(client, "").accepted is None
    world.accepted(folder)
    with pytest.raises(CertificateError, match="stands by"):
        credentials_of(client, "")  # its own list is the old key's
    world.move(folder)
    CrlFile(**{**vars(kept), "intermediate_der": world.fresh.intermediate_der}).take(
        make_crl(world.fresh, [], number=2, now=now()), now=now()
    )
    found = credentials_of(client, "")
    assert found.accepted.number == 1
    trust = RequestTrust(root_der=found.root_der, federation=FEDERATION, accepted=found.accepted)
    server = world.old.issue_server("main", Signer.generate().public_key, now=now())
    with pytest.raises(CertificateError, match="stands by"):
        verify_peer(server.certificate_der, **chain, role=Role.SERVER, now=now(), accepted=trust.accepted)


def test_an_enrolment_below_a_void_intermediate_is_not_written_down(rekeyed, tmp_path):
    world, signer = rekeyed, Signer.generate()
    issued = world.old.issue_node("node-z", signer.public_key, site="basel", now=now())
    parts = (signer, issued.certificate_der, world.old.intermediate_der, world.old.root_der)
    with pytest.raises(CertificateError, match="stands by"):
        create_identity(tmp_path / "new", *parts, statement=world.statement())
    with pytest.raises(SignatureError):
        create_identity(tmp_path / "new", *parts, statement=world.statement(signer=world.old.signer))
    assert not (tmp_path / "new").exists()
    create_identity(tmp_path / "new", *parts)
    keep_statement(tmp_path / "new", world.statement(), root_der=world.old.root_der, federation=FEDERATION)
    with pytest.raises(CertificateError, match="stands by"):  # nor is a renewal by the thief, a year long if need be
        again = world.old.issue_node("node-z", signer.public_key, site="basel", now=now() + timedelta(minutes=1))
        replace_certificate(tmp_path / "new", again.certificate_der, world.old.intermediate_der)


def test_from_the_rekey_at_the_ca_to_a_federation_that_stands_again(tmp_path):
    """With a real service and the command line: the gateway closes by itself, the server enrols anew, then the node, keys are kept."""
    world = CaWorld(tmp_path)

    async def closed():
        async with world.running() as (gateway, _), world.agent("node-a"):
            world.service.stop(0).wait()
            world.host.rekey(now=now())
            world.host = CaHost.open(tmp_path / "ca")
            world.service, _ = make_server(world.host, world.ca_address)
            world.service.start()
            for _ in range(600):
                if not gateway.state.trust.can_serve():
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the gateway never heard of it")

    try:
        asyncio.run(asyncio.wait_for(closed(), 60))
        key = load_identity(world.home / "identity").signer.public_key
        token, _ = world.host.token(Role.SERVER, None, "main", now=now())
        (tmp_path / "token").write_text(token)
        world.command("enroll", "--token-file", str(tmp_path / "token"), "--keep-key")
        again = load_identity(world.home / "identity")
        assert (again.signer.public_key, again.accepted.number) == (key, 1)
        again.check_own_issuer()
        token, _ = world.host.token(Role.NODE, "basel", "node-c", now=now())
        device = enrol_folder(tmp_path / "node-c", token)
        assert device.accepted == load_statement(tmp_path / "ca", root_der=device.root_der, federation=FEDERATION)
    finally:
        world.service.stop(0).wait()


def test_no_call_of_a_verifier_forgets_to_say_which_statement_counts():
    """A verifier that is not given the statement believes every intermediate of the root: so each call in the code must name it."""
    asked = {"verify_peer", "verify_crl", "verify_roster", "check_renewal", "CrlFile", "load_verified_crl", "open_session"}
    seen, missing = set(), []
    for top in ("fedsec", "client", "server"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                if name in asked:
                    seen.add(name)
                    handed_on = path.name == "signatures.py" and [keyword.arg for keyword in node.keywords] == [
                        None
                    ]  # **expected of signed.py
                    if not handed_on and "accepted" not in {keyword.arg for keyword in node.keywords}:
                        missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert seen == asked
    assert missing == [], "say accepted=…; None needs a reason beside it"


def test_the_statement_is_nobodys_secret_and_a_reader_without_one_goes_on(rekeyed, tmp_path):
    assert load_statement(tmp_path, root_der=rekeyed.old.root_der, federation=FEDERATION) is None
    assert keep_statement(tmp_path, b"", root_der=rekeyed.old.root_der, federation=FEDERATION) is None
    rekeyed.accepted(tmp_path)
    with contextlib.suppress(FedsecError):
        keep_statement(tmp_path, b"", root_der=rekeyed.old.root_der, federation=FEDERATION)  # withheld: what was seen stays
    assert load_statement(tmp_path, root_der=rekeyed.old.root_der, federation=FEDERATION).number == 1
