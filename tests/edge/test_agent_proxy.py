"""The agent's loopback endpoint: who may use it, what a SuperNode gets, and what is acknowledged when. The link is a stand-in."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import fedsec.edge.agent_proxy as proxy_module
from fedsec.edge import fleet_pb2, paths
from fedsec.edge.agent_channel import CallFailedError
from fedsec.edge.agent_proxy import FleetApp
from fedsec.edge.agent_status import Status, read_status
from fedsec.edge.audit import AuditLog
from fedsec.edge.edge_client import Answer
from fedsec.edge.loopback import make_loopback

NODE_KEY = b"-----BEGIN PUBLIC KEY-----\nours\n"
DELIVERY = bytes(range(32))


class FakeLink:
    def __init__(self):
        self.calls, self.answers, self.checked = [], {}, 0

    def public_key(self):
        return NODE_KEY

    def check_again(self):
        self.checked += 1

    async def forward(self, path, body, *, received_pull=b"", timeout_s):
        self.calls.append((path, body, received_pull))
        answer = self.answers.get(path, Answer(200, "application/protobuf", b"", b""))
        if callable(answer):
            answer = await answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeGuard:
    def __init__(self):
        self.forgotten, self.allowed = 0, True

    def forget(self):
        self.forgotten += 1

    async def may_go_on(self, _run_id):
        return self.allowed

    async def run_answer(self, _request, answer):
        return answer

    fab_answer = run_answer


class Node:
    """A SuperNode with the key of this start, or with another one."""

    def __init__(self, folder):
        self.now = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)
        self.link, self.guard, self.restarts = FakeLink(), FakeGuard(), 0
        loopback = make_loopback(folder / "loopback", now=self.now)
        self.key = serialization.load_ssh_private_key(loopback.node_key.read_bytes(), None)
        self.status = Status(folder / "status.json", AuditLog(folder / "audit.jsonl"), clock=lambda: self.now)
        self.app = FleetApp(
            self.link, self.guard, loopback, self.status, clock=lambda: self.now, object_bytes=1 << 20, restart_node=self.restart
        )

    def restart(self):
        self.restarts += 1

    def headers(self, *, key=None, at=None, stamp=None):
        key = key or self.key
        stamp = stamp or (at or self.now).isoformat()
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return [
            (b"flwr-public-key", base64.b64encode(pem)),
            (b"flwr-timestamp", stamp.encode()),
            (b"flwr-signature", base64.b64encode(signature)),
        ]

    async def call(self, path, body=b"", *, method="POST", headers=None, gone=None, query=b""):
        sent, given = [], []

        async def receive():
            if not given:
                given.append(1)
                return {"type": "http.request", "body": body, "more_body": False}
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(event):
            sent.append(event)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": headers if headers is not None else self.headers(),
        }
        await self.app(scope, receive, send)
        return (sent[0]["status"], sent[1]["body"]) if sent else None


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def messages(*run_ids):
    found = [fleet_pb2.Message(metadata=fleet_pb2.Metadata(run_id=run_id, message_type="train")) for run_id in run_ids]
    return Answer(200, "application/protobuf", fleet_pb2.PullMessagesResponse(messages_list=found).SerializeToString(), DELIVERY)


# --- Who may call -------------------------------------------------------------------------------------------------------------------------


def test_our_supernode_is_served(node):
    assert run(node.call(paths.SEND_NODE_HEARTBEAT, b"x")) == (200, b"")
    assert node.link.calls == [(paths.SEND_NODE_HEARTBEAT, b"x", b"")]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: [],
        lambda node: node.headers(key=ec.generate_private_key(ec.SECP256R1())),
        lambda node: node.headers(at=node.now - timedelta(seconds=11)),
        lambda node: node.headers(at=node.now + timedelta(seconds=11)),
        lambda node: node.headers(stamp="yesterday"),
        lambda node: node.headers(stamp="2030-05-01T12:00:00"),
        lambda node: [*node.headers()[:2], (b"flwr-signature", b"!!")],
        lambda node: [*node.headers()[:2], (b"flwr-signature", base64.b64encode(b"x" * 70))],
        lambda node: [node.headers()[0], (b"flwr-timestamp", b"\xff"), node.headers()[2]],
    ],
)
def test_another_local_process_gets_nothing_signed_in_the_nodes_name(node, change):
    """Any account on the machine reaches 127.0.0.1; without this the agent would sign for it."""
    assert run(node.call(paths.PULL_MESSAGES, headers=change(node)))[0] == 401
    assert node.link.calls == []


def test_a_request_counts_once(node):
    headers = node.headers()

    async def story():
        assert (await node.call(paths.SEND_NODE_HEARTBEAT, headers=headers))[0] == 200
        assert (await node.call(paths.SEND_NODE_HEARTBEAT, headers=headers))[0] == 401

    run(story())


@pytest.mark.parametrize(
    "path",
    ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/control/start-run", "/v1/runtime/pull-messages", "/", "/v1/fleet/pull-messages/",
     "/V1/fleet/pull-messages", "//v1/fleet/pull-messages", "/v1/fleet/../fleet/pull-messages"],
)  # fmt: skip
def test_other_paths_lead_nowhere(node, path):
    assert run(node.call(path))[0] == 404
    assert node.link.calls == []


def test_other_methods_and_queries_lead_nowhere(node):
    assert run(node.call(paths.PULL_MESSAGES, method="GET"))[0] == 404
    assert run(node.call(paths.PULL_MESSAGES, query=b"x=1"))[0] == 404


def test_bodies_are_limited(node):
    assert run(node.call(paths.PUSH_OBJECT, b"x" * ((1 << 20) + 1)))[0] == 413
    assert run(node.call(paths.GET_RUN, b"x" * (paths.SMALL_BODY_BYTES + 1)))[0] == 413
    assert node.link.calls == []


# --- What is answered ---------------------------------------------------------------------------------------------------------------------


def test_the_activation_is_for_the_nodes_own_key(node):
    node.link.answers[paths.ACTIVATE_NODE] = Answer(200, "p", fleet_pb2.ActivateNodeResponse(node_id=9).SerializeToString(), b"")
    body = fleet_pb2.ActivateNodeRequest(public_key=b"of this start").SerializeToString()
    assert run(node.call(paths.ACTIVATE_NODE, body))[0] == 200
    assert fleet_pb2.ActivateNodeRequest.FromString(node.link.calls[0][1]).public_key == NODE_KEY
    assert (node.app.node_id, node.guard.forgotten) == (9, 1)
    assert run(node.call(paths.ACTIVATE_NODE, b"\xff"))[0] == 503


@pytest.mark.parametrize(
    ("path", "status", "seen"),
    [(paths.PULL_MESSAGES, 400, 503), (paths.GET_RUN, 400, 503), (paths.GET_FAB, 400, 503), (paths.SEND_NODE_HEARTBEAT, 400, 503),
     (paths.PUSH_MESSAGES, 400, 400), (paths.PULL_OBJECT, 400, 400), (paths.CONFIRM_MESSAGE_RECEIVED, 400, 400),
     (paths.PULL_MESSAGES, 401, 401), (paths.PULL_MESSAGES, 503, 503), (paths.PUSH_OBJECT, 413, 413)],
)  # fmt: skip
def test_a_failed_call_becomes_what_the_supernode_can_bear(node, path, status, seen):
    """A 400 on a pull would end the SuperNode's loop; on a push it costs one message."""
    node.link.answers[path] = CallFailedError(status, "why")
    assert run(node.call(path))[0] == seen


