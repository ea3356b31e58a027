"""Who gets a certificate and who does not, told over a real register in a file."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from fedsec.errors import CertificateError, DecodeError, SignatureError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.csr import make_csr
from fedsec.identity.enrolment import (
    MAX_RENEWALS_A_DAY,
    RENEWAL_WINDOW,
    RenewalRequest,
    TokenReusedError,
    check_new_name,
    check_renewal,
    enrol,
    find_peer,
    issue_offline,
    make_renewal,
    renew,
    revoke,
)
from fedsec.identity.issuing import current_roster, latest_crl, latest_roster
from fedsec.identity.names import Role, server_uri
from fedsec.identity.register import MAX_BODY_BYTES, Register
from fedsec.identity.register_rows import Binding, Document, JournalKind
from fedsec.identity.revocation import CRL_LIFETIME, Reason, RevokedError, verify_crl
from fedsec.identity.roster import Roster, verify_roster
from fedsec.identity.tokens import MAX_LIFETIME, Token, make_token
from fedsec.identity.verify import LIFETIMES, verify_peer
from fedsec.signing import Signer
from fedsec.translog.entries import MAX_BODY_BYTES as MAX_LOG_BODY_BYTES
from fedsec.translog.entries import EntryKind

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FEDERATION = "hearts.example"
AUTHORITY = CertificateAuthority.create(FEDERATION, now=NOW)


class Desk:
    """The CA's desk: hands out tokens, enrols, renews, revokes."""

    def __init__(self, folder):
        self.path = folder / "register.sqlite"
        self.register = Register.open(self.path, create=True)

    def token(self, name="client-7", role=Role.NODE, site="basel", *, now=NOW, federation=FEDERATION, signer=AUTHORITY.signer, known=True):
        token = Token(
            jti=os.urandom(16), federation=federation, role=role, site=site if role is Role.NODE else None, name=name,
            not_after=now + MAX_LIFETIME, root_sha256=b"r" * 32, service_sha256=b"s" * 32,
        )  # fmt: skip
        if known:
            self.register.add_token(token, now=now)
        return make_token(signer, token)

    def enrol(self, signer=None, token=None, *, now=NOW, csr=None, **who):
        signer = signer or Signer.generate()
        return enrol(AUTHORITY, self.register, token or self.token(now=now, **who), csr or make_csr(signer), now=now)

    def renew(self, signer, certificate, *, now=NOW):
        return renew(AUTHORITY, self.register, make_renewal(signer, certificate, time_ms=ms(now)), now=now)

    def revoke(self, target, reason=Reason.UNSPECIFIED, *, now=NOW):
        with self.register.transaction():
            return revoke(self.register, target, reason, now=now)


def ms(time):
    return int(time.timestamp() * 1000)


@pytest.fixture
def desk(tmp_path):
    found = Desk(tmp_path)
    with found.register:
        yield found


def verified(record, role=Role.NODE, now=NOW):
    return verify_peer(record.certificate_der, intermediate_der=AUTHORITY.intermediate_der, root_der=AUTHORITY.root_der, federation=FEDERATION, role=role, now=now)  # fmt: skip


@pytest.mark.parametrize("role", list(Role))
def test_a_token_brings_a_certificate_for_exactly_what_it_says(desk, role):
    signer = Signer.generate()
    record = desk.enrol(signer, role=role, name="x")
    peer = verified(record, role)
    assert (peer.public_key, peer.name.role, peer.name.name) == (signer.public_key, role, "x")
    assert peer.not_after == NOW + LIFETIMES[role]
    assert desk.register.certificate(peer.serial_number) == record


def test_a_token_that_was_used_is_refused_to_everybody_else(desk):
    token = desk.token()
    desk.enrol(Signer.generate(), token)
    with pytest.raises(CertificateError, match="used before"):
        desk.enrol(Signer.generate(), token)


def test_a_lost_answer_is_given_again_to_the_same_key_until_the_token_ends(desk):
    """The register was written and the answer never came: the device asks again."""
    signer, token = Signer.generate(), desk.token()
    first = desk.enrol(signer, token)
    assert desk.enrol(signer, token, now=NOW + 14 * MINUTE) == first
    assert len(list(desk.register.certificates())) == 1
    with pytest.raises(CertificateError, match="ended"):
        desk.enrol(signer, token, now=NOW + 15 * MINUTE)


