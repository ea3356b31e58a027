"""Who joins a deployment, who comes later, who is gone, and who claims to be somebody else."""

import threading
from dataclasses import dataclass, field

import pytest
from flwr.app import Error, Message

from fedsec.flower import compat
from fedsec.flower.exchange import StopRequested
from fedsec.flower.muster import Muster
from fedsec.flower.records import About, RoundRequest, make_reply
from fedsec.plan.sections import FederationSection


@dataclass
class Nodes:
    """A grid whose nodes answer DESCRIBE at once."""

    says: dict[int, object]
    online: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    waiting: dict[str, Message] = field(default_factory=dict)

    def get_node_ids(self):
        return sorted(self.online or self.says)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node, message_id = message.metadata.dst_node_id, f"m{len(self.asked)}"
            self.asked.append(node)
            compat.assign_message_id(message, message_id)
            said = self.says[node]
            if isinstance(said, int):
                reply = Message(Error(code=said, reason="no"), reply_to=message)
            else:
                reply = make_reply(message, About(client_id=said, run_id="r", server_round=0, batch_size=32, randomness="operating system"))
            self.waiting[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, ids):
        return [self.waiting.pop(one) for one in list(ids) if one in self.waiting]


@dataclass
class Certified:
    nodes: dict[int, str]
    revoked: dict[str, str] = field(default_factory=dict)

    def admitted(self):
        return {node: name for node, name in self.nodes.items() if name not in self.revoked}

    def gone(self):
        return self.revoked


@pytest.fixture(autouse=True)
def _in_a_run():
    with compat.task_identity(7):
        yield


def muster(grid, attendance, *, num_clients=3, notes=None, **more):
    federation = FederationSection(num_clients=num_clients, join_timeout_s=0.2, round_timeout_s=5.0)
    request = RoundRequest(run_id="r", server_round=0, plan_json="{}", noise_multiplier=1.0)
    told = notes if notes is not None else []
    return Muster(
        grid=grid, federation=federation, request=request, secure=None, attendance=attendance, weight_limit=32,
        stop=threading.Event(), note=told.append, **more,
    )  # fmt: skip


def test_nodes_are_the_clients_that_their_certificates_say():
    grid = Nodes({1: "a", 2: "b", 3: "c"})
    made = muster(grid, Certified({1: "a", 2: "b", 3: "c"}))
    assert made.join() == 3
    assert made.present() == {"a": 1, "b": 2, "c": 3}


def test_a_node_that_claims_to_be_another_client_takes_no_part_and_the_one_of_its_certificate_is_named():
    notes = []
    made = muster(Nodes({1: "a", 2: "a", 3: "c"}), Certified({1: "a", 2: "b", 3: "c"}), notes=notes)
    made.join()
    assert made.clients == {"a": 1, "c": 3}
    assert len(notes) == 1
    assert notes[0].startswith("b in query.describe")
    assert "another client: 'a'" in notes[0]


def test_a_node_that_was_not_asked_is_not_believed():
    """Node 9 answers in the place of node 2 and says that it is client a, who would be dropped for the double claim."""

    class Intruder(Nodes):
        def pull_messages(self, ids):
            replies = super().pull_messages(ids)
            for reply in replies:
                if reply.metadata.src_node_id == 2:
                    reply.metadata.__dict__["_src_node_id"] = 9
            return replies

    notes = []
    made = muster(Intruder({1: "a", 2: "a"}), Certified({1: "a", 2: "b"}), notes=notes)
    made.join()
    assert made.clients == {"a": 1}
    assert notes == ["node 9 answered without being asked"]


def test_a_node_without_a_certificate_is_never_asked():
    grid = Nodes({1: "a", 2: "b", 9: "c"})
    made = muster(grid, Certified({1: "a", 2: "b"}))
    made.join()
    assert sorted(grid.asked) == [1, 2]


def test_who_comes_later_is_taken_in_before_the_next_round():
    grid = Nodes({1: "a", 2: "b", 3: "c"}, online={1, 2})
    made = muster(grid, Certified({1: "a", 2: "b", 3: "c"}))
    made.join()
    assert set(made.present()) == {"a", "b"}
    grid.online.add(3)
    made.refresh(2)
    assert set(made.present()) == {"a", "b", "c"}
    made.refresh(2)
    assert grid.asked == [1, 2, 3]  # who is known is not asked again


def test_who_comes_back_under_another_address_is_asked_again_and_keeps_its_name():
    grid, seen = Nodes({1: "a", 2: "b", 5: "b"}, online={1, 2}), Certified({1: "a", 2: "b"})
    made = muster(grid, seen)
    made.join()
    grid.online, seen.nodes = {1, 5}, {1: "a", 5: "b"}
    made.refresh(2)
    assert made.present() == {"a": 1, "b": 5}


def test_who_is_revoked_or_offline_is_not_present():
    grid, seen = Nodes({1: "a", 2: "b", 3: "c"}), Certified({1: "a", 2: "b", 3: "c"})
    made = muster(grid, seen)
    made.join()
    seen.revoked["b"] = "its certificate 1F was revoked"
    grid.online = {1, 2}
    assert made.present() == {"a": 1}
    assert made.gone() == {"b": "its certificate 1F was revoked"}


def test_code_that_a_site_does_not_admit_is_told_with_the_mend():
    notes = []
    made = muster(Nodes({1: 7, 2: "b", 3: "c"}), Certified({1: "a", 2: "b", 3: "c"}), notes=notes)
    made.join()
    assert notes[0].startswith("a in query.describe: its site does not admit this code")
    made.refresh(1)
    assert len(notes) == 1  # said once, though asked again


def test_a_stop_ends_the_wait_for_clients():
    made = muster(Nodes({1: "a"}), Certified({1: "a"}))
    made.stop.set()
    with pytest.raises(StopRequested):
        made.join()


def test_in_a_simulation_the_nodes_that_joined_are_the_clients():
    made = muster(Nodes({1: "a", 2: "b", 3: "b"}), None)
    made.join()
    assert made.present() == {"a": 1}  # an id that two claim is nobody's
    made.refresh(3)
    assert made.gone() == {}


def test_the_cas_next_list_is_offered_to_everybody_who_is_here_and_who_does_not_take_it_is_out(monkeypatch):
    notes, offered = [], []
    grid, seen = Nodes({1: "a", 2: "b", 3: "c"}), Certified({1: "a", 2: "b", 3: "c"})
    made = muster(grid, seen, notes=notes)
    made.join()
    seen.revoked["b"] = "its certificate 1F was revoked"

    def hand_out(self, joined):
        offered.append(dict(joined))
        return {"c": "saw another log"}

    monkeypatch.setattr(Muster, "_hand_out", hand_out)
    made.offer_again()
    assert offered == [{"a": 1, "c": 3}]
    assert made.present() == {"a": 1}
    assert notes == ["c: saw another log"]
