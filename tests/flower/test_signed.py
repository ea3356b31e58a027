"""Who may ask a client something: the server's signature on requests, and everybody who tries without it."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import CertificateError, DecodeError, SignatureError
from fedsec.flower import compat
from fedsec.flower.records import EVALUATE, TRAIN, RoundRequest, arrays_to_record, make_request, read_request
from fedsec.flower.secure_records import make_stage_request
from fedsec.flower.signed import MAX_AGE, SIGNATURE_RECORD, ServerIdentity, SignedGrid, Trust, sign_request, verify_request
from fedsec.identity.ca import CertificateAuthority
from fedsec.signing import Signer
from fedsec.vectors import arrays_digest

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
RUN = 7
MODEL = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
FEDERATION = "hearts.example"


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create(FEDERATION, now=NOW)


def identity_of(authority, role="server", name="main", now=NOW):
    signer = Signer.generate()
    if role == "server":
        issued = authority.issue_server(name, signer.public_key, now=now)
    else:
        issued = authority.issue_node(name, signer.public_key, site="basel", now=now)
    return ServerIdentity(signer=signer, certificate_der=issued.certificate_der, intermediate_der=authority.intermediate_der)


@pytest.fixture(scope="module")
def server(authority):
    return identity_of(authority)


@pytest.fixture
def trust(authority):
    return Trust(root_der=authority.root_der, federation=FEDERATION)


@pytest.fixture(autouse=True)
def _in_a_run():
    with compat.task_identity(RUN):
        yield


def request(message_type=TRAIN, arrays=MODEL, body=None, **changes):
    fields = {"run_id": "r", "server_round": 1, "plan_json": "{}", "noise_multiplier": 1.5, **changes}
    fields.setdefault("model_hash", arrays_digest(arrays) if arrays else "")
    record = arrays_to_record(arrays) if arrays else None
    if body is None:
        return make_request(RoundRequest(**fields), node_id=1, message_type=message_type, arrays=record)
    return make_stage_request(RoundRequest(**fields), body, node_id=1, message_type=message_type, arrays=record)


def signed(message, server, *, run=RUN, at=NOW):
    message.content[SIGNATURE_RECORD] = sign_request(message, server, flower_run_id=run, signed_at=at)
    return message


def check(message, trust, *, run=RUN, now=NOW, node=1):
    """The message as it arrives: through the form in which it travels."""
    compat.assign_message_id(message, "m")
    return verify_request(compat.decode_message(compat.encode_message(message)), trust, node_id=node, flower_run_id=run, now=now)


def test_a_request_that_the_server_signed_is_taken_and_says_which_server(server, trust):
    peer = check(signed(request(), server), trust)
    assert (peer.name.name, peer.public_key) == ("main", server.signer.public_key)


@pytest.mark.parametrize(
    "message_type", ["query.describe", "query.roster", EVALUATE, TRAIN, "train.personalise", "query.unmask", "query.blame"]
)
def test_an_unsigned_request_of_any_kind_is_refused(trust, message_type):
    with pytest.raises(SignatureError, match=f"{message_type} request carries no signature"):
        check(request(message_type), trust)


CHANGES = {
    "another plan": lambda m: m.content["config"].__setitem__("plan", '{"privacy":{}}'),
    "less noise": lambda m: m.content["config"].__setitem__("noise_multiplier", 0.5),
    "another round": lambda m: m.content["config"].__setitem__("server_round", 2),
    "an integer where a float was": lambda m: m.content["config"].__setitem__("noise_multiplier", 2),
    "another hash of the model": lambda m: m.content["config"].__setitem__("model_hash", "00" * 32),
    "one more key": lambda m: m.content["config"].__setitem__("more", 1),
    "one key less": lambda m: m.content["config"].__delitem__("attempt"),
    "another body": lambda m: m.content["secagg"].__setitem__("body", b"other"),
    "one more record": lambda m: m.content.__setitem__("other", ConfigRecord({"a": 1})),
    "a record less": lambda m: m.content.__delitem__("secagg"),
    "a record under another name": lambda m: m.content.__setitem__("secagg2", m.content.pop("secagg")),
    "no model": lambda m: m.content.__delitem__("model"),
    "a wider circle": lambda m: m.content[SIGNATURE_RECORD].update({"count": 2, "path": bytes(32)}),
    "another time": lambda m: m.content[SIGNATURE_RECORD].__setitem__("signed_at", int(NOW.timestamp()) + 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whoever_changes_a_signed_request_on_its_way_is_found_out(server, trust, what):
    message = signed(request(body=b"boxes"), server)
    CHANGES[what](message)
    with pytest.raises(SignatureError, match="not what the server signed"):
        check(message, trust)


def test_swapped_arrays_are_found_where_they_are_read_and_nowhere_else_can_they_be_read(server, trust):
    message = signed(request(), server)
    message.content["model"] = arrays_to_record({"weight": MODEL["weight"] + 1})
    check(message, trust)  # the signature covers the hash ...
    with pytest.raises(DecodeError, match="not the one whose hash"):
        read_request(message)  # ... and this is the one door to the arrays
    message.content["model"] = arrays_to_record(MODEL)
    assert set(read_request(message)[1]) == {"weight"}


def test_a_model_without_a_hash_in_the_signed_part_is_never_signed_nor_taken(server, trust):
    with pytest.raises(SignatureError, match="model without its hash"):
        signed(request(model_hash=""), server)
    message = signed(request(arrays=None), server)
    message.content["model"] = arrays_to_record(MODEL)
    with pytest.raises(SignatureError, match="model without its hash"):
        check(message, trust)


def test_records_that_no_request_has_are_refused(server, trust):
    for name, record in (("metrics", MetricRecord({"a": 1})), ("arrays2", ArrayRecord({"w": Array(MODEL["weight"])}))):
        message = signed(request(), server)
        message.content[name] = record
        with pytest.raises(SignatureError, match="does not know"):
            check(message, trust)


def test_a_signature_made_for_one_kind_of_request_does_not_serve_another(server, trust):
    """A fellow node takes a signed training request and sends it as an evaluation."""
    message = signed(request(TRAIN), server)
    forged = Message(message.content, dst_node_id=1, message_type=EVALUATE)
    with pytest.raises(SignatureError, match="evaluate request is not what the server signed"):
        check(forged, trust)


def test_a_request_of_another_run_is_refused(server, trust):
    """Captured in one run of Flower, sent again in another."""
    with pytest.raises(SignatureError, match="another run"):
        check(signed(request(), server, run=RUN), trust, run=RUN + 1)


def test_an_evaluation_forged_by_a_fellow_node_is_refused_though_its_certificate_is_good(authority, trust):
    node = identity_of(authority, role="node", name="client-2")
    with pytest.raises(CertificateError, match="server certificate"):
        check(signed(request(EVALUATE), node), trust)


def test_a_servers_certificate_with_another_key_under_it_is_refused(authority, server, trust):
    """Certificates are public: the forger shows the server's, and signs with a key of its own."""
    forger = ServerIdentity(signer=Signer.generate(), certificate_der=server.certificate_der, intermediate_der=server.intermediate_der)
    with pytest.raises(SignatureError, match="not what the server signed"):
        check(signed(request(), forger), trust)