def test_a_lost_answer_is_not_given_again_once_it_was_revoked(desk):
    signer, token = Signer.generate(), desk.token()
    desk.enrol(signer, token)
    desk.revoke("client-7")
    with pytest.raises(CertificateError, match="used before"):
        desk.enrol(signer, token)


def test_an_expired_token_is_refused(desk):
    with pytest.raises(CertificateError, match="ended"):
        desk.enrol(token=desk.token(), now=NOW + MAX_LIFETIME)


def test_a_forged_token_is_refused(desk):
    """Signed by the server's key, or by another CA of the same name."""
    for signer in (Signer.generate(), CertificateAuthority.create(FEDERATION, now=NOW).signer):
        with pytest.raises(SignatureError):
            desk.enrol(token=desk.token(signer=signer))
    for text in ("", "nonsense", "fedsec-token-1.e30.AAAA"):
        with pytest.raises(DecodeError):
            desk.enrol(token=text or " ")


def test_another_federations_token_is_refused(desk):
    with pytest.raises(CertificateError, match=r"federation lungs\.example"):
        desk.enrol(token=desk.token(federation="lungs.example"))


def test_a_token_that_the_register_does_not_know_is_refused(desk):
    """As after the register was put back from an old copy: who knows whether it was used."""
    with pytest.raises(CertificateError, match="not in the register"):
        desk.enrol(token=desk.token(known=False))


def test_a_token_whose_row_says_something_else_is_refused(desk):
    """The signature is sound; the row under its number is for another role."""
    token = desk.token()
    with sqlite3.connect(desk.path) as other:
        other.execute("UPDATE tokens SET role = 'server', site = NULL")
    with pytest.raises(CertificateError, match="not in the register"):
        desk.enrol(token=token)


def test_a_tokens_role_cannot_be_exchanged(desk):
    """A node's token never brings a server's certificate: the request has no say."""
    assert verified(desk.enrol(name="main")).name.role is Role.NODE


def test_a_bad_request_does_not_spend_the_token(desk):
    token = desk.token()
    with pytest.raises(CertificateError):
        desk.enrol(token=token, csr=b"nonsense")
    desk.enrol(token=token)


def test_a_name_belongs_to_its_first_key(desk):
    signer = Signer.generate()
    desk.enrol(signer)
    with pytest.raises(CertificateError, match="belongs to another key"):
        desk.enrol(Signer.generate())
    with pytest.raises(CertificateError, match="another key or site"):
        desk.enrol(signer, site="zurich")
    assert desk.enrol(signer).public_key == signer.public_key


def test_a_key_has_one_name(desk):
    signer = Signer.generate()
    desk.enrol(signer)
    with pytest.raises(CertificateError, match="has another name already: node client-7"):
        desk.enrol(signer, name="client-8")
    with pytest.raises(CertificateError, match="has another name already"):
        desk.enrol(signer, name="main", role=Role.SERVER)


def test_a_refused_enrolment_does_not_spend_the_token(desk):
    desk.enrol(holder := Signer.generate())
    token = desk.token()
    with pytest.raises(CertificateError, match="belongs to another key"):
        desk.enrol(Signer.generate(), token)
    desk.enrol(holder, token)


def test_a_revoked_name_is_free_for_a_new_key_and_the_old_key_never_comes_back(desk):
    old, new = Signer.generate(), Signer.generate()
    desk.enrol(old)
    desk.revoke("client-7", Reason.SUPERSEDED)
    for name in ("client-7", "client-8"):
        with pytest.raises(RevokedError, match="make a new key"):
            desk.enrol(old, name=name)
    assert desk.enrol(new).public_key == new.public_key


def test_a_renewal_is_for_the_same_key_and_name(desk):
    signer = Signer.generate()
    first = desk.enrol(signer)
    later = NOW + 48 * HOUR
    second = desk.renew(signer, first.certificate_der, now=later)
    peer = verified(second, now=later)
    assert (peer.public_key, peer.name) == (signer.public_key, verified(first).name)
    assert peer.serial_number != first.serial_number
    assert peer.not_after == later + 72 * HOUR
    assert (first.origin, second.origin) == ("token", "renewal")


def test_there_is_no_grace_after_the_end_but_a_token_for_the_same_key(desk):
    signer = Signer.generate()
    first = desk.enrol(signer)
    late = NOW + 72 * HOUR + timedelta(seconds=1)
    with pytest.raises(CertificateError, match="expired"):
        desk.renew(signer, first.certificate_der, now=late)
    assert desk.enrol(signer, now=late).public_key == signer.public_key


