"""Identities of a simulation: made once, whole or absent, renewed with the same keys."""

import os
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedsec.errors import CertificateError, StorageError
from fedsec.identity.names import Role
from fedsec.identity.roster import verify_roster
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer, verify_signature
from fedsec.sim import identities
from fedsec.sim.identities import FEDERATION, ensure_identities, load_certificate, load_client, load_federation, load_server_signer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
CLIENTS = ("client-2", "client-0", "client-1")


@pytest.fixture
def folder(tmp_path):
    ensure_identities(tmp_path / "identities", CLIENTS, cohort_size=64, now=NOW)
    return tmp_path / "identities"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_all(folder: Path, now: datetime, minimum_version: int = 1):
    """Everything in the folder verifies at that time and belongs together; returns the roster."""
    files = load_federation(folder)
    chain = {"intermediate_der": files.intermediate_der, "root_der": files.root_der, "federation": FEDERATION, "now": now}
    roster = verify_roster(files.signed_roster, **chain, minimum_version=minimum_version).roster
    server = verify_peer(files.server_certificate_der, role=Role.SERVER, **chain)
    assert (server.public_key, server.fingerprint) == (roster.server_public_key, roster.server_fingerprint)
    assert load_server_signer(folder).public_key == server.public_key
    for member in roster.members:
        client = load_client(folder, member.client_id)
        peer = verify_peer(client.certificate_der, role=Role.NODE, **chain)
        assert (peer.name.name, peer.public_key, peer.fingerprint) == (member.client_id, member.public_key, member.certificate_fingerprint)
        assert client.signer.public_key == peer.public_key
        assert load_certificate(folder, member.client_id) == client.certificate_der
    return roster


def test_everything_verifies_and_belongs_together(folder):
    roster = check_all(folder, NOW)
    assert [member.client_id for member in roster.members] == sorted(CLIENTS)
    assert (roster.version, roster.cohort_size) == (1, 64)
    signature = load_client(folder, "client-0").signer.sign("fedsec/test/v1/x", b"m")
    verify_signature(roster.by_id["client-0"].public_key, "fedsec/test/v1/x", b"m", signature)


def test_a_second_call_changes_nothing(folder):
    before = content(folder)
    ensure_identities(folder, sorted(CLIENTS), cohort_size=64, now=NOW + timedelta(hours=47))
    assert content(folder) == before


def test_keys_are_their_owner_s_alone(folder):
    keys = list(folder.rglob("*key.pem"))
    assert len(keys) == 3 + len(CLIENTS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("clients", "changes", "what"),
    [(CLIENTS[:2], {}, "clients"), ((*CLIENTS, "client-3"), {}, "clients"), (("a", "b", "c"), {}, "clients"),
     (CLIENTS, {"cohort_size": 32}, "cohort size"), (CLIENTS, {"federation": "other.fedsec"}, "federation")],
)  # fmt: skip
def test_a_folder_made_for_another_simulation_is_refused(folder, clients, changes, what):
    before = content(folder)
    with pytest.raises(StorageError, match=f"made for another {what}"):
        ensure_identities(folder, clients, **{"cohort_size": 64, "now": NOW, **changes})
    assert content(folder) == before


@pytest.mark.parametrize("later", [timedelta(hours=49), timedelta(days=4), timedelta(days=100), timedelta(days=364), timedelta(days=400)])
def test_certificates_that_end_soon_are_issued_anew(folder, later):
    """Same keys, same cohorts, next version; also after the intermediate's end."""
    first = check_all(folder, NOW)
    keys = {name: data for name, data in content(folder).items() if name.endswith("key.pem")}
    now = NOW + later
    ensure_identities(folder, CLIENTS, cohort_size=64, now=now)
    second = check_all(folder, now, minimum_version=2)
    assert (second.version, second.cohort_seed) == (2, first.cohort_seed)
    assert {name: data for name, data in content(folder).items() if name.endswith("key.pem")} == keys
    check_all(folder, now + timedelta(hours=48))
    assert sorted(os.listdir(folder.parent)) == [".identities.lock", "identities"]


def test_a_clock_before_the_authority_s_time_is_refused(folder):
    before = content(folder)
    with pytest.raises(CertificateError, match="not valid now"):
        ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW - timedelta(minutes=6))
    assert content(folder) == before


def test_a_clock_that_was_set_back_is_served(folder):
    """Issued on Saturday, asked for on Wednesday before: the certificates do not reach back, the authority does."""
    ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW + timedelta(days=10))
    ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW + timedelta(days=7))
    check_all(folder, NOW + timedelta(days=7), minimum_version=3)