def test_a_server_of_another_federation_or_under_another_root_is_refused(trust):
    other = CertificateAuthority.create("lungs.example", now=NOW)
    with pytest.raises(CertificateError):
        check(signed(request(), identity_of(other)), trust)
    twin = CertificateAuthority.create(FEDERATION, now=NOW)  # the same name, another root
    with pytest.raises(CertificateError, match="not issued by"):
        check(signed(request(), identity_of(twin)), trust)


def test_a_client_that_follows_one_server_refuses_the_other_of_its_federation(authority, server, trust):
    chosen = Trust(root_der=trust.root_der, federation=FEDERATION, server_name="main")
    assert check(signed(request(), server), chosen).name.name == "main"
    with pytest.raises(CertificateError, match="follows main"):
        check(signed(request(), identity_of(authority, name="spare")), chosen)


def test_a_server_certificate_that_ended_is_refused(server, trust):
    later = NOW + timedelta(days=7, minutes=1)
    with pytest.raises(CertificateError, match="expired"):
        check(signed(request(), server, at=later), trust, now=later)


def test_a_request_is_good_for_as_long_as_flower_keeps_a_message_and_not_from_the_future(server, trust):
    message = signed(request(), server)
    check(message, trust, now=NOW + MAX_AGE)
    with pytest.raises(SignatureError, match="not about now"):
        check(message, trust, now=NOW + MAX_AGE + timedelta(seconds=1))
    ahead = signed(request(), server, at=NOW + timedelta(minutes=6))
    with pytest.raises(SignatureError, match="clock"):
        check(ahead, trust)


@pytest.mark.parametrize(
    ("key", "value"),
    [("signature", b""), ("signature", b"x" * 65), ("signature", "text"), ("signed_at", -1), ("signed_at", 1 << 40), ("signed_at", 1.0),
     ("certificate", b""), ("certificate", b"x" * 9000), ("intermediate", b"\x30\x00"), ("intermediate", [b"x"]), ("extra", 1),
     ("index", -1), ("index", 1), ("index", 1 << 40), ("count", 0), ("count", 1 << 40), ("path", b"x"), ("path", b"x" * 32), ("path", b"x" * 3200)],
)  # fmt: skip
def test_a_malformed_signature_record_is_refused(server, trust, key, value):
    message = signed(request(), server)
    message.content[SIGNATURE_RECORD][key] = value
    with pytest.raises((SignatureError, CertificateError)):
        check(message, trust)


VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=8),
    st.lists(st.integers(-9, 9), max_size=3), st.lists(st.text(max_size=3), max_size=3), st.lists(st.booleans(), max_size=3),
)  # fmt: skip