def test_a_revoked_certificate_is_not_renewed_nor_an_older_one_of_its_key(desk):
    signer = Signer.generate()
    first = desk.enrol(signer)
    second = desk.renew(signer, first.certificate_der)
    desk.revoke(f"{second.serial_number:X}")
    for record in (first, second):
        with pytest.raises(RevokedError):
            desk.renew(signer, record.certificate_der)


def test_an_administrator_is_not_renewed(desk):
    signer = Signer.generate()
    record = desk.enrol(signer, role=Role.ADMIN, name="ada")
    with pytest.raises(CertificateError, match="ask for a token"):
        desk.renew(signer, record.certificate_der)


def check(request, now=NOW):
    return check_renewal(request, intermediate_der=AUTHORITY.intermediate_der, root_der=AUTHORITY.root_der, federation=FEDERATION, now=now)


def test_a_request_for_renewal_is_its_holders_and_fresh(desk):
    """A gateway that collects requests cannot use them later, for another certificate, or with another key."""
    signer, thief = Signer.generate(), Signer.generate()
    record = desk.enrol(signer)
    other = desk.renew(signer, record.certificate_der)
    sound = make_renewal(signer, record.certificate_der, time_ms=ms(NOW))
    assert check(sound).public_key == signer.public_key
    parts = {"certificate_der": sound.certificate_der, "csr": sound.csr, "time_ms": sound.time_ms, "signature": sound.signature}
    for changes in (
        {"certificate_der": other.certificate_der},
        {"csr": make_csr(signer)},
        {"time_ms": sound.time_ms + 1},
        {"signature": bytes(64)},
    ):
        with pytest.raises(SignatureError):
            check(RenewalRequest(**{**parts, **changes}))
    with pytest.raises(SignatureError):
        check(RenewalRequest(**{**parts, "signature": thief.sign("fedsec/identity/v1/renewal", b"x")}))
    with pytest.raises(CertificateError, match="keeps the key"):
        check(RenewalRequest(**{**parts, "csr": make_csr(thief)}))
    for now in (NOW + RENEWAL_WINDOW + MINUTE, NOW - RENEWAL_WINDOW):
        with pytest.raises(CertificateError):
            check(sound, now=now)
    for time_ms in (-1, 1 << 53):
        with pytest.raises(CertificateError, match="out of range"):
            check(RenewalRequest(**{**parts, "time_ms": time_ms}))


def test_a_certificate_that_the_register_does_not_know_is_not_renewed(desk):
    """Issued by the same key, but not by this register."""
    signer = Signer.generate()
    stray = AUTHORITY.issue_node("client-7", signer.public_key, site="basel", now=NOW).certificate_der
    with pytest.raises(CertificateError, match="not in the register"):
        desk.renew(signer, stray)


def test_a_certificate_has_one_successor(desk):
    """A lying gateway has a node sign requests dated ahead, and keeps them: all of them together bring one certificate."""
    signer = Signer.generate()
    first = desk.enrol(signer)
    second = desk.renew(signer, first.certificate_der)
    for minutes in (0, 5, 9):
        assert desk.renew(signer, first.certificate_der, now=NOW + minutes * MINUTE) == second
    third = desk.renew(signer, second.certificate_der, now=NOW + HOUR)
    assert len({first.serial_number, second.serial_number, third.serial_number}) == 3
    assert len(list(desk.register.certificates())) == 3
    desk.revoke("client-7", now=NOW + HOUR)
    with pytest.raises(RevokedError):
        desk.renew(signer, first.certificate_der, now=NOW + HOUR)


def test_a_used_token_with_another_key_is_an_alarm_that_stays(desk):
    """Somebody copied the token and was first: the device itself is the one that is refused, and the operator must learn of it."""
    thief, device, token = Signer.generate(), Signer.generate(), desk.token()
    stolen = desk.enrol(thief, token)
    desk.enrol(thief, token)
    assert desk.register.alarms() == []
    for minutes in (1, 2):
        with pytest.raises(TokenReusedError, match="used before: another key has it"):
            desk.enrol(device, token, now=NOW + minutes * MINUTE)
    (alarm,) = desk.register.alarms()
    assert (alarm.name, alarm.role, alarm.serial_number, alarm.times) == ("client-7", Role.NODE, stolen.serial_number, 2)
    assert (alarm.first_at, alarm.last_at) == (NOW + MINUTE, NOW + 2 * MINUTE)
    desk.revoke(f"{alarm.serial_number:X}", Reason.KEY_COMPROMISE)
    assert desk.enrol(device).public_key == device.public_key


