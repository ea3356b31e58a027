"""``exchange``: whose a reply is, and what a reply that cannot be read does to the others."""

import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from google.protobuf.message import DecodeError

from fedsec.flower import compat
from fedsec.flower.exchange import exchange


@pytest.fixture(autouse=True)
def server():
    """Messages read run and node from it."""
    with compat.task_identity(7):
        yield


def ask(node):
    return Message(RecordDict({"config": ConfigRecord({"node": node})}), dst_node_id=node, message_type="query.describe")


class Way:
    """A grid whose nodes answer as the test says: message id → replies; an exception instead of a list is raised."""

    def __init__(self, answer, ids=lambda count: [f"m{place}" for place in range(count)]):
        self.answer, self.ids, self.asked = answer, ids, []

    def push_messages(self, messages):
        self.sent = dict(zip(self.ids(len(messages)), messages, strict=False))
        for name, message in self.sent.items():
            if name is not None:
                compat.assign_message_id(message, name)
        return list(self.sent)

    def pull_messages(self, message_ids):
        self.asked.append(set(message_ids))
        replies = []
        for name in sorted(message_ids):
            given = self.answer(name, self.sent[name])
            if isinstance(given, Exception):
                raise given
            replies += given
        return replies


def reply_of(message, *, source=None, text=""):
    reply = Message(RecordDict({"config": ConfigRecord({"text": text})}), reply_to=message)
    if source is not None:
        reply.metadata.__dict__["_src_node_id"] = source
    return reply


def gather(way, nodes, timeout_s=0.2):
    return exchange(way, [ask(node) for node in nodes], timeout_s=timeout_s, stop=threading.Event())


def test_everybody_s_own_reply_counts():
    way = Way(lambda _name, message: [reply_of(message)])
    assert [reply.metadata.src_node_id for reply in gather(way, [11, 12, 13])] == [11, 12, 13]


def test_a_node_that_answers_in_another_s_name_is_not_heard_and_the_other_is():
    """Node 12 answers what it was asked, and writes into the reply that it is from node 11."""
    way = Way(lambda name, message: [reply_of(message, source=11 if name == "m1" else None)])
    assert [reply.metadata.src_node_id for reply in gather(way, [11, 12])] == [11]


def test_a_second_reply_to_one_message_is_dropped():
    way = Way(lambda _name, message: [reply_of(message, text="first"), reply_of(message, text="second")])
    assert [reply.content["config"]["text"] for reply in gather(way, [11])] == ["first"]


@pytest.mark.parametrize(
    "fault",
    [
        AttributeError("'ConfigRecord' object has no attribute 'metadata'"),
        ValueError("x"),
        KeyError("x"),
        DecodeError("x"),
        RecursionError(),
    ],
)
def test_a_reply_that_cannot_be_read_is_silence_and_takes_no_other_with_it(fault):
    way = Way(lambda name, message: fault if name == "m1" else [reply_of(message)])
    assert [reply.metadata.src_node_id for reply in gather(way, [11, 12, 13], timeout_s=5)] == [11, 13]
    assert len(way.asked) == 4  # all at once, then each by itself; and no waiting for what cannot be read


def test_what_is_wrong_on_our_side_is_raised():
    way = Way(lambda _name, _message: RuntimeError("the engine is gone"))
    with pytest.raises(RuntimeError):
        gather(way, [11])


@pytest.mark.parametrize("ids", [lambda _count: [], lambda count: ["m0", *[None] * (count - 1)]])
def test_messages_that_could_not_be_pushed_are_not_waited_for(ids):
    way = Way(lambda _name, message: [reply_of(message)], ids)
    assert len(gather(way, [11, 12], timeout_s=5)) == len([name for name in ids(2) if name])