def same(a, b):
    """Equal in type and value; floats by their bits up to the kind of NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b and str(a) == str(b) if not isinstance(a, float) else a.hex() == b.hex()


@settings(max_examples=150, deadline=None)
@given(
    first=st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=3),
    second=st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=3),
)
def test_different_records_never_share_what_is_signed(first, second):
    from fedsec.flower.signed import _signed_bytes

    with compat.task_identity(RUN):
        one, two = (RecordDict({"config": ConfigRecord(values)}) for values in (first, second))
    equal = first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    assert (_signed_bytes("train", one, RUN, 1) == _signed_bytes("train", two, RUN, 1)) == equal


class Sink:
    """A grid that takes everything."""

    class run:  # noqa: N801
        run_id = RUN

    def __init__(self):
        self.taken = []

    def push_messages(self, messages):
        self.taken += messages
        return [str(number) for number in range(len(self.taken))]


class CountingSigner:
    def __init__(self, signer):
        self.signer, self.count = signer, 0

    def sign(self, label, message):
        self.count += 1
        return self.signer.sign(label, message)


def test_whatever_goes_through_the_grid_is_signed_and_a_broadcast_once(server, trust):
    sink, counting = Sink(), CountingSigner(server.signer)
    identity = ServerIdentity(signer=counting, certificate_der=server.certificate_der, intermediate_der=server.intermediate_der)
    grid = SignedGrid(sink, lambda: identity, lambda: NOW)
    record = arrays_to_record(MODEL)
    fields = RoundRequest(run_id="r", server_round=1, plan_json="{}", noise_multiplier=1.0, model_hash=arrays_digest(MODEL))
    grid.push_messages(make_request(fields, node_id=node, message_type=TRAIN, arrays=record) for node in range(1, 51))
    assert counting.count == 1
    grid.push_messages(make_stage_request(fields, bytes([node]), node_id=node, message_type="query.share_keys") for node in range(1, 4))
    assert counting.count == 4
    assert len([check(message, trust, node=message.metadata.dst_node_id) for message in sink.taken]) == 53
    assert max(len(message.content[SIGNATURE_RECORD]["path"]) for message in sink.taken) == 6 * 32


def test_a_request_to_one_client_is_none_to_another_even_in_the_same_run(server, trust):
    """Somebody on the way shows node 2 what the server asked node 1: alone, or as one of those that a broadcast was for."""
    sink = Sink()
    grid = SignedGrid(sink, lambda: server, lambda: NOW)
    fields = RoundRequest(run_id="r", server_round=1, plan_json="{}", noise_multiplier=1.0)
    grid.push_messages(make_stage_request(fields, b"boxes", node_id=node, message_type="query.share_keys") for node in (1, 4, 5))
    alone = signed(make_stage_request(fields, b"boxes", node_id=1, message_type="query.share_keys"), server)
    for message in (alone, *sink.taken):
        own = message.metadata.dst_node_id
        check(message, trust, node=own)
        for other in {1, 2, 4, 5} - {own}:
            with pytest.raises(SignatureError, match="another run or node"):
                check(message, trust, node=other)
    first, second, _ = (message.content[SIGNATURE_RECORD] for message in sink.taken)
    forged = Message(sink.taken[0].content, dst_node_id=2, message_type="query.share_keys")  # and names node 2 on the outside
    for changes in ({}, {"index": 1}, {"index": 1, "path": second["path"]}, {"index": 0, "count": 1, "path": b""}, {"count": 2},
                    {"path": first["path"][:32]}, {"path": first["path"] + bytes(32)}):  # fmt: skip
        forged.content[SIGNATURE_RECORD] = ConfigRecord({**first, **changes})
        with pytest.raises(SignatureError):
            check(forged, trust, node=2)


def test_a_renewed_certificate_is_used_from_the_next_message_on(authority, server, trust):
    held = [server]
    grid = SignedGrid(Sink(), lambda: held[0], lambda: NOW)
    grid.push_messages([request()])
    renewed = authority.issue_server("main", server.signer.public_key, now=NOW + timedelta(minutes=3))
    held[0] = ServerIdentity(signer=server.signer, certificate_der=renewed.certificate_der, intermediate_der=server.intermediate_der)
    grid.push_messages([request()])
    old, new = (message.content[SIGNATURE_RECORD]["certificate"] for message in grid._inner.taken)
    assert (old, new) == (server.certificate_der, renewed.certificate_der)
    assert check(grid._inner.taken[1], trust, now=NOW + timedelta(hours=1))


def test_a_broadcast_to_1000_clients_costs_milliseconds(server):
    fields = RoundRequest(run_id="r", server_round=1, plan_json="x" * 3000, noise_multiplier=1.0, model_hash=arrays_digest(MODEL))
    messages = [make_request(fields, node_id=node, message_type=TRAIN, arrays=arrays_to_record(MODEL)) for node in range(1, 1001)]
    grid = SignedGrid(Sink(), lambda: server, lambda: NOW)
    started = time.process_time()
    grid.push_messages(messages)
    assert time.process_time() - started < 1.0  # 0.06 s on a quiet machine