def test_endless_renewal_is_stopped(desk, monkeypatch):
    monkeypatch.setattr("fedsec.identity.enrolment.MAX_RENEWALS_A_DAY", 3)
    signer = Signer.generate()
    record = desk.enrol(signer)
    for _ in range(2):
        record = desk.renew(signer, record.certificate_der)
    with pytest.raises(CertificateError, match="within a day"):
        desk.renew(signer, record.certificate_der)
    assert MAX_RENEWALS_A_DAY >= 48


def test_an_operator_may_vouch_for_a_request_in_a_file(desk):
    signer = Signer.generate()
    record = issue_offline(AUTHORITY, desk.register, Binding(Role.SERVER, None, "main", signer.public_key), make_csr(signer), now=NOW)
    assert verified(record, Role.SERVER).name.uri == server_uri(FEDERATION, "main")
    with pytest.raises(CertificateError, match="another key"):
        issue_offline(AUTHORITY, desk.register, Binding(Role.SERVER, None, "main", signer.public_key), make_csr(Signer.generate()), now=NOW)


def test_revocation_is_of_a_peer_by_serial_uri_or_name(desk):
    for index, form in enumerate((lambda r: f"{r.serial_number:X}", lambda r: f"{r.serial_number:x}", lambda r: f"spiffe://{FEDERATION}/site/basel/node/{r.name}", lambda r: r.name)):  # fmt: skip
        signer = Signer.generate()
        record = desk.enrol(signer, name=f"c{index}")
        second = desk.renew(signer, record.certificate_der)
        assert {item.serial_number for item in desk.revoke(form(record))} == {record.serial_number, second.serial_number}
        assert desk.revoke(form(record)) == []
        assert desk.register.binding(Role.NODE, f"c{index}") is None


def test_ended_certificates_go_on_the_list_only_after_a_compromise(desk):
    """An administrator who leaves keeps what she approved; one whose key was stolen may not have approved it."""
    for name, reason, count in (("ada", Reason.CESSATION, 1), ("bob", Reason.KEY_COMPROMISE, 2)):
        signer = Signer.generate()
        desk.enrol(signer, role=Role.ADMIN, name=name)
        desk.enrol(signer, role=Role.ADMIN, name=name, now=NOW + 13 * HOUR)
        assert len(desk.revoke(name, reason, now=NOW + 14 * HOUR)) == count


def test_a_nodes_certificate_that_ended_while_a_list_of_clients_counts_is_revoked_too(desk):
    """A client that checked its group on Monday knows the certificate of Monday, and must find it on Friday's revocation list."""
    signer = Signer.generate()
    old = desk.enrol(signer)
    middle = desk.renew(signer, old.certificate_der, now=NOW + 2 * DAY)
    newest = desk.renew(signer, middle.certificate_der, now=NOW + 4 * DAY)
    hit = {record.serial_number for record in desk.revoke("client-7", now=NOW + 6 * DAY)}
    assert hit == {old.serial_number, middle.serial_number, newest.serial_number}
    other = desk.enrol(other_signer := Signer.generate(), name="client-8")
    again = desk.enrol(other_signer, name="client-8", now=NOW + 20 * DAY)
    assert (
        {record.serial_number for record in desk.revoke("client-8", now=NOW + 20 * DAY)} == {again.serial_number} != {other.serial_number}
    )


def test_a_peer_whose_certificates_all_ended_is_revoked_too(desk):
    signer = Signer.generate()
    desk.enrol(signer)
    desk.revoke("client-7", now=NOW + 5 * DAY)
    with pytest.raises(RevokedError):
        desk.enrol(signer, now=NOW + 5 * DAY)


def test_a_client_with_nothing_living_is_revoked_and_its_key_stays_out(desk):
    """Its certificate ended long before any list that counts: nothing goes on the list, but the key must not come back."""
    signer = Signer.generate()
    record = desk.enrol(signer)
    late = NOW + 30 * DAY
    assert desk.revoke("client-7", now=late) == []
    assert desk.register.certificate(record.serial_number).revoked_at == late
    for name in ("client-7", "client-8"):
        with pytest.raises(RevokedError, match="make a new key"):
            desk.enrol(signer, name=name, now=late)
    assert desk.enrol(now=late).name == "client-7"


