"""Regressions of decision record 0005 in the round loop: what is reported as spent, and who may stop a run."""

import threading

import numpy as np
import pytest

from fedsec.checkpoint import CheckpointStore
from fedsec.defence import Defence
from fedsec.flower import compat
from fedsec.flower.loop import CentralEvaluation, FederationLoop, LoopServices
from fedsec.flower.records import About, make_reply
from fedsec.flower.state import ServerState
from fedsec.plan.load import load_plan
from fedsec.vectors import Layout

LAYOUT = Layout((("bias", (2,)), ("weight", (2, 3))))


class AnsweringGrid:
    """Three clients that answer at once; ``on_train(node, round)`` may return False to stay silent."""

    def __init__(self, segments, on_train=lambda node, server_round: True):
        self.segments, self.on_train, self.box, self.count = segments, on_train, {}, 0

    def get_node_ids(self):
        return [1, 2, 3]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            ids.append(f"m{self.count}")
            compat.assign_message_id(message, ids[-1])
            config, node = message.content["config"], message.metadata.dst_node_id
            train = message.metadata.message_type == "train"
            if train and not self.on_train(node, config["server_round"]):
                continue
            about = About(
                client_id=f"c{node}", run_id=config["run_id"], server_round=config["server_round"], batch_size=10, randomness="x",
                segments=tuple(self.segments(node, config["server_round"])) if train else (),
            )  # fmt: skip
            arrays = {"bias": np.zeros(2, np.float32), "weight": np.zeros((2, 3), np.float32)} if train else None
            self.box[ids[-1]] = make_reply(message, about, arrays=arrays)
        return ids

    def pull_messages(self, ids):
        return [self.box.pop(name) for name in list(ids) if name in self.box]


@pytest.fixture(autouse=True)
def _identity():
    with compat.task_identity(7):
        yield


def loop_over(tmp_path, grid, stop):
    plan = load_plan(
        overrides=[
            "federation.num_clients=3",
            "federation.rounds=3",
            "privacy.noise_multiplier=1.6",
            "federation.round_timeout_s=0.3",
            "secagg.enabled=false",
            "robust.rule=mean",
            "attack.name=none",
        ]
    )
    steps_as_epsilon = lambda segments: (float(sum(s[2] for s in segments)),) * 2  # noqa: E731 - a stand-in that is easy to read
    services = LoopServices(
        evaluate=lambda _: CentralEvaluation(accuracy=0.5, loss=1.0, recall=()),
        epsilon=steps_as_epsilon,
        on_round=lambda _: None,
        stop=stop,
    )
    return FederationLoop(
        grid=grid, plan=plan, run_id="r", noise_multiplier=1.6, layout=LAYOUT, defence=Defence(plan=plan, noise_stddev=0.0), state=ServerState.initial(np.zeros(8, np.float32)),
        checkpoints=CheckpointStore(tmp_path, run_id="r", plan_digest="d"), services=services,
    )  # fmt: skip


def test_a_round_that_was_asked_and_then_stopped_counts_as_spent(tmp_path):
    stop = threading.Event()

    def on_train(node, server_round):
        if server_round == 2:
            stop.set()
        return server_round == 1 or node != 3

    loop = loop_over(tmp_path, AnsweringGrid(lambda node, server_round: [(1.6, 0.25, 3 * server_round)], on_train), stop)
    assert loop.run() is False
    assert loop.epsilon()[0] == 6.0  # two rounds of three steps; 3.0 before the mend


def test_an_earlier_history_and_later_lost_replies_add_up(tmp_path):
    grid = AnsweringGrid(
        lambda node, server_round: [(1.6, 0.25, (30 if node == 1 else 0) + 3 * server_round)],
        lambda node, server_round: server_round == 1 or node != 1,
    )
    loop = loop_over(tmp_path, grid, threading.Event())
    loop.run()
    assert loop.epsilon()[0] == 39.0  # 33.0 before the mend
