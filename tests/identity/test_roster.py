"""The list of clients: only the CA's own, current, unaltered list becomes a VerifiedRoster."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.codec import canonical_json
from fedsec.errors import CertificateError, DecodeError, SignatureError
from fedsec.identity import roster as module
from fedsec.identity.ca import INTERMEDIATE_LIFETIME, CertificateAuthority
from fedsec.identity.roster import ROSTER_LABEL, Roster, RosterMember, SignedRoster, VerifiedRoster, make_roster, verify_roster
from fedsec.signing import Signer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
EARLIEST, LATEST = datetime(1900, 1, 1), datetime(2900, 1, 1)  # noqa: DTZ001 - hypothesis adds the zone
FEDERATION = "hearts.example"
AUTHORITY = CertificateAuthority.create(FEDERATION, now=NOW)
SERVER = Signer.generate()
MEMBERS = tuple(RosterMember(f"client-{i}", Signer.generate().public_key, bytes([i]) * 32) for i in range(4))


def make(**changes):
    sound = {
        "federation": FEDERATION,
        "members": MEMBERS,
        "cohort_size": 64,
        "server_public_key": SERVER.public_key,
        "server_fingerprint": b"s" * 32,
        "now": NOW,
    }
    return make_roster(AUTHORITY.signer, **{**sound, **changes})  # fmt: skip


def verify(signed, **changes):
    sound = {"intermediate_der": AUTHORITY.intermediate_der, "root_der": AUTHORITY.root_der, "federation": FEDERATION, "now": NOW}
    return verify_roster(signed, **{**sound, **changes})


def sign(data):
    """Whatever bytes, signed by the CA: the decoder stands alone here."""
    return SignedRoster(data, AUTHORITY.signer.sign(ROSTER_LABEL, data))


def altered(**changes):
    """The JSON of a sound list with some values changed; ``None`` leaves a key out."""
    value = {**json.loads(make().roster_bytes), **changes}
    return canonical_json({key: item for key, item in value.items() if item is not None})


def sound():
    return verify(make()).roster


def test_a_signed_list_is_verified():
    verified = verify(make(members=reversed(MEMBERS)))
    assert verified.roster.members == MEMBERS
    assert (verified.roster.federation, verified.roster.version, verified.roster.cohort_size) == (FEDERATION, 1, 64)
    assert verified.roster.by_id["client-2"] is verified.roster.members[2]
    assert len(verified.digest) == len(verified.roster.cohort_seed) == 32


@settings(max_examples=30)
@given(data=st.data())
def test_lists_are_read_back(data):
    ids = data.draw(st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True), min_size=1, max_size=8, unique=True))
    numbers = range(1, len(ids) + 1)
    members = tuple(
        RosterMember(name, b"\x02" + number.to_bytes(32, "big"), number.to_bytes(32, "big"))
        for name, number in zip(sorted(ids), numbers, strict=True)
    )
    time = data.draw(st.datetimes(EARLIEST, LATEST, timezones=st.just(UTC))).replace(microsecond=0)
    roster = dataclasses.replace(
        sound(), members=members, not_before=time, not_after=time + timedelta(seconds=1), version=data.draw(st.integers(1, 2**53 - 1))
    )
    assert Roster.decode(roster.encode()) == roster
    assert Roster.decode(roster.encode()).encode() == roster.encode()


def test_digests_differ_with_every_part():
    signed = make()
    digests = {verify(signed).digest}
    for data in (altered(cohort_size=63), altered(version=2), altered(cohort_seed="00" * 32), altered(not_after="2031-05-01T11:59:59Z")):
        digests.add(verify(sign(data)).digest)
    assert len(digests) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"members": None}, {"version": None}, {"extra": 1}, {"format": 2}, {"format": None}, {"format": "1"}, {"format": True},
        {"version": 0}, {"version": -1}, {"version": 1.0}, {"version": True}, {"version": "1"}, {"version": 2**53},
        {"cohort_size": 0}, {"cohort_size": 65537}, {"cohort_size": "64"},
        {"cohort_seed": "00" * 31}, {"cohort_seed": "AB" * 32}, {"cohort_seed": "zz" * 32}, {"cohort_seed": "00 " * 32}, {"cohort_seed": 7},
        {"server_public_key": "02" * 32}, {"server_public_key": "04" * 33}, {"server_fingerprint": ""},
        {"federation": "Hearts"}, {"federation": ""}, {"federation": 7}, {"members": []}, {"members": {}}, {"members": ["client-1"]},
        {"not_before": "2030-05-01T11:55:00"}, {"not_before": "2030-05-01T11:55:00+00:00"}, {"not_before": "2030-5-1T11:55:00Z"},
        {"not_before": "2030-05-01T11:55:00.5Z"}, {"not_before": "2030-05-01 11:55:00Z"}, {"not_before": 1903867200}, {"not_before": "2031-05-01T12:00:00Z"},
        {"not_after": "2030-02-30T00:00:00Z"}, {"not_after": "2030-05-01T11:55:00Z"},
    ],
)  # fmt: skip
def test_a_list_that_is_not_sound_is_refused_even_signed(changes):
    with pytest.raises(DecodeError):
        verify(sign(altered(**changes)))


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members + members[-1:],
        lambda members: list(reversed(members)),
        lambda members: [members[0] | {"public_key": members[1]["public_key"]}, *members[1:]],
        lambda members: [members[0] | {"public_key": SERVER.public_key.hex()}, *members[1:]],
        lambda members: [members[0] | {"certificate_fingerprint": members[1]["certificate_fingerprint"]}, *members[1:]],
        lambda members: [members[0] | {"certificate_fingerprint": b"s".hex() * 32}, *members[1:]],
        lambda members: [members[0] | {"client_id": "client-1"}, *members[1:]],
        lambda members: [members[0] | {"client_id": "Client-0"}, *members[1:]],
        lambda members: [members[0] | {"client_id": "../x"}, *members[1:]],
        lambda members: [members[0] | {"client_id": ""}, *members[1:]],
        lambda members: [members[0] | {"public_key": "02" * 32}, *members[1:]],
        lambda members: [members[0] | {"public_key": "00" * 33}, *members[1:]],
        lambda members: [members[0] | {"certificate_fingerprint": "00" * 33}, *members[1:]],
        lambda members: [members[0] | {"weight": 2}, *members[1:]],
        lambda members: [{"client_id": "client-0"}, *members[1:]],
        lambda members: [None, *members[1:]],
    ],
    ids=["a member twice", "not sorted", "a key twice", "the server's key", "a certificate twice", "the server's certificate", "an id twice", "upper case", "a path", "no id",
         "a short key", "no point", "a long fingerprint", "an unknown key", "keys missing", "null"],
)  # fmt: skip
def test_unsound_members_are_refused_even_signed(change):
    with pytest.raises(DecodeError):
        verify(sign(altered(members=change(json.loads(make().roster_bytes)["members"]))))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"7", b'"x"', b"\xff", b"{", b"[" * 100_000])
def test_bytes_that_are_no_list_are_refused_even_signed(data):
    with pytest.raises(DecodeError):
        verify(sign(data))


def test_another_spelling_is_refused_even_signed():
    data = make().roster_bytes
    for other in (
        data + b"\n",
        b" " + data,
        json.dumps(json.loads(data)).encode(),
        data.replace(b'"version":1', b'"version":1,"version":1'),
    ):
        with pytest.raises(DecodeError):
            verify(sign(other))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_refused(data):
    signed = make()
    in_list = data.draw(st.booleans())
    part = signed.roster_bytes if in_list else signed.signature
    bit = data.draw(st.integers(0, 8 * len(part) - 1))
    changed = bytearray(part)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        verify(dataclasses.replace(signed, **{"roster_bytes" if in_list else "signature": bytes(changed)}))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_a_decode_error_and_nothing_else(data):
    encoded = bytearray(make().roster_bytes)
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert Roster.decode(bytes(encoded)).encode() == bytes(encoded)
    except DecodeError:
        pass


def test_another_signer_is_refused():
    """The server's key, a member's, another CA's: none is the intermediate's."""
    other = CertificateAuthority.create(FEDERATION, now=NOW)
    data = make().roster_bytes
    for signer in (SERVER, Signer.generate(), other.signer):
        with pytest.raises(SignatureError):
            verify(SignedRoster(data, signer.sign(ROSTER_LABEL, data)))
    with pytest.raises(CertificateError, match="intermediate: not issued by the CA above it"):
        verify(SignedRoster(data, other.signer.sign(ROSTER_LABEL, data)), intermediate_der=other.intermediate_der)


def test_a_signature_for_another_purpose_is_refused():
    data = make().roster_bytes
    with pytest.raises(SignatureError):
        verify(SignedRoster(data, AUTHORITY.signer.sign("fedsec/identity/v1/other", data)))


def test_a_signature_of_another_list_is_refused():
    with pytest.raises(SignatureError):
        verify(SignedRoster(make(cohort_size=63).roster_bytes, make().signature))


def test_another_federation_is_refused():
    """Asked for by the caller, or written in the list by a CA that may not name it."""
    with pytest.raises(CertificateError, match=r"for the federation hearts.example, not lungs.example"):
        verify(make(), federation="lungs.example")
    with pytest.raises(CertificateError, match=r"of the federation lungs.example"):
        verify(make(federation="lungs.example"))


def test_a_list_is_valid_in_its_period_only():
    signed = make(lifetime=timedelta(days=1))
    for now in (NOW - timedelta(minutes=5), NOW, NOW + timedelta(days=1)):
        verify(signed, now=now)
    for now in (NOW - timedelta(minutes=5, seconds=1), NOW + timedelta(days=1, seconds=1)):
        with pytest.raises(CertificateError, match=r"not valid before|not now"):
            verify(signed, now=now)
    verify(signed, now=NOW.astimezone(timezone(timedelta(hours=2))))
    with pytest.raises(ValueError):
        verify(signed, now=NOW.replace(tzinfo=None))


def test_a_list_does_not_outlive_its_issuer():
    with pytest.raises(CertificateError, match="intermediate: expired"):
        verify(make(lifetime=timedelta(days=500)), now=NOW + INTERMEDIATE_LIFETIME + timedelta(seconds=1))


def test_an_old_list_cannot_be_replayed():
    first = make()
    second = make(previous=verify(first).roster)
    assert verify(second, minimum_version=2).roster.version == 2
    with pytest.raises(CertificateError, match="version 1 was replaced by 2"):
        verify(first, minimum_version=2)
    verify(first, minimum_version=1)


def test_what_was_remembered_is_checked_again():
    """The signature and the content are remembered; period, version and federation are not."""
    signed = make()
    assert verify(signed) is verify(signed)
    for changes in ({"minimum_version": 2}, {"now": NOW + timedelta(days=366)}, {"federation": "x"}):
        with pytest.raises(CertificateError):
            verify(signed, **changes)


def test_the_same_clients_keep_their_seed():
    first = sound()
    assert verify(make(previous=first)).roster.cohort_seed == first.cohort_seed
    reissued = [dataclasses.replace(member, certificate_fingerprint=bytes([i + 9]) * 32) for i, member in enumerate(MEMBERS)]
    assert verify(make(previous=first, members=reissued)).roster.cohort_seed == first.cohort_seed


@pytest.mark.parametrize(
    "changes",
    [
        {"members": MEMBERS[:-1]},
        {"members": (*MEMBERS, RosterMember("new", Signer.generate().public_key, b"n" * 32))},
        {"members": (*MEMBERS[:-1], dataclasses.replace(MEMBERS[-1], public_key=Signer.generate().public_key))},
        {"members": (*MEMBERS[:-1], dataclasses.replace(MEMBERS[-1], client_id="renamed"))},
        {"cohort_size": 32},
    ],
    ids=["one less", "one more", "a new key", "a new name", "another size"],
)
def test_other_clients_get_another_seed(changes):
    first = sound()
    following = verify(make(previous=first, **changes)).roster
    assert following.version == 2
    assert following.cohort_seed != first.cohort_seed


def test_the_seed_is_drawn_after_the_members_are_known(monkeypatch):
    drawn_at = []
    monkeypatch.setattr(module.secrets, "token_bytes", lambda size: drawn_at.append(len(asked)) or bytes(size))
    asked = []
    make(members=(asked.append(member) or member for member in MEMBERS))
    assert drawn_at == [len(MEMBERS)]


def test_seeds_are_fresh():
    assert len({verify(make()).roster.cohort_seed for _ in range(5)}) == 5


def test_a_list_does_not_follow_another_federation_s():
    with pytest.raises(ValueError, match=r"lungs.example"):
        make(previous=dataclasses.replace(sound(), federation="lungs.example"))


def test_only_the_verifier_makes_a_verified_list():
    for token in (None, object(), True):
        with pytest.raises(TypeError):
            VerifiedRoster(sound(), bytes(32), token)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verify(make()), digest=bytes(32))


@pytest.mark.parametrize(
    "changes",
    [
        {"not_before": NOW.replace(microsecond=1)},
        {"not_before": NOW.astimezone(timezone(timedelta(hours=1)))},
        {"not_before": NOW.replace(tzinfo=None)},
        {"members": ()},
        {"version": 0},
    ],
)
def test_unsound_values_are_misuse_where_lists_are_made(changes):
    with pytest.raises(ValueError):
        dataclasses.replace(sound(), **changes)


def test_a_time_within_a_second_is_cut():
    assert verify(make(now=NOW.replace(microsecond=999_999))).roster.not_after == NOW + timedelta(days=365)


def test_a_list_that_nobody_could_read_is_not_made(monkeypatch):
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 500)
    with pytest.raises(ValueError, match="over the limit"):
        make()