def test_the_current_certificate_of_a_name_is_its_holders(desk):
    """After a change of the intermediate's key nobody holds a name, though certificates that were not revoked go on."""
    desk.enrol()
    assert [record.name for record in desk.register.current(Role.NODE, now=NOW)] == ["client-7"]
    with desk.register.transaction():
        desk.register.unbind_all()
    assert desk.register.current(Role.NODE, now=NOW) == []


def test_a_revoked_peers_open_tokens_count_no_more(desk):
    """Who was revoked, or whoever has his mail, holds a second token that was not spent yet."""
    spent, kept = Signer.generate(), desk.token()
    others = [desk.token(name="client-8"), desk.token(role=Role.SERVER)]
    used = desk.token()
    desk.enrol(spent, used)
    desk.revoke("client-7")
    with pytest.raises(CertificateError, match="its name was revoked since"):
        desk.enrol(token=kept)
    with pytest.raises(TokenReusedError):  # a used one is remembered: it still raises the alarm
        desk.enrol(token=used)
    assert [desk.enrol(token=token).role for token in others] == [Role.NODE, Role.SERVER]
    assert desk.enrol().name == "client-7"


def test_a_name_that_is_another_peers_serial_number_revokes_nobody_else(desk):
    """A client of before the rule is called like the serial number of another one, which grew public with its certificate."""
    victim = desk.enrol(name="victim")
    number = f"{victim.serial_number:x}"
    desk.enrol(name=number)
    with pytest.raises(CertificateError, match="is a serial number and a name"):
        desk.revoke(number)
    assert [record.name for record in desk.revoke(f"spiffe://hearts.example/site/basel/node/{number}")] == [number]
    assert [record.name for record in desk.revoke("victim")] == ["victim"]


@pytest.mark.parametrize("name", ["a" * 32, "0" * 40, "deadbeef" * 8])
def test_a_name_that_reads_like_a_serial_number_is_not_given(desk, name):
    signer = Signer.generate()
    with pytest.raises(CertificateError, match="reads like a serial number"):
        issue_offline(AUTHORITY, desk.register, Binding(Role.NODE, "basel", name, signer.public_key), make_csr(signer), now=NOW)
    for sound in (name[:31], f"{name[:40]}-x"):
        check_new_name(sound)


def test_only_the_one_spelling_of_a_serial_number_is_one(desk):
    number = f"{desk.enrol().serial_number:X}"
    assert find_peer(desk.register, number) == find_peer(desk.register, number.lower())
    for target in (f"0x{number}", f" {number}", f"{number[:9]}_{number[9:]}", f"+{number}", number + "0", "F" * 5000):
        with pytest.raises(CertificateError, match="no serial number or name"):
            find_peer(desk.register, target)


def test_an_unknown_or_ambiguous_target_is_refused(desk):
    desk.enrol(name="main")
    desk.enrol(name="main", role=Role.SERVER)
    with pytest.raises(CertificateError, match="several peers"):
        find_peer(desk.register, "main")
    for target in ("nobody", "", "F" * 40, "spiffe://hearts.example/server/nobody", "spiffe://x", "../x"):
        with pytest.raises(CertificateError):
            find_peer(desk.register, target)


def test_the_lists_follow_the_register(desk):
    """Two clients and a server; one client is revoked, one lets its certificate end."""
    signers = {name: Signer.generate() for name in ("client-1", "client-2", "client-3")}
    records = {name: desk.enrol(signer, name=name) for name, signer in signers.items()}

    def roster(now=NOW, anew=False):
        with desk.register.transaction():
            return current_roster(AUTHORITY, desk.register, "main", 8, now=now, anew=anew)

    assert roster() is None
    with pytest.raises(CertificateError, match="no server main"):
        roster(anew=True)
    server = Signer.generate()
    desk.enrol(server, name="main", role=Role.SERVER)
    signed = roster()
    first = verify_roster(signed, intermediate_der=AUTHORITY.intermediate_der, root_der=AUTHORITY.root_der, federation=FEDERATION, now=NOW).roster  # fmt: skip
    assert (list(first.by_id), first.version, first.server_public_key) == (sorted(signers), 1, server.public_key)
    assert roster() == latest_roster(desk.register) == signed
    renewed = desk.renew(signers["client-1"], records["client-1"].certificate_der)
    assert roster() == signed
    desk.revoke("client-2")
    second = Roster.decode(roster().roster_bytes)
    assert (list(second.by_id), second.version) == (["client-1", "client-3"], 2)
    later = NOW + 71 * HOUR
    desk.renew(signers["client-1"], renewed.certificate_der, now=later)
    third = Roster.decode(roster(now=later + 2 * HOUR).roster_bytes)
    assert (list(third.by_id), third.version) == (["client-1"], 3)
    assert Roster.decode(roster(now=later, anew=True).roster_bytes).version == 4