def test_the_superlinks_own_401_does_not_end_the_node(node):
    node.link.answers[paths.PULL_MESSAGES] = Answer(401, "t", b"", b"")
    assert run(node.call(paths.PULL_MESSAGES))[0] == 503
    assert node.link.checked == 1


def test_the_superlinks_403_passes(node):
    node.link.answers[paths.PUSH_MESSAGES] = Answer(403, "t", b"run is over", b"")
    assert run(node.call(paths.PUSH_MESSAGES)) == (403, b"run is over")


def test_a_fault_of_ours_is_an_outage(node):
    node.link.answers[paths.PULL_MESSAGES] = RuntimeError("a bug")
    assert run(node.call(paths.PULL_MESSAGES))[0] == 503
    node.link.answers[paths.PULL_MESSAGES] = Answer(200, "p", b"\xff\xff", b"")
    assert run(node.call(paths.PULL_MESSAGES))[0] == 503


# --- What is acknowledged -------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_acknowledged_by_the_next_pull_and_not_before(node):
    async def story():
        node.link.answers[paths.PULL_MESSAGES] = messages(7)
        await node.call(paths.PULL_MESSAGES)
        await node.call(paths.SEND_NODE_HEARTBEAT)  # comes from another thread, whatever happened to the message
        await node.call(paths.GET_RUN)
        node.link.answers[paths.PULL_MESSAGES] = messages()
        await node.call(paths.PULL_MESSAGES)

    run(story())
    assert [received for _, _, received in node.link.calls] == [b"", b"", b"", DELIVERY]


