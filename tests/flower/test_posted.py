"""``PostedGrid`` and the gateway's ``Postbox``: hints that spare waiting, and that nothing depends on."""

import os
import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsec.edge import postbox as postbox_module
from fedsec.edge.postbox import Postbox
from fedsec.errors import StorageError
from fedsec.flower import compat, posted
from fedsec.flower.exchange import exchange
from fedsec.flower.posted import Answered, PostedGrid

IDS = [f"{number:064x}" for number in range(6)]


class SuperLink:
    """A grid: who asks for a message whose reply is only announced is told off, as Flower would put him to sleep."""

    run = None

    def __init__(self):
        self.whole, self.asked, self.pushed = {}, [], []

    def push_messages(self, messages):
        for name, message in zip(IDS, messages, strict=False):
            compat.assign_message_id(message, name)
            self.pushed.append(message)
        return IDS[: len(messages)]

    def pull_messages(self, message_ids):
        self.asked.append(set(message_ids))
        return [self.whole.pop(name) for name in sorted(message_ids) if name in self.whole]


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def grid(tmp_path, clock):
    inner = SuperLink()
    made = PostedGrid(inner, tmp_path, clock=lambda: clock[0])
    made.inner = inner
    return made


def test_only_replies_that_are_whole_are_asked_for(tmp_path, grid):
    """Flower sleeps a second for a reply that is announced and not there: three of them cost a round of 1.2 s another three."""
    box = Postbox(tmp_path)
    assert grid.pull_messages(IDS[:3]) == []
    assert grid.inner.asked == []
    box.answered(IDS[1])
    grid.pull_messages(IDS[:3])
    assert grid.inner.asked == [{IDS[1]}]


def test_all_are_asked_for_now_and_then_since_the_gateway_does_not_know_what_flower_answers_itself(tmp_path, grid, clock):
    """A node that is gone is answered for by the SuperLink; and a gateway that was killed may have said nothing of a reply."""
    Postbox(tmp_path)
    grid.pull_messages(IDS[:3])
    clock[0] += posted.LOOK_AT_ALL_S
    grid.pull_messages(IDS[:3])
    grid.pull_messages(IDS[:3])
    assert grid.inner.asked == [set(IDS[:3])]


def test_without_a_gateway_it_is_the_inner_grid(grid):
    grid.pull_messages(IDS[:2])
    grid.pull_messages(IDS[:2])
    assert grid.inner.asked == [set(IDS[:2])] * 2
    assert grid.push_messages([]) == []


def test_the_superlink_is_not_asked_fifty_times_a_second_where_there_are_no_hints(tmp_path, grid):
    """Another Unix user's folder, or no gateway: then every pull is a call."""
    assert grid.longest_poll_s > 1
    Postbox(tmp_path)
    grid.pull_messages(IDS)
    assert grid.longest_poll_s == posted.POLL_S
    (tmp_path / "answered").unlink()
    grid.pull_messages(IDS)
    assert grid.longest_poll_s > 1


def test_a_push_wakes_the_gateway_and_nothing_else_does(tmp_path, grid):
    box = Postbox(tmp_path)
    grid.pull_messages(IDS)
    assert not box.was_asked()
    os.utime(tmp_path / "asked", ns=(1, 1))
    assert box.was_asked()
    grid.push_messages([])
    assert box.was_asked()
    assert not box.was_asked()


def test_the_gateway_is_told_after_the_objects_are_there(tmp_path, grid):
    box = Postbox(tmp_path)
    told = []
    grid.inner.push_messages = lambda messages: told.append(box.was_asked()) or []
    grid.push_messages([])
    assert told == [False]
    assert box.was_asked()


def test_a_list_that_begins_anew_is_read_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(postbox_module, "MAX_BYTES", 65 * 2)
    box, known = Postbox(tmp_path), Answered(tmp_path / "answered")
    for name in IDS:
        box.answered(name)
        assert known.read()
    assert known.among(IDS) == set(IDS)
    assert (tmp_path / "answered").stat().st_size <= 65 * 2
    Postbox(tmp_path)  # the gateway started anew
    assert known.read()
    assert known.among(IDS) == set(IDS)


def test_lines_that_are_no_ids_or_not_whole_count_for_nothing(tmp_path):
    path, known = tmp_path / "answered", Answered(tmp_path / "answered")
    path.write_bytes(b"\xff\xfe\n" + b"x" * 64 + b"\n" + IDS[0].encode() + b"\n" + IDS[1].encode()[:30])
    assert known.read()
    assert known.among(IDS) == {IDS[0]}
    with path.open("ab") as handle:
        handle.write(IDS[1].encode()[30:] + b"\n")
    assert known.read()
    assert known.among(IDS) == {IDS[0], IDS[1]}


def test_what_is_remembered_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(posted, "MAX_KNOWN", 3)
    box, known = Postbox(tmp_path), Answered(tmp_path / "answered")
    for name in IDS:
        box.answered(name)
    known.read()
    assert known.among(IDS) == set(IDS[-3:])


def test_a_hint_that_cannot_be_written_costs_no_reply(tmp_path):
    box = Postbox(tmp_path)
    (tmp_path / "answered").unlink()
    (tmp_path / "answered").mkdir()
    box.answered(IDS[0])
    (tmp_path / "asked").unlink()
    assert box.was_asked()  # it changed
    assert not box.was_asked()
    with pytest.raises(StorageError):
        Postbox(tmp_path / "nowhere")


def test_an_exchange_over_it_takes_every_reply_when_it_is_whole(tmp_path):
    inner, box = SuperLink(), Postbox(tmp_path)
    grid = PostedGrid(inner, tmp_path)
    with compat.task_identity(7):
        messages = [Message(RecordDict({"a": ConfigRecord({"n": n})}), dst_node_id=n, message_type="query.x") for n in range(1, 4)]

        def answer():
            for name, message in zip(IDS, messages, strict=False):
                inner.whole[name] = Message(RecordDict(), reply_to=message)
                box.answered(name)

        timer = threading.Timer(0.1, answer)
        timer.start()
        replies = exchange(grid, messages, timeout_s=10, stop=threading.Event())
        timer.join()
    assert sorted(reply.metadata.src_node_id for reply in replies) == [1, 2, 3]
    assert set.union(*inner.asked) == set(IDS[:3])
    assert len(inner.asked) <= 3  # none was asked for in vain