def test_a_list_of_clients_lives_for_days_and_is_made_anew_when_half_of_it_is_over(desk):
    desk.enrol(Signer.generate(), name="main", role=Role.SERVER)
    signer = Signer.generate()
    record = desk.enrol(signer)

    def roster(now, **more):
        with desk.register.transaction():
            return Roster.decode(current_roster(AUTHORITY, desk.register, "main", 8, now=now, anew=False, **more).roster_bytes)

    first = roster(NOW)
    assert first.not_after == NOW + 7 * DAY
    record = desk.renew(signer, record.certificate_der, now=NOW + 2 * DAY)
    assert roster(NOW + 3 * DAY) == first
    second = roster(NOW + 4 * DAY)
    assert (second.version, second.not_after, second.cohort_seed) == (2, NOW + 11 * DAY, first.cohort_seed)
    third = roster(NOW + 4 * DAY + 13 * HOUR, lifetime=DAY)  # the operator shortened it
    assert (third.version, third.not_after) == (3, NOW + 5 * DAY + 13 * HOUR)


def test_the_revocation_list_grows_in_number_and_is_made_anew_with_age(desk):
    def crl(now=NOW, anew=False):
        with desk.register.transaction():
            der = latest_crl(AUTHORITY, desk.register, now=now, anew=anew)
        return verify_crl(der, intermediate_der=AUTHORITY.intermediate_der, root_der=AUTHORITY.root_der, federation=FEDERATION, now=now)

    record = desk.enrol()
    assert [crl().number, crl().number, crl(anew=True).number, crl(now=NOW + CRL_LIFETIME / 4).number] == [1, 1, 2, 3]
    desk.revoke("client-7")
    assert crl(now=NOW + CRL_LIFETIME / 4, anew=True).serial_numbers == {record.serial_number}
    with pytest.raises(StorageError, match="went back"), desk.register.transaction():
        desk.register.put_document("crl", Document(2, b"", b""))


def test_the_journal_has_everything_in_order(desk):
    desk.enrol()
    desk.revoke("client-7", Reason.KEY_COMPROMISE)
    entries = desk.register.journal(0)
    assert [(index, kind) for index, kind, _ in entries] == [(0, JournalKind.CERTIFICATE), (1, JournalKind.REVOCATION)]
    assert x509.load_der_x509_certificate(entries[0][2]).serial_number == int(json.loads(entries[1][2])["serial_number"], 16)
    assert desk.register.journal_size() == 2
    assert {kind.name: kind.value for kind in JournalKind}.items() <= {kind.name: kind.value for kind in EntryKind}.items()


def test_what_the_log_could_not_take_is_not_written_down(desk):
    assert MAX_BODY_BYTES == MAX_LOG_BODY_BYTES
    with pytest.raises(StorageError, match="over the log's limit"), desk.register.transaction():
        desk.register.add_to_journal(JournalKind.ROSTER, bytes(MAX_BODY_BYTES + 1))
    assert desk.register.journal_size() == 0


def test_a_failed_transaction_leaves_nothing(desk):
    desk.enrol()
    before = desk.register.journal(0)
    with pytest.raises(RuntimeError), desk.register.transaction():
        revoke(desk.register, "client-7", Reason.UNSPECIFIED, now=NOW)
        raise RuntimeError
    assert desk.register.journal(0) == before
    assert desk.register.revocations() == []