def test_a_renewed_folder_rests_again(folder):
    now = NOW + timedelta(days=4)
    ensure_identities(folder, CLIENTS, cohort_size=64, now=now)
    before = content(folder)
    ensure_identities(folder, CLIENTS, cohort_size=64, now=now + timedelta(hours=1))
    assert content(folder) == before


class Killed(BaseException):
    """Stands for a crash at a write."""


def killed_at(monkeypatch, count: int) -> None:
    """The count-th write of a file from here on does not happen, nor does any tidying up."""
    left = [count]
    real = identities._write_peer

    def write(*arguments):
        left[0] -= 1
        if left[0] == 0:
            monkeypatch.setattr(identities, "_tidy", lambda _: None)
            raise Killed
        real(*arguments)

    monkeypatch.setattr(identities, "_write_peer", write)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_crash_while_making_leaves_nothing(tmp_path, monkeypatch, count):
    folder = tmp_path / "identities"
    with monkeypatch.context() as patch:
        killed_at(patch, count)
        with pytest.raises(Killed):
            ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW)
    assert not folder.exists()
    assert (tmp_path / ".identities.new").exists()
    ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW)
    check_all(folder, NOW)
    assert sorted(os.listdir(tmp_path)) == [".identities.lock", "identities"]


@pytest.mark.parametrize("count", [1, 4])
def test_a_crash_while_renewing_leaves_the_old(folder, monkeypatch, count):
    before = content(folder)
    with monkeypatch.context() as patch:
        killed_at(patch, count)
        with pytest.raises(Killed):
            ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW + timedelta(days=4))
    assert content(folder) == before
    ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW + timedelta(days=4))
    check_all(folder, NOW + timedelta(days=4), minimum_version=2)


def test_a_crash_between_the_two_renames_loses_no_key(folder):
    keys = content(folder)["nodes/client-0/key.pem"]
    folder.rename(folder.parent / ".identities.old")
    (folder.parent / ".identities.new").mkdir()
    ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW)
    assert content(folder)["nodes/client-0/key.pem"] == keys
    check_all(folder, NOW)
    assert sorted(os.listdir(folder.parent)) == [".identities.lock", "identities"]


def test_a_failure_leaves_no_keys_behind(tmp_path):
    with pytest.raises(CertificateError):
        ensure_identities(tmp_path / "identities", ["client-0", "Client-1"], cohort_size=64, now=NOW)
    assert os.listdir(tmp_path) == [".identities.lock"]


@pytest.mark.parametrize("clients", [(), ("a", "a")])
def test_clients_must_be_distinct(tmp_path, clients):
    with pytest.raises(ValueError):
        ensure_identities(tmp_path / "identities", clients, cohort_size=64, now=NOW)


@pytest.mark.parametrize(
    "name", ["roster.json", "roster.signature", "server/certificate.der", "nodes/client-0/certificate.der", "authority/root.der"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(StorageError, match=name):
        ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW)


@pytest.mark.parametrize("name", ["roster.json", "server/certificate.der", "nodes/client-0/certificate.der"])
def test_a_damaged_file_is_refused(folder, name):
    (folder / name).write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="damaged"):
        ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW)


def test_a_key_that_is_not_the_roster_s_is_not_renewed(folder):
    (folder / "nodes" / "client-0" / "key.pem").write_bytes(Signer.generate().to_pem())
    with pytest.raises(StorageError, match="a key in"):
        ensure_identities(folder, CLIENTS, cohort_size=64, now=NOW + timedelta(days=4))


def test_unknown_clients_and_paths_are_refused(folder):
    with pytest.raises(StorageError):
        load_client(folder, "client-9")
    for name in ("../server", "", ".", "/etc", "client-0/../client-1"):
        with pytest.raises(CertificateError):
            load_client(folder, name)
        with pytest.raises(CertificateError):
            load_certificate(folder, name)


def test_a_missing_parent_is_named(tmp_path):
    with pytest.raises(StorageError):
        ensure_identities(tmp_path / "none" / "identities", CLIENTS, cohort_size=64, now=NOW)


def test_nothing_secret_is_shown(folder):
    assert "signer" not in repr(load_client(folder, "client-0"))


def test_a_thousand_clients_take_seconds(tmp_path):
    start = time.process_time()
    ensure_identities(tmp_path / "identities", [f"client-{i:04d}" for i in range(1000)], cohort_size=64, now=NOW)
    assert time.process_time() - start < 3.0
