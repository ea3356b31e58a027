"""When a node's certificate is renewed, what is accepted as a new one, and what a failure costs. The CA is real, the link a stand-in."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from fedsec.edge.agent_channel import CallFailedError
from fedsec.edge.agent_renewal import Renewal, renewal_time
from fedsec.edge.agent_status import Status
from fedsec.edge.audit import AuditLog
from fedsec.errors import FedsecError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import create_identity, load_identity
from fedsec.signing import Signer

START = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)


class World:
    """A CA, an identity in a folder, a clock that can be moved, a link that asks the CA."""

    def __init__(self, folder):
        self.now, self.folder, self.asked, self.adopted = START, folder / "identity", 0, []
        self.authority = CertificateAuthority.create("hearts.example", now=START - timedelta(days=10))
        self.signer = Signer.generate()
        self.answer = self.honest
        first = self.issue()
        create_identity(self.folder, self.signer, first, self.authority.intermediate_der, self.authority.root_der)
        self.identity = load_identity(self.folder)
        self.status = Status(folder / "status.json", AuditLog(folder / "audit.jsonl"), clock=lambda: self.now)
        self.refuse_adoption = False

    def issue(self, *, name="node-a", signer=None, site="basel"):
        return self.authority.issue_node(name, (signer or self.signer).public_key, site=site, now=self.now).certificate_der

    def honest(self):
        return self.issue(), self.authority.intermediate_der

    # What Renewal needs of a link.

    async def renew(self):
        self.asked += 1
        return self.answer()

    async def adopt(self, identity):
        self.identity = identity
        if self.refuse_adoption:
            raise FedsecError("no connection with the new certificate")
        self.adopted.append(identity)

    @contextlib.asynccontextmanager
    async def renewal(self, monkeypatch):
        monkeypatch.setattr("fedsec.edge.agent_renewal.LOOK_EVERY_S", 0.01)
        found = Renewal(self, self.folder, self.status, clock=lambda: self.now, jitter=lambda: 0.0)
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition):
        for _ in range(500):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"it never came: {self.status.get('certificate')}")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def run(work):
    asyncio.run(asyncio.wait_for(work, 30))


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_it_is_at_two_thirds_of_the_life_and_a_twelfth_at_random(world, jitter):
    when = renewal_time(world.identity, jitter) - START
    assert when == timedelta(hours=48) + timedelta(hours=6) * jitter


def test_nothing_is_asked_before_the_time_and_once_at_it(world, monkeypatch):
    async def story():
        async with world.renewal(monkeypatch):
            world.now = START + timedelta(hours=47, minutes=59)
            await asyncio.sleep(0.1)
            assert world.asked == 0
            world.now = START + timedelta(hours=48, seconds=1)
            await world.until(lambda: world.adopted)
            await asyncio.sleep(0.1)
            assert world.asked == 1

    run(story())
    found = load_identity(world.folder)
    assert found.signer.public_key == world.signer.public_key
    assert found.not_after == START + timedelta(hours=48 + 72, seconds=1)
    assert world.status.get("certificate")["serial_number"] == f"{found.serial_number:X}"


def test_a_signal_renews_now(world, monkeypatch):
    async def story():
        async with world.renewal(monkeypatch) as renewal:
            renewal.ask()
            await world.until(lambda: world.adopted)

    run(story())


def foreign(world):
    other = CertificateAuthority.create("hearts.example", now=START - timedelta(days=1))
    return other.issue_node("node-a", world.signer.public_key, site="basel", now=world.now).certificate_der, other.intermediate_der


HOSTILE = {
    "another key": lambda world: (world.issue(signer=Signer.generate()), world.authority.intermediate_der),
    "another name": lambda world: (world.issue(name="node-b"), world.authority.intermediate_der),
    "another site": lambda world: (world.issue(site="zurich"), world.authority.intermediate_der),
    "another CA": foreign,
    "a server's": lambda world: (
        world.authority.issue_server("main", world.signer.public_key, now=world.now).certificate_der,
        world.authority.intermediate_der,
    ),
    "an expired one": lambda world: (
        world.authority.issue_node("node-a", world.signer.public_key, site="basel", now=START - timedelta(hours=80)).certificate_der,
        world.authority.intermediate_der,
    ),
    "nothing": lambda _world: (b"", b""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_renewal_of_ours_changes_nothing(world, monkeypatch, what):
    before = load_identity(world.folder)
    world.answer = lambda: HOSTILE[what](world)

    async def story():
        async with world.renewal(monkeypatch) as renewal:
            renewal.ask()
            await world.until(lambda: (world.status.get("certificate") or {}).get("renewal_error"))

    run(story())
    assert load_identity(world.folder).certificate_der == before.certificate_der
    assert world.adopted == []


def test_a_failure_is_tried_again_and_more_often_as_the_end_comes_near(world, monkeypatch):
    def fail():
        raise CallFailedError(503, "the CA is away")

    world.answer = fail

    async def story():
        waits = []
        async with world.renewal(monkeypatch):
            for hours in (48, 60, 70, 71.9):
                asked = world.asked
                world.now = START + timedelta(hours=hours, seconds=1)
                await world.until(lambda: world.asked > asked)  # noqa: B023
                await asyncio.sleep(0.02)
                waits.append(datetime.fromisoformat(world.status.get("certificate")["renewal_at"]) - world.now)
            assert waits == sorted(waits, reverse=True)
            assert waits[0] > timedelta(minutes=30)
            assert waits[-1] <= timedelta(minutes=1)
            world.answer = world.honest
            world.now += timedelta(minutes=1)
            await world.until(lambda: world.adopted)

    run(story())


def test_a_new_certificate_that_does_not_connect_yet_is_kept(world, monkeypatch):
    world.refuse_adoption = True

    async def story():
        async with world.renewal(monkeypatch) as renewal:
            renewal.ask()
            await world.until(lambda: "no connection" in str((world.status.get("certificate") or {}).get("renewal_error")))

    run(story())
    assert load_identity(world.folder).certificate_der == world.identity.certificate_der


def test_a_certificate_that_somebody_put_into_the_folder_is_taken_up(world, monkeypatch):
    async def story():
        async with world.renewal(monkeypatch):
            await asyncio.sleep(0.05)
            world.now += timedelta(minutes=1)
            renewed = world.issue()
            (world.folder / "certificate.der").write_bytes(renewed)
            await world.until(lambda: world.adopted)
            assert world.adopted[-1].certificate_der == renewed
            (world.folder / "certificate.der").write_bytes(world.issue(name="node-b"))  # another name's: left alone
            await asyncio.sleep(0.1)
            assert len(world.adopted) == 1
            (world.folder / "certificate.der").write_bytes(b"junk")
            await asyncio.sleep(0.1)
            assert len(world.adopted) == 1

    run(story())
    assert world.asked == 0
