"""The intermediate's key was stolen: the root makes another, and what the old one signed counts no more."""

from datetime import UTC, datetime

import pytest

from fedsec.codec import canonical_json
from fedsec.edge.ca_host import CaHost
from fedsec.edge.ca_rekey import REKEY
from fedsec.edge.ca_settings import CaSettings
from fedsec.edge.enrolment_client import verify_bundle
from fedsec.errors import CertificateError, DecodeError, SignatureError
from fedsec.identity.csr import make_csr
from fedsec.identity.intermediates import (
    STATEMENT_FILE,
    STATEMENT_FORMAT,
    STATEMENT_LABEL,
    load_statement,
    make_statement,
    verify_statement,
)
from fedsec.identity.names import Role
from fedsec.identity.revocation import Reason
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer

FEDERATION = "hearts.example"
PEERS = ((Role.SERVER, None, "main"), (Role.NODE, "basel", "client-1"), (Role.NODE, "basel", "client-2"))


def now():
    return datetime.now(tz=UTC)


def enrol(host, signers):
    for role, site, name in PEERS[: len(signers)]:
        token, _ = host.token(role, site, name, now=now())
        host.enrol(token, make_csr(signers[name]), now=now())


def verified(host, **more):
    return verify_bundle(host.bundle(now=now()), root_der=host.authority.root_der, federation=FEDERATION, now=now(), **more)


@pytest.fixture
def host(tmp_path):
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    host.signers = {name: Signer.generate() for _, _, name in PEERS}
    enrol(host, host.signers)
    return host


def test_everything_begins_anew_below_the_same_root_and_keys_may_be_kept(host, tmp_path):
    before, old = verified(host), host.authority
    host.revoke("client-2", Reason.CESSATION, now=now())
    number = verified(host).crl.number
    stale, _ = host.token(Role.NODE, "basel", "client-3", now=now())
    assert host.rekey(now=now()) == 1
    new = CaHost.open(tmp_path / "ca")
    assert (new.authority.root_der, new.authority.signer.public_key != old.signer.public_key) == (old.root_der, True)
    empty = verified(new)
    assert (empty.roster, empty.certificates) == (None, {})
    assert (empty.crl.number > number, len(empty.crl.serial_numbers)) == (True, 1)  # revocations stay
    with pytest.raises(SignatureError):
        new.enrol(stale, make_csr(Signer.generate()), now=now())  # the thief could have made it
    enrol(new, dict(list(host.signers.items())[:2]))
    after = verified(new, minimum_version=before.roster.roster.version)
    assert [member.public_key for member in after.roster.roster.members] == [host.signers["client-1"].public_key]
    forged = old.issue_node("client-9", Signer.generate().public_key, site="basel", now=now())  # with the stolen key
    with pytest.raises(CertificateError):
        verify_peer(forged.certificate_der, intermediate_der=new.authority.intermediate_der, root_der=old.root_der, federation=FEDERATION, role=Role.NODE, now=now())  # fmt: skip
    accepted = load_statement(tmp_path / "ca", root_der=old.root_der, federation=FEDERATION)
    accepted.check(new.authority.signer.public_key)
    with pytest.raises(CertificateError, match="not one that the root stands by"):
        accepted.check(old.signer.public_key)
    new.renew_intermediate(now=now())
    assert verified(new, known=accepted).roster is not None  # another certificate, the same key: no new statement is needed
    assert new.rekey(now=now()) == 2


@pytest.mark.parametrize("moved", range(4))
def test_a_crash_in_the_middle_is_finished_by_the_next_call(host, tmp_path, monkeypatch, moved):
    old = host.authority
    monkeypatch.setattr("fedsec.edge.ca_rekey.finish_rekey", lambda _folder: None)
    host.rekey(now=now())
    monkeypatch.undo()
    for name in ("intermediate-key.pem", "intermediate.der", STATEMENT_FILE)[:moved]:
        (tmp_path / "ca" / REKEY / name).replace(tmp_path / "ca" / name)
    new = CaHost.open(tmp_path / "ca")
    assert new.authority.signer.public_key != old.signer.public_key
    assert verified(new).roster is None
    load_statement(tmp_path / "ca", root_der=old.root_der, federation=FEDERATION).check(new.authority.signer.public_key)
    assert not (tmp_path / "ca" / REKEY).exists()


def test_without_the_roots_key_nothing_happens(host, tmp_path):
    (tmp_path / "ca" / "root-key.pem").rename(tmp_path / "root-key.pem")
    host = CaHost.open(tmp_path / "ca")
    with pytest.raises(CertificateError, match="root's key is not here"):
        host.rekey(now=now())
    assert verified(host).roster is not None
    assert CaHost.open(tmp_path / "ca", root_key=tmp_path / "root-key.pem").rekey(now=now()) == 1


def test_a_statement_that_is_not_the_roots_or_old_is_refused(host):
    root, keys = host.authority._root_key, [host.authority.signer.public_key]
    first, second = (make_statement(root, federation=FEDERATION, number=number, public_keys=keys) for number in (1, 2))
    check = {"root_der": host.authority.root_der, "federation": FEDERATION}
    known = verify_statement(second, **check)
    assert verify_statement(second, **check, known=known) == known
    with pytest.raises(CertificateError, match="replaced by 2"):
        verify_statement(first, **check, known=known)
    with pytest.raises(CertificateError, match="another one of number 2"):
        verify_statement(
            make_statement(root, federation=FEDERATION, number=2, public_keys=[Signer.generate().public_key]), **check, known=known
        )
    with pytest.raises(CertificateError, match="federation"):
        verify_statement(first, root_der=check["root_der"], federation="lungs.example")
    for signer in (host.authority.signer, Signer.generate()):  # the intermediate must not speak for itself
        with pytest.raises(SignatureError):
            verify_statement(make_statement(signer, federation=FEDERATION, number=3, public_keys=keys), **check)
    with pytest.raises(SignatureError):
        verify_statement(second[:64] + first[64:], **check)
    for cut in (b"", first[:64], first + b" " * 9000):
        with pytest.raises(DecodeError):
            verify_statement(cut, **check)
    sound = {"format": STATEMENT_FORMAT, "federation": FEDERATION, "number": 1, "keys": ["00" * 32]}
    for changes in ({"number": 0}, {"number": True}, {"number": "1"}, {"keys": []}, {"keys": ["00"]}, {"keys": ["00" * 32] * 2},
                    {"keys": 7}, {"keys": [7]}, {"format": "x"}, {"federation": "../x"}, {"more": 1}):  # fmt: skip
        body = canonical_json({**sound, **changes})
        with pytest.raises(DecodeError):
            verify_statement(root.sign(STATEMENT_LABEL, body) + body, **check)
