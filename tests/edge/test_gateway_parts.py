"""The gateway's pure parts: sessions, replay window, limits, spool, audit log, metrics, and what may stand in a call."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from flwr.proto import fab_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto import fleet_pb2 as flower_fleet_pb2
from gateway_lab import push

from fedsec.edge import edge_pb2, fleet_pb2, paths, signing
from fedsec.edge.audit import AuditLog
from fedsec.edge.fleet_calls import Node, check_body, check_headers, flower_public_key, public_key_header
from fedsec.edge.limits import SMALL_BYTES, Limiter, Limits, TokenBucket
from fedsec.edge.longpoll import Holders, Pulled, Spool, decode_pulled, encode_pulled, poll_after_s
from fedsec.edge.metrics import Metrics
from fedsec.edge.refusal import STATUS, Reason, Refused
from fedsec.edge.service import REPLY_CHUNK, REQUEST_CHUNK, decode_piece, encode_piece, pieces
from fedsec.edge.sessions import MAX_SESSIONS_PER_KEY, WINDOW, ReplayWindow, Sessions
from fedsec.errors import SignatureError, StorageError
from fedsec.signing import Signer

MB = 1 << 20
KEY = Signer.generate()
KEYS = signing.SessionKeys(b"c" * 32, b"r" * 32)
NODE = Node("node-a", KEY.public_key, 77)
CALL = signing.Call(bytes(16), 1, paths.GET_RUN, b"", "key", "2026-01-01T00:00:00+00:00", "sig", 3, bytes(32))


class TestReplayWindow:
    @given(st.lists(st.integers(-3, 3 * WINDOW), max_size=300))
    def test_a_counter_is_accepted_once_and_only_within_the_window(self, counters):
        window, seen, highest = ReplayWindow(), set(), 0
        for counter in counters:
            expected = 1 <= counter <= highest + WINDOW and counter not in seen and counter > highest - WINDOW
            assert window.may_come(counter) is expected
            assert window.accept(counter) is expected
            if expected:
                seen.add(counter)
                highest = max(highest, counter)

    def test_a_thousand_calls_may_overtake_each_other(self):
        window = ReplayWindow()
        assert all(window.accept(counter) for counter in range(WINDOW, 0, -1))
        assert not any(window.accept(counter) for counter in range(1, WINDOW + 1))

    def test_far_ahead_is_refused_and_changes_nothing(self):
        window = ReplayWindow()
        assert not window.accept(WINDOW + 1)
        assert not window.accept(2**64 - 1)
        assert window.accept(1)


class TestSessions:
    def test_another_key_does_not_find_a_session(self):
        sessions = Sessions()
        sessions.open(b"a", b"1", KEYS)
        assert sessions.find(b"a", b"1") is not None
        assert sessions.find(b"b", b"1") is None

    @given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(["open", "end"])), max_size=60))
    def test_the_newest_four_of_each_key_are_kept(self, steps):
        sessions, model = Sessions(), {}
        for number, (key, step) in enumerate(steps):
            if step == "open":
                sessions.open(key, number.to_bytes(16, "big"), KEYS)
                model[key] = [*model.get(key, []), number][-MAX_SESSIONS_PER_KEY:]
            else:
                assert sessions.end(key) == len(model.pop(key, []))
        alive = {(key, number) for key, numbers in model.items() for number in numbers}
        for number in range(len(steps)):
            for key in (b"a", b"b", b"c"):
                assert (sessions.find(key, number.to_bytes(16, "big")) is not None) is ((key, number) in alive)
        assert len(sessions) == len(alive)


class TestLimits:
    @given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 30)), max_size=80))
    def test_a_bucket_never_gives_more_than_rate_and_burst(self, steps):
        bucket, now, given_out = TokenBucket(3.0, 10, 0.0), 0.0, 0.0
        for pause, amount in steps:
            now += pause
            if bucket.take(amount, now):
                given_out += amount
                # one oversized request may pass on credit, once the bucket is full
                assert given_out <= 10 + 3.0 * now + 30

    def test_waiting_as_told_is_enough(self):
        bucket = TokenBucket(2.0, 4, 0.0)
        assert all(bucket.take(1, 0.0) for _ in range(4))
        assert not bucket.take(1, 0.0)
        assert bucket.take(1, 0.0 + bucket.wait_s(1, 0.0))

    def test_a_clock_that_goes_back_gives_nothing(self):
        bucket = TokenBucket(1.0, 1, 100.0)
        assert bucket.take(1, 100.0)
        assert not bucket.take(1, 50.0)
        assert not bucket.take(1, 100.5)

    def test_a_flood_uses_up_its_own_account_only(self):
        limiter = Limiter(Limits(calls_per_s=1, calls_burst=5))
        for _ in range(5):
            limiter.enter(b"flooder", 0.0)
            limiter.leave(b"flooder")
        with pytest.raises(Refused, match="rate"):
            limiter.enter(b"flooder", 0.0)
        limiter.enter(b"other", 0.0)

    def test_calls_at_a_time_and_bytes_in_memory_are_bounded(self):
        limiter = Limiter(Limits(concurrent_calls=1, inflight_bytes=10 * MB))
        limiter.enter(b"a", 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.enter(b"a", 0.0)
        limiter.hold(b"a", 6 * MB, 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.hold(b"b", 6 * MB, 0.0)
        limiter.release(b"a", 6 * MB)
        limiter.hold(b"b", 6 * MB, 0.0)

    def test_one_client_holds_a_quarter_and_small_bodies_always_pass(self):
        """It announced as many bytes as the gateway holds, sent none, and nobody else could send anything for over an hour."""
        limiter = Limiter(Limits(inflight_bytes=16 * MB))
        for _ in range(4):
            limiter.hold(b"a", MB, 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.hold(b"a", MB, 0.0)
        for name in (b"b", b"c", b"d"):
            limiter.hold(name, 4 * MB, 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.hold(b"e", MB, 0.0)
        for name in (b"a", b"e"):
            limiter.hold(name, SMALL_BYTES, 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.hold(b"a", SMALL_BYTES + 1, 0.0)
        limiter.release(b"b", 4 * MB)
        limiter.hold(b"e", MB, 0.0)

    def test_one_body_larger_than_the_quarter_may_come_alone(self):
        limiter = Limiter(Limits(inflight_bytes=16 * MB))
        limiter.hold(b"a", 6 * MB, 0.0)
        with pytest.raises(Refused, match="busy"):
            limiter.hold(b"a", SMALL_BYTES + 1, 0.0)
        limiter.release(b"a", 6 * MB)
        limiter.hold(b"a", 6 * MB, 0.0)

    def test_idle_accounts_are_dropped_but_running_ones_stay(self):
        limiter = Limiter(Limits(calls_burst=1, calls_per_s=1))
        limiter.enter(b"a", 0.0)
        limiter.enter(b"b", 0.0)
        limiter.leave(b"b")
        limiter.forget_idle(set())
        limiter.leave(b"a")
        limiter.enter(b"b", 0.0)


class TestSpool:
    @given(st.binary(min_size=32, max_size=32), st.text(max_size=40), st.binary(max_size=300))
    def test_files_are_read_as_they_were_written(self, delivery, kind, body):
        assert decode_pulled(encode_pulled(Pulled(delivery, kind, body))) == Pulled(delivery, kind, body)

    @given(st.integers(0, 200), st.integers(1, 255), st.binary(max_size=120))
    def test_a_damaged_file_is_not_served(self, place, flip, body):
        data = bytearray(encode_pulled(Pulled(bytes(32), "application/protobuf", body)))
        data[place % len(data)] ^= flip
        with pytest.raises(StorageError):
            decode_pulled(bytes(data))

    @given(st.binary(max_size=100))
    def test_hostile_files_are_refused(self, data):
        with pytest.raises(StorageError):
            decode_pulled(data)

    def test_kept_over_a_restart_until_confirmed(self, tmp_path):
        Spool(tmp_path).keep(7, Pulled(b"d" * 32, "kind", b"body"))
        spool = Spool(tmp_path)
        assert spool.waiting(7) == Pulled(b"d" * 32, "kind", b"body")
        assert not spool.confirm(7, b"e" * 32)
        assert not spool.confirm(8, b"d" * 32)
        assert spool.confirm(7, b"d" * 32)
        assert Spool(tmp_path).waiting(7) is None

    def test_a_damaged_file_is_moved_aside_at_the_start(self, tmp_path):
        (tmp_path / "7").write_bytes(b"rubbish")
        (tmp_path / "notes.txt").write_text("not ours")
        spool = Spool(tmp_path)
        assert spool.waiting(7) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["7.damaged", "notes.txt"]


class TestHolders:
    @given(st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from(["take", "leave oldest", "leave newest"])), max_size=60))
    def test_the_newest_holds_and_each_other_is_told_once(self, steps):
        holders, tickets, told = Holders(), {1: [], 2: []}, []
        for number, (node, step) in enumerate(steps):
            own = tickets[node]
            if step == "take":
                ticket = holders.take(node, lambda number=number: told.append(number))
                own.append((ticket, number))
            elif own:
                ticket, _ = own.pop(0 if step == "leave oldest" else -1)
                holders.leave(node, ticket)
            holding = [ticket for ticket, _ in own if holders.holds(node, ticket)]
            assert len(holding) <= 1
            if holding:
                assert holding == [max(ticket for ticket, _ in own)]
        assert len(told) == len(set(told))

    def test_quiet_nodes_are_asked_less_often(self):
        assert poll_after_s(0.0) < poll_after_s(1e6) <= 1.0


class TestAudit:
    def test_lines_are_json_and_a_hostile_name_forges_none(self, tmp_path):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.write(
            datetime(2030, 1, 1, tzinfo=UTC), "call", {"client": 'x"}\n{"event": "forged"}', "long": "y" * 5000, "n": 3, "none": None}
        )
        (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
        record = json.loads(line)
        assert record["event"] == "call"
        assert len(record["long"]) <= 201

    def test_rotation_keeps_it_bounded(self, tmp_path):
        log = AuditLog(tmp_path / "a", max_bytes=300, backups=2)
        for number in range(60):
            log.write(datetime(2030, 1, 1, tzinfo=UTC), "call", {"number": number})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.1", "a.2"]
        assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())
        assert json.loads((tmp_path / "a").read_text().splitlines()[-1])["number"] == 59

    def test_a_rotation_without_a_free_descriptor_loses_lines_and_never_writes_into_another_file(self, tmp_path, monkeypatch):
        log, at = AuditLog(tmp_path / "a", max_bytes=100), datetime(2030, 1, 1, tzinfo=UTC)
        log.write(at, "call", {"text": "x" * 40})

        def full(*_, **__):
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("fedsec.edge.audit.os.open", full)
            log.write(at, "call", {"text": "lost"})
            assert log.lost == 1
        other = tmp_path / "other"
        with other.open("wb"):  # takes the number that a closed log would have had
            log.write(at, "call", {"text": "found"})
        assert other.read_bytes() == b""
        assert json.loads((tmp_path / "a").read_text())["lost_lines"] == 1
        assert "x" * 40 in (tmp_path / "a.1").read_text()

    def test_bytes_never_get_in(self, tmp_path):
        with pytest.raises(ValueError, match="plain"):
            AuditLog(tmp_path / "a").write(datetime.now(UTC), "call", {"body": b"secret"})

    def test_a_full_disk_is_counted_not_raised(self):
        log = AuditLog(Path("/dev/full"))
        log.write(datetime.now(UTC), "call", {})
        assert log.lost == 1


def test_metrics_are_in_prometheus_form():
    metrics = Metrics()
    metrics.count("calls_total", result="ok", path="get-run")
    metrics.count("calls_total", result="ok", path="get-run")
    metrics.gauge("nodes", lambda: 3)
    assert metrics.text().splitlines() == [
        "# TYPE fedsec_gateway_calls_total counter",
        'fedsec_gateway_calls_total{path="get-run",result="ok"} 2',
        "# TYPE fedsec_gateway_nodes gauge",
        "fedsec_gateway_nodes 3",
    ]


def test_every_reason_has_a_status():
    assert set(STATUS) == set(Reason)


class TestSignatures:
    @pytest.mark.parametrize(
        "change",
        [
            {"session_id": b"1" * 16},
            {"counter": 2},
            {"path": paths.GET_FAB},
            {"received_pull": b"d" * 32},
            {"public_key": "other"},
            {"timestamp": "2026-01-01T00:00:01+00:00"},
            {"flower_signature": "other"},
            {"body_size": 4},
            {"body_sha256": b"1" * 32},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_everything_in_a_call_is_signed(self, change):
        proof = signing.prove_call(KEYS, CALL)
        signing.verify_call(KEYS, CALL, proof)
        with pytest.raises(SignatureError):
            signing.verify_call(KEYS, signing.Call(**{**vars(CALL), **change}), proof)

    @pytest.mark.parametrize(
        "change",
        [
            {"session_id": b"1" * 16},
            {"counter": 2},
            {"status": 401},
            {"content_type": "other"},
            {"body_size": 4},
            {"body_sha256": b"1" * 32},
            {"delivery": b"d" * 32},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_everything_in_an_answer_is_proven(self, change):
        reply = signing.Reply(b"s" * 16, 1, 200, "application/protobuf", 3, b"h" * 32, b"")
        proof = signing.prove_reply(KEYS, reply)
        signing.verify_reply(KEYS, reply, proof)
        with pytest.raises(SignatureError):
            signing.verify_reply(KEYS, signing.Reply(**{**vars(reply), **change}), proof)
        for bad in (b"", bytes(32), proof[:-1]):
            with pytest.raises(SignatureError):
                signing.verify_reply(KEYS, reply, bad)

    @pytest.mark.parametrize(
        "change",
        [
            {"client_nonce": b"m" * 32},
            {"client_share": b"m" * 32},
            {"session_id": b"t" * 16},
            {"server_time_ms": 6},
            {"server_share": b"m" * 32},
            {"client_certificate_der": b"another"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_session_is_bound_to_everything_in_its_hello(self, change):
        good = signing.Hello(b"n" * 32, b"c" * 32, b"s" * 16, 5, b"d" * 32, b"certificate")
        signature = signing.sign_hello(KEY, good)
        signing.verify_hello(KEY.public_key, good, signature)
        changed = signing.Hello(**{**vars(good), **change})
        with pytest.raises(SignatureError):
            signing.verify_hello(KEY.public_key, changed, signature)
        share, other = signing.new_share(), signing.new_share()
        public = other.public_key().public_bytes_raw()
        assert signing.derive_keys(share, public, good) == signing.derive_keys(other, share.public_key().public_bytes_raw(), good)
        assert signing.derive_keys(share, public, good) != signing.derive_keys(share, public, changed)

    def test_the_clients_half_is_signed_too(self):
        good = (b"n" * 32, "fedsec 1", b"s" * 32, b"certificate")
        signature = signing.sign_hello_request(KEY, *good)
        signing.verify_hello_request(KEY.public_key, *good, signature)
        for place, other in enumerate((b"m" * 32, "fedsec 2", b"t" * 32, b"another")):
            with pytest.raises(SignatureError):
                signing.verify_hello_request(KEY.public_key, *good[:place], other, *good[place + 1 :], signature)

    @pytest.mark.parametrize("share", [bytes(32), b"\x01" + bytes(31), b"", b"short"])
    def test_a_share_of_small_order_or_length_gives_no_keys(self, share):
        hello = signing.Hello(b"n" * 32, share, b"s" * 16, 5, b"d" * 32, b"certificate")
        with pytest.raises(SignatureError):
            signing.derive_keys(signing.new_share(), share, hello)

    def test_keys_are_not_shown_and_directions_have_their_own(self):
        hello = signing.Hello(b"n" * 32, b"c" * 32, b"s" * 16, 5, b"d" * 32, b"certificate")
        keys = signing.derive_keys(signing.new_share(), signing.new_share().public_key().public_bytes_raw(), hello)
        assert keys.call != keys.reply
        assert len(keys.call) == len(keys.reply) == 32
        assert "call" not in repr(keys)


class TestHeaders:
    def call(self, **changes):
        good = {"public_key": public_key_header(KEY.public_key), "flower_signature": "A" * 96}
        return signing.Call(**{**vars(CALL), **good, **changes})

    def test_honest_ones_pass(self):
        check_headers(self.call(), KEY.public_key)

    @pytest.mark.parametrize(
        "changes",
        [
            {"timestamp": "2026-01-01T00:00:00+00:00\r\nx-evil: 1"},
            {"timestamp": "now"},
            {"timestamp": ""},
            {"timestamp": "2026-01-01T00:00:00"},
            {"timestamp": "２０２６-01-01T00:00:00+00:00"},
            {"flower_signature": "A" * 96 + "\n"},
            {"flower_signature": ""},
            {"flower_signature": "A" * 500},
        ],
    )
    def test_nothing_breaks_out_of_a_header(self, changes):
        with pytest.raises(Refused, match="malformed"):
            check_headers(self.call(**changes), KEY.public_key)

    @pytest.mark.parametrize("key", ["", "x", public_key_header(Signer.generate().public_key), public_key_header(KEY.public_key) + "="])
    def test_another_key_is_refused(self, key):
        with pytest.raises(Refused, match="public-key"):
            check_headers(self.call(public_key=key), KEY.public_key)


class TestBodies:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (paths.DEACTIVATE_NODE, fleet_pb2.DeactivateNodeRequest(node_id=77)),
            (paths.ACTIVATE_NODE, fleet_pb2.ActivateNodeRequest(public_key=flower_public_key(KEY.public_key))),
            (paths.PUSH_MESSAGES, push(77)),
            *[
                (path, kind(node=fleet_pb2.Node(node_id=77)))
                for path, kind in {
                    paths.SEND_NODE_HEARTBEAT: fleet_pb2.SendNodeHeartbeatRequest,
                    paths.PULL_MESSAGES: fleet_pb2.PullMessagesRequest,
                    paths.GET_RUN: fleet_pb2.GetRunRequest,
                    paths.GET_FAB: fleet_pb2.GetFabRequest,
                    paths.PUSH_OBJECT: fleet_pb2.PushObjectRequest,
                    paths.PULL_OBJECT: fleet_pb2.PullObjectRequest,
                    paths.CONFIRM_MESSAGE_RECEIVED: fleet_pb2.ConfirmMessageReceivedRequest,
                }.items()
            ],
        ],
    )
    def test_the_nodes_own_pass_and_anothers_do_not(self, path, message):
        check_body(path, message.SerializeToString(), NODE)
        other = Node("node-b", Signer.generate().public_key, 78)
        with pytest.raises(Refused) as refusal:
            check_body(path, message.SerializeToString(), other)
        assert refusal.value.reason in (Reason.NODE, Reason.PUBLIC_KEY)
        with pytest.raises(Refused):
            check_body(path, b"", NODE)

    @pytest.mark.parametrize(
        "change",
        [
            {"source": 1},
            {"source": 78},
            {"source": 0},
            {"destination": 78},
            {"destination": 77},
            {"destination": 0},
            {"reply_to": ""},
            {"message_id": ""},
            {"count": 0},
            {"count": 2},
            {"trees": 0},
            {"trees": 2},
        ],
        ids=str,
    )
    def test_a_message_goes_from_the_node_to_the_serverapp_and_answers_one(self, change):
        with pytest.raises(Refused, match="message"):
            check_body(paths.PUSH_MESSAGES, push(77, **change).SerializeToString(), NODE)

    def test_the_tree_is_the_messages(self):
        request = push(77)
        request.message_object_trees[0].object_id = "another"
        with pytest.raises(Refused, match="message"):
            check_body(paths.PUSH_MESSAGES, request.SerializeToString(), NODE)

    def test_the_last_of_two_nodes_counts_here_as_at_flower(self):
        mine, theirs = (fleet_pb2.GetRunRequest(node=fleet_pb2.Node(node_id=node)).SerializeToString() for node in (77, 78))
        check_body(paths.GET_RUN, theirs + mine, NODE)
        assert run_pb2.GetRunRequest.FromString(theirs + mine).node.node_id == 77
        with pytest.raises(Refused, match="node"):
            check_body(paths.GET_RUN, mine + theirs, NODE)

    def test_a_second_metadata_merged_in_is_seen(self):
        evil = fleet_pb2.Message(metadata=fleet_pb2.Metadata(dst_node_id=78)).SerializeToString()
        request = push(77)
        honest = request.messages_list[0].SerializeToString()
        merged = fleet_pb2.Message.FromString(honest + evil)
        assert merged.metadata.dst_node_id == 78
        request.messages_list[0].CopyFrom(merged)
        with pytest.raises(Refused, match="message"):
            check_body(paths.PUSH_MESSAGES, request.SerializeToString(), NODE)


OURS_AND_FLOWERS = [
    (fleet_pb2.ActivateNodeRequest, flower_fleet_pb2.ActivateNodeRequest),
    (fleet_pb2.ActivateNodeResponse, flower_fleet_pb2.ActivateNodeResponse),
    (fleet_pb2.DeactivateNodeRequest, flower_fleet_pb2.DeactivateNodeRequest),
    (fleet_pb2.PullMessagesRequest, flower_fleet_pb2.PullMessagesRequest),
    (fleet_pb2.PullMessagesResponse, flower_fleet_pb2.PullMessagesResponse),
    (fleet_pb2.PushMessagesRequest, flower_fleet_pb2.PushMessagesRequest),
    (fleet_pb2.SendNodeHeartbeatRequest, heartbeat_pb2.SendNodeHeartbeatRequest),
    (fleet_pb2.SendNodeHeartbeatResponse, heartbeat_pb2.SendNodeHeartbeatResponse),
    (fleet_pb2.GetRunRequest, run_pb2.GetRunRequest),
    (fleet_pb2.GetRunResponse, run_pb2.GetRunResponse),
    (fleet_pb2.GetFabRequest, fab_pb2.GetFabRequest),
    (fleet_pb2.GetFabResponse, fab_pb2.GetFabResponse),
    (fleet_pb2.PushObjectRequest, message_pb2.PushObjectRequest),
    (fleet_pb2.PullObjectRequest, message_pb2.PullObjectRequest),
    (fleet_pb2.ConfirmMessageReceivedRequest, message_pb2.ConfirmMessageReceivedRequest),
]


def fields_agree(ours, flowers):
    """Every field of ours is there with the same number, type and label; messages within too."""
    for field in ours.fields:
        other = flowers.fields_by_number.get(field.number)
        assert other is not None, f"{ours.full_name}.{field.name}"
        assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated), field.full_name
        if field.message_type not in (None, ours):  # a tree holds trees
            fields_agree(field.message_type, other.message_type)


@pytest.mark.parametrize(("ours", "flowers"), OURS_AND_FLOWERS, ids=lambda kind: kind.DESCRIPTOR.full_name)
def test_messages_have_flowers_numbers_and_types(ours, flowers):
    fields_agree(ours.DESCRIPTOR, flowers.DESCRIPTOR)


def test_control_messages_have_flowers_numbers_and_types():
    from flwr.proto import control_pb2, node_pb2

    for name in ("RegisterNodeRequest", "RegisterNodeResponse", "UnregisterNodeRequest", "ListNodesResponse"):
        fields_agree(getattr(fleet_pb2, name).DESCRIPTOR, getattr(control_pb2, name).DESCRIPTOR)
    fields_agree(fleet_pb2.NodeInfo.DESCRIPTOR, node_pb2.NodeInfo.DESCRIPTOR)


def test_our_serialisation_of_a_push_is_flowers():
    metadata = {"run_id": 1, "src_node_id": 7, "dst_node_id": 1, "group_id": "3", "ttl": 60.0, "created_at": 1.5, "src_task_id": 0}
    message = {"metadata": metadata, "error": {"code": -3, "reason": "why"}}
    tree = {"object_id": "a", "children": [{"object_id": "b"}]}
    request = flower_fleet_pb2.PushMessagesRequest(
        clientapp_runtime_list=[1.5], node={"node_id": 7}, messages_list=[message, {"content": {}}], message_object_trees=[tree]
    )
    again = fleet_pb2.PushMessagesRequest.FromString(request.SerializeToString()).SerializeToString()
    assert flower_fleet_pb2.PushMessagesRequest.FromString(again) == request


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (paths.PUSH_MESSAGES, push(77).SerializeToString() + b"\x28\x01"),  # field 5
        (paths.PUSH_MESSAGES, push(77).SerializeToString() + b"\x12\x02\x20\x01"),  # field 4 of a second message
        (paths.PULL_OBJECT, fleet_pb2.PullObjectRequest(node=fleet_pb2.Node(node_id=77)).SerializeToString() + b"\x20\x01"),
        (paths.PUSH_OBJECT, fleet_pb2.PushObjectRequest(node=fleet_pb2.Node(node_id=77)).SerializeToString() + b"\x30\x01"),
        (paths.CONFIRM_MESSAGE_RECEIVED, b"\x0a\x04\x08\x4d\x10\x01"),  # field 2 of the node
    ],
)
def test_a_field_that_is_not_known_is_refused(path, request_):
    with pytest.raises(Refused, match="malformed"):
        check_body(path, request_, NODE)


def test_a_content_in_the_announcement_is_refused():
    request = push(77)
    request.messages_list[0].content.SetInParent()
    assert check_body(paths.PUSH_MESSAGES, request.SerializeToString(), NODE)
    filled = flower_fleet_pb2.PushMessagesRequest.FromString(request.SerializeToString())
    filled.messages_list[0].content.items.add().key = "x"
    with pytest.raises(Refused, match="malformed"):
        check_body(paths.PUSH_MESSAGES, filled.SerializeToString(), NODE)


@pytest.mark.parametrize(("said", "kept"), [([], []), ([2.5], [2.5]), ([float("nan")], [0.0]), ([-1.0], [0.0]), ([1e300, 7.0], [86400.0])])
def test_the_run_time_that_a_client_claims_is_clamped(said, kept):
    request = push(77)
    request.clientapp_runtime_list.extend(said)
    assert list(check_body(paths.PUSH_MESSAGES, request.SerializeToString(), NODE).clientapp_runtime_list) == kept


@pytest.mark.parametrize("name", ["ttl", "created_at"])
def test_a_time_that_is_none_is_refused(name):
    request = push(77)
    setattr(request.messages_list[0].metadata, name, float("inf"))
    with pytest.raises(Refused, match="message"):
        check_body(paths.PUSH_MESSAGES, request.SerializeToString(), NODE)


def hostile_protobuf():
    """Field after field of small numbers and all wire types, nested, with lengths that may lie."""
    varint = st.integers(0, 2**64 - 1).map(encode_varint)
    number = st.integers(1, 12)
    leaf = st.one_of(
        st.tuples(number, varint).map(lambda item: encode_varint(item[0] << 3) + item[1]),
        st.tuples(number, st.binary(min_size=8, max_size=8)).map(lambda item: encode_varint(item[0] << 3 | 1) + item[1]),
        st.tuples(number, st.binary(max_size=12)).map(lambda item: encode_varint(item[0] << 3 | 2) + encode_varint(len(item[1])) + item[1]),
    )
    nested = st.recursive(
        leaf,
        lambda inner: st.tuples(number, st.lists(inner, max_size=3).map(b"".join), st.sampled_from([0, 0, 0, 1])).map(
            lambda item: encode_varint(item[0] << 3 | 2) + encode_varint(len(item[1]) + item[2]) + item[1]
        ),
        max_leaves=12,
    )
    return st.lists(nested, max_size=5).map(b"".join)


def encode_varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([paths.PUSH_MESSAGES, paths.GET_RUN, paths.ACTIVATE_NODE, paths.DEACTIVATE_NODE, paths.PULL_OBJECT]), hostile_protobuf()
)
def test_what_passes_is_what_flower_reads(path, body):
    """Whatever the bytes: if the gateway lets them pass, Flower reads the node's own id and nothing that commands another."""
    kinds = {
        paths.PUSH_MESSAGES: flower_fleet_pb2.PushMessagesRequest,
        paths.GET_RUN: run_pb2.GetRunRequest,
        paths.ACTIVATE_NODE: flower_fleet_pb2.ActivateNodeRequest,
        paths.DEACTIVATE_NODE: flower_fleet_pb2.DeactivateNodeRequest,
        paths.PULL_OBJECT: message_pb2.PullObjectRequest,
    }
    try:
        check_body(path, body, NODE)
    except Refused:
        return
    try:
        read = kinds[path].FromString(body)
    except Exception:  # noqa: BLE001 - Flower refuses what we let pass: it has more fields to find fault with
        return
    if path == paths.ACTIVATE_NODE:
        assert read.public_key == flower_public_key(KEY.public_key)
        return
    assert (read.node_id if path == paths.DEACTIVATE_NODE else read.node.node_id) == 77
    if path == paths.PUSH_MESSAGES:
        (message,) = read.messages_list
        assert (message.metadata.src_node_id, message.metadata.dst_node_id) == (77, 1)
        assert message.metadata.reply_to_message_id