ENROL = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from fedsec.errors import CertificateError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.csr import make_csr
from fedsec.identity.enrolment import enrol
from fedsec.identity.register import Register
from fedsec.signing import Signer
folder, token, die = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
authority, signer = CertificateAuthority.load(folder), Signer.from_pem((folder / sys.argv[4]).read_bytes()) if len(sys.argv) > 4 else Signer.generate()
print("ready", flush=True)
sys.stdin.readline()
with Register.open(folder / "register.sqlite") as register:
    if die == "before":
        register.use_token = lambda *_: __import__("os").kill(__import__("os").getpid(), 9)
    try:
        enrol(authority, register, token, make_csr(signer), now=datetime(2030, 5, 1, 12, tzinfo=UTC))
    except CertificateError as error:
        print("refused", error, flush=True)
    else:
        if die == "after":
            __import__("os").kill(__import__("os").getpid(), 9)
        print("enrolled", flush=True)
"""


def start(folder, token, die="no", *more):
    command = [sys.executable, "-c", ENROL, str(folder), token, die, *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_with_one_token_and_two_keys_exactly_one_wins(desk, tmp_path):
    AUTHORITY.save(tmp_path, durable=False)
    for _ in range(2):
        token = desk.token(name=f"c-{os.urandom(4).hex()}")
        racers = [start(tmp_path, token) for _ in range(3)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        words = sorted(racer.communicate(timeout=60)[0].split(" ")[0].strip() for racer in racers)
        assert words == ["enrolled", "refused", "refused"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_within_the_transaction_or_before_the_answer(desk, tmp_path, moment):
    """SIGKILL before the commit: nothing happened. After it: the row is there, and only the same key gets the same certificate."""
    AUTHORITY.save(tmp_path, durable=False)
    signer, token = Signer.generate(), desk.token()
    (tmp_path / "device.pem").write_bytes(signer.to_pem())
    victim = start(tmp_path, token, moment, "device.pem")
    assert victim.stdout.readline() == "ready\n"
    victim.communicate("go\n", timeout=60)
    assert victim.returncode == -signal.SIGKILL
    rows = list(desk.register.certificates())
    assert len(rows) == (0 if moment == "before" else 1)
    if moment == "after":
        with pytest.raises(CertificateError, match="used before"):
            desk.enrol(Signer.generate(), token)
        assert desk.enrol(signer, token) == rows[0]
    else:
        desk.enrol(Signer.generate(), token)
    assert len(list(desk.register.certificates())) == 1


def filled(folder):
    desk = Desk(folder)
    with desk.register:
        signer = Signer.generate()
        record = desk.enrol(signer)
        for _ in range(20):
            desk.renew(signer, record.certificate_der)
        desk.token()
    return desk.path


def use(path):
    with Register.open(path, thorough=True) as register:
        list(register.certificates())
        register.revocations()
        register.journal(0)
        register.current(Role.NODE, now=NOW)


def test_a_damaged_register_is_refused(tmp_path):
    """Bytes overwritten in the middle, cut short, replaced by something else."""
    path = filled(tmp_path)
    sound = path.read_bytes()
    use(path)
    for bad in (b"", b"nonsense", sound[: len(sound) // 2], sound[:16] + bytes(84) + sound[100:], sound[:4096] + os.urandom(8192) + sound[12288:], b"\0" * len(sound)):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(StorageError):
            use(path)
    path.unlink()
    with pytest.raises(StorageError):
        use(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE certificates SET role = 'root'", "UPDATE certificates SET name = '../../etc'", "UPDATE certificates SET serial_number = 'zz' WHERE rowid = 1",
        "UPDATE certificates SET not_after = 1 << 60", "UPDATE certificates SET site = NULL", "UPDATE certificates SET revoked_at = 1, reason = 'mood'",
        "UPDATE certificates SET name = ''", "DROP TABLE journal", "ALTER TABLE certificates RENAME TO other", "PRAGMA user_version = 1",
        "PRAGMA application_id = 7",
    ],
)  # fmt: skip
def test_a_hostile_register_is_refused(tmp_path, statement):
    path = filled(tmp_path)
    with sqlite3.connect(path) as other:
        other.execute(statement)
    other.close()
    with pytest.raises(StorageError):
        use(path)


def test_a_register_is_made_once_for_its_owner_and_not_through_a_link(tmp_path):
    path = filled(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError):
        Register.open(path, create=True)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError):
        Register.open(tmp_path / "link")


def test_naive_times_are_misuse(desk):
    with pytest.raises(ValueError):
        desk.register.current(Role.NODE, now=NOW.replace(tzinfo=None))