def test_a_confirmation_acknowledges_too(node):
    async def story():
        node.link.answers[paths.PULL_MESSAGES] = messages(7)
        await node.call(paths.PULL_MESSAGES)
        await node.call(paths.CONFIRM_MESSAGE_RECEIVED)
        node.link.answers[paths.PULL_MESSAGES] = messages()
        await node.call(paths.PULL_MESSAGES)

    run(story())
    assert [received for _, _, received in node.link.calls] == [b"", DELIVERY, b""]


def test_a_supernode_that_starts_anew_gets_the_answer_again(node):
    async def story():
        node.link.answers[paths.PULL_MESSAGES] = messages(7)
        await node.call(paths.PULL_MESSAGES)
        await node.call(paths.ACTIVATE_NODE, fleet_pb2.ActivateNodeRequest(public_key=b"x").SerializeToString())
        await node.call(paths.PULL_MESSAGES)

    run(story())
    assert node.link.calls[-1] == (paths.PULL_MESSAGES, b"", b"")


def test_an_answer_for_which_the_supernode_did_not_wait_is_not_delivered(node):
    async def story():
        gone, asked = asyncio.Event(), asyncio.Event()

        async def slow():
            asked.set()
            await asyncio.sleep(30)

        node.link.answers[paths.PULL_MESSAGES] = slow
        call = asyncio.create_task(node.call(paths.PULL_MESSAGES, gone=gone))
        await asked.wait()
        gone.set()
        assert await call is None
        node.link.answers[paths.PULL_MESSAGES] = messages(7)
        await node.call(paths.PULL_MESSAGES)

    run(story())
    assert node.link.calls[-1][2] == b""


def test_a_run_that_may_not_go_on_costs_the_supernode_its_memory_and_not_the_message(node):
    node.guard.allowed = False
    node.link.answers[paths.PULL_MESSAGES] = messages(7)

    async def story():
        assert (await node.call(paths.PULL_MESSAGES))[0] == 503
        await node.call(paths.PULL_MESSAGES)

    run(story())
    assert node.restarts == 2
    assert [received for _, _, received in node.link.calls] == [b"", b""]


# --- Large transfers ----------------------------------------------------------------------------------------------------------------------


def test_a_slow_transfer_goes_on_and_the_repetition_joins_it(node, monkeypatch):
    """Flower waits 30 s and sends the object again: without this a slow line would never get one through."""
    monkeypatch.setattr(proxy_module, "ANSWER_WITHIN_S", 0.1)
    done = Answer(200, "p", b"stored", b"")

    async def story():
        async def slow():
            await asyncio.sleep(0.35)
            return done

        node.link.answers[paths.PUSH_OBJECT] = slow
        answers = []
        while not answers or answers[-1][0] == 503:
            answers.append(await node.call(paths.PUSH_OBJECT, b"big"))
        assert answers[-1] == (200, b"stored")
        assert (await node.call(paths.PUSH_OBJECT, b"big")) == (200, b"stored")  # it gave up, and asks once more later

    run(story())
    assert [body for _, body, _ in node.link.calls] == [b"big"]


def test_a_transfer_that_failed_is_tried_anew(node):
    async def story():
        node.link.answers[paths.PUSH_OBJECT] = CallFailedError(503, "gone")
        assert (await node.call(paths.PUSH_OBJECT, b"big"))[0] == 503
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        node.link.answers[paths.PUSH_OBJECT] = Answer(200, "p", b"stored", b"")
        assert (await node.call(paths.PUSH_OBJECT, b"big"))[0] == 200

    run(story())


def test_an_object_that_is_not_there_yet_is_asked_for_again(node):
    """The ServerApp pushes objects after the message: an answer "not yet" that is kept would stall the round by a minute."""

    async def story():
        waiting = fleet_pb2.PullObjectResponse(object_found=True).SerializeToString()
        there = fleet_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=b"x").SerializeToString()
        for body in (waiting, there, b"never asked for"):
            node.link.answers[paths.PULL_OBJECT] = Answer(200, "p", body, b"")
            got = await node.call(paths.PULL_OBJECT, b"one")
            assert got == (200, there if body == b"never asked for" else body)

    run(story())


# --- The status -----------------------------------------------------------------------------------------------------------------------------


def test_the_status_says_what_the_node_does(node, tmp_path):
    node.link.answers[paths.PULL_MESSAGES] = messages(7)
    run(node.call(paths.PULL_MESSAGES))
    node.status.set(state="connected")
    node.status.write()
    found = read_status(tmp_path / "status.json", now=node.now)
    assert found["round"] == {"doing": "working", "flower_run_id": "7", "message": "train", "received_at": "2030-05-01T12:00:00+00:00"}
    assert found["alive"]
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600
    assert not read_status(tmp_path / "status.json", now=node.now + timedelta(minutes=1))["alive"]
    assert read_status(tmp_path / "none.json", now=node.now) is None