@settings(max_examples=200, deadline=None)
@given(hostile_protobuf(), st.integers(0, 30))
def test_a_push_with_hostile_additions_commands_nobody(addition, place):
    """An honest push with hostile fields put before, after or into it."""
    honest = push(77).SerializeToString()
    for body in (addition + honest, honest + addition, honest[:place] + addition + honest[place:]):
        try:
            check_body(paths.PUSH_MESSAGES, body, NODE)
            read = flower_fleet_pb2.PushMessagesRequest.FromString(body)
        except Exception:  # noqa: BLE001
            continue
        assert read.node.node_id == 77
        assert [(m.metadata.src_node_id, m.metadata.dst_node_id) for m in read.messages_list] == [(77, 1)]


class TestPieces:
    @given(st.binary(min_size=1, max_size=400), st.sampled_from([REQUEST_CHUNK, REPLY_CHUNK]))
    def test_written_as_protobuf_would_and_read_without_a_copy(self, piece, tag):
        kind = edge_pb2.ForwardRequest if tag == REQUEST_CHUNK else edge_pb2.ForwardReply
        data = encode_piece(tag, memoryview(piece))
        assert data == kind(chunk=piece).SerializeToString()
        assert decode_piece(tag, data) == piece

    @given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda rest: bytes([REQUEST_CHUNK]) + rest)))
    def test_hostile_messages_are_read_as_protobuf_reads_them(self, data):
        piece = decode_piece(REQUEST_CHUNK, data)
        if piece is not None:
            assert edge_pb2.ForwardRequest.FromString(data) == edge_pb2.ForwardRequest(chunk=bytes(piece))

    @pytest.mark.parametrize("size", [0, 1, signing.MAX_CHUNK_BYTES, signing.MAX_CHUNK_BYTES + 1, 3 * signing.MAX_CHUNK_BYTES])
    def test_bodies_are_cut_and_joined(self, size):
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        parts = list(pieces(body))
        assert b"".join(parts) == body
        assert all(len(part) <= signing.MAX_CHUNK_BYTES for part in parts)
        assert len(parts) == max(1, -(-size // signing.MAX_CHUNK_BYTES))


@settings(max_examples=300, deadline=None)
@given(hostile_protobuf(), st.booleans())
def test_an_object_that_passes_is_read_as_flower_reads_it(body, honest):
    """What the gateway takes from a pushed object is what Flower would, down to the content; or it is refused."""
    body = message_pb2.PushObjectRequest(node={"node_id": 77}).SerializeToString() + body if honest else body
    try:
        pushed = check_body(paths.PUSH_OBJECT, body, NODE)
    except Refused:
        return
    read = message_pb2.PushObjectRequest.FromString(body)
    assert (read.node.node_id, read.run_id, read.object_id) == (77, pushed.run_id, pushed.object_id)
    assert (read.session_id, read.object_content) == (pushed.session_id, bytes(pushed.content))


def test_an_honest_object_is_read_without_copying_its_content():
    request = message_pb2.PushObjectRequest(node={"node_id": 77}, run_id=2**63, object_id="x", object_content=b"c" * 1000, session_id="s")
    for body in (request.SerializeToString(), bytearray(request.SerializeToString())):
        pushed = check_body(paths.PUSH_OBJECT, body, NODE)
        assert (pushed.run_id, pushed.object_id, pushed.session_id, bytes(pushed.content)) == (2**63, "x", "s", b"c" * 1000)
        assert pushed.content.obj is body


def test_a_flood_of_equal_lines_is_folded_and_counted():
    from fedsec.edge.audit import FOLD_ABOVE, FOLD_S, Folding

    folding = Folding()
    said = [folding.left_out(("flooder", "path"), 1.0) for _ in range(FOLD_ABOVE + 7)]
    assert said == [0] * FOLD_ABOVE + [None] * 7
    assert folding.left_out(("other", "path"), 1.0) == 0
    assert folding.left_out(("flooder", "path"), 1.0 + FOLD_S) == 7
    assert folding.left_out(("flooder", "path"), 1.1 + FOLD_S) == 0
