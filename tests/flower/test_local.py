import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsec.errors import ConfigError, FedsecError, LocalProtocolError
from fedsec.flower import leftovers
from fedsec.flower.local import run_local, usable_cores
from fedsec.flower.pool import default_kind
from fedsec.sim.faults import Fault, FaultPlan

WAYS = [{"kind": "fork", "workers": 2}, {"kind": "fork", "workers": 1}, {"kind": "thread", "workers": 2}, {"kind": "thread", "workers": 1}]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way['kind']}-{way['workers']}")
each_kind = pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=["fork", "thread"])
FORK = {"kind": "fork", "workers": 2}


def reply(message: Message, **values) -> Message:
    return Message(RecordDict({"c": ConfigRecord(values)}), reply_to=message)


def ask(grid: Grid, nodes=None, *, message_type: str = "train", group_id: str = "1", ttl: float | None = None) -> list[Message]:
    nodes = list(grid.get_node_ids()) if nodes is None else nodes
    return [Message(RecordDict(), dst_node_id=node, message_type=message_type, group_id=group_id, ttl=ttl) for node in nodes]


def run(main: Callable[[Grid, Context], None], train: Callable[[Message, Context], Message], *, nodes: int = 4, run_config=None, **options):
    """One local run of two functions."""
    server, client = ServerApp(), ClientApp()
    server.main()(main)
    client.train()(train)
    run_local(server_app=server, client_app=client, num_nodes=nodes, run_config=run_config or {}, **options)


def values(replies: list[Message]) -> dict[int, dict]:
    """By partition, as the client reports it; errors by what they say."""
    return {m.content["c"]["p"]: dict(m.content["c"]) for m in replies if m.has_content()}


def partition(context: Context) -> int:
    return context.node_config["partition-id"]


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = leftovers.descendants(os.getpid())
    yield
    assert leftovers.descendants(os.getpid()) <= before


# --- The same as Flower ---------------------------------------------------------------------------------------------------------


@each_way
def test_sums_state_and_configs_are_the_same_however_the_work_is_spread(way: dict) -> None:
    seen: list[object] = []

    def train(message: Message, context: Context) -> Message:
        context.state["n"] = ConfigRecord({"n": context.state["n"]["n"] + 1 if "n" in context.state else 1})
        array = message.content["m"]["w"].numpy() + partition(context) * context.run_config["scale"]
        out = {
            "m": ArrayRecord({"w": Array(array)}),
            "c": ConfigRecord({"n": context.state["n"]["n"], "of": context.node_config["num-partitions"]}),
        }
        return Message(RecordDict(out), reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        total = np.zeros(1000)
        for server_round in (1, 2, 3):
            record = ArrayRecord({"w": Array(total)})
            out = [
                Message(RecordDict({"m": record}), dst_node_id=n, message_type="train", group_id=str(server_round))
                for n in grid.get_node_ids()
            ]
            replies = grid.send_and_receive(out)
            total = sum(m.content["m"]["w"].numpy() for m in replies)
            seen.append(sorted((m.content["c"]["n"], m.content["c"]["of"], m.metadata.group_id) for m in replies))
        seen.extend([total.tolist()[0], context.run_config, grid.run.run_id > 0])

    run(main, train, nodes=5, run_config={"scale": 2}, **way)
    assert seen == [*([(n, 5, str(n))] * 5 for n in (1, 2, 3)), 20.0 * 31, {"scale": 2}, True]


@each_way
def test_an_exception_of_a_client_is_an_error_reply_and_undoes_what_it_did_to_its_state(
    way: dict, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    seen = []

    def train(message: Message, context: Context) -> Message:
        before = context.state["n"]["n"] if "n" in context.state else 0
        context.state["n"] = ConfigRecord({"n": before + 1})
        if message.metadata.group_id == "2":
            context.state["n"]["n"] = 99
            if partition(context) == 1:
                raise ZeroDivisionError("division by zero")
            if partition(context) == 2:
                sys.exit(3)
        return reply(message, p=partition(context), n=context.state["n"]["n"])

    def main(grid: Grid, context: Context) -> None:
        seen.extend(grid.send_and_receive(ask(grid, group_id=group_id)) for group_id in ("1", "2", "3"))

    run(main, train, **way)
    errors = sorted((m.error.code, m.error.reason) for m in seen[1] if m.has_error())
    assert errors == [(2, "<class 'SystemExit'>:<'3'>"), (2, "<class 'ZeroDivisionError'>:<'division by zero'>")]
    assert {m.metadata.reply_to_message_id for m in seen[1]} == {f"message-{n}" for n in (5, 6, 7, 8)}
    assert {p: v["n"] for p, v in values(seen[2]).items()} == {0: 100, 1: 2, 2: 2, 3: 100}


def _no_message(message: Message, context: Context):
    return {"not": "a message"}


def _own_message(message: Message, context: Context):
    return message


def _unsendable(message: Message, context: Context):
    context.state["n"] = ConfigRecord({"n": 1})
    return reply(message, k=2**70)


@each_way
@pytest.mark.parametrize(
    ("train", "reason"),
    [(_no_message, "returned dict, not a Message"), (_own_message, "not a reply to the one it got"), (_unsendable, "Error")],
)
def test_a_reply_that_could_not_be_sent_is_an_error_reply(way: dict, train: Callable, reason: str) -> None:
    seen: list[Message] = []
    run(lambda grid, context: seen.extend(grid.send_and_receive(ask(grid))), train, **way)
    assert [m.error.code for m in seen] == [2] * 4
    assert all(reason in m.error.reason for m in seen)


@each_way
@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(7)], ids=lambda e: type(e).__name__)
def test_what_the_server_raises_is_raised_here_unchanged_and_nothing_is_left(way: dict, error: BaseException) -> None:
    def main(grid: Grid, context: Context) -> None:
        grid.push_messages(ask(grid))
        raise error

    with pytest.raises(type(error)) as caught:
        run(main, lambda message, context: time.sleep(0.3) or reply(message), **way)
    assert caught.value is error


def test_a_message_is_what_it_was_when_it_was_pushed() -> None:
    seen: list[Message] = []

    def main(grid: Grid, context: Context) -> None:
        messages = [
            Message(RecordDict({"c": ConfigRecord({"v": 1})}), dst_node_id=n, message_type="train", group_id="1")
            for n in grid.get_node_ids()
        ]
        ids = list(grid.push_messages(messages))
        for message in messages:
            message.content["c"]["v"] = 2
        grid.wait_for_replies(ids[-1:], 10)
        seen.extend(grid.pull_messages(ids))

    run(
        main,
        lambda message, context: reply(message, v=message.content["c"]["v"], w=time.sleep(0.05) or 0),
        nodes=4,
        kind="thread",
        workers=1,
    )
    assert [m.content["c"]["v"] for m in seen] == [1] * 4


# --- Waiting, deadlines, ids ----------------------------------------------------------------------------------------------------


@each_kind
def test_push_and_pull_never_wait_and_each_reply_is_given_out_once(way: dict) -> None:
    seen: dict[str, object] = {}

    def main(grid: Grid, context: Context) -> None:
        started = time.monotonic()
        ids = list(grid.push_messages(ask(grid)))
        seen["first"] = list(grid.pull_messages(ids))
        seen["took"] = time.monotonic() - started
        replies: list[Message] = []
        while len(replies) < 2:
            grid.wait_for_replies(ids, 5.0)
            replies += list(grid.pull_messages(set(ids) - {m.metadata.reply_to_message_id for m in replies}))
        seen["ids"] = {m.metadata.reply_to_message_id for m in replies} == set(ids)
        seen["again"] = [(m.error.code, m.metadata.reply_to_message_id) for m in grid.pull_messages([ids[0], "never-sent"])]

    run(main, lambda message, context: time.sleep(1) or reply(message), nodes=2, **way)
    assert seen["first"] == []
    assert seen["took"] < 1
    assert seen["ids"]
    assert seen["again"] == [(3, "message-1"), (3, "never-sent")]


@each_kind
def test_send_and_receive_returns_at_its_timeout_what_came_in_time(way: dict) -> None:
    seen: dict[str, object] = {}

    def train(message: Message, context: Context) -> Message:
        if partition(context) == 3:
            time.sleep(4)
        return reply(message, p=partition(context))

    def main(grid: Grid, context: Context) -> None:
        started = time.monotonic()
        seen["got"] = set(values(grid.send_and_receive(ask(grid), timeout=1.5)))
        seen["took"] = time.monotonic() - started

    run(main, train, **way)
    assert seen["got"] == {0, 1, 2}
    assert 1.5 <= seen["took"] < 4


@each_kind
def test_an_expired_message_is_not_delivered_and_its_reply_is_unavailable(way: dict) -> None:
    seen: dict[str, object] = {}

    def train(message: Message, context: Context) -> Message:
        calls = context.state["n"]["n"] + 1 if "n" in context.state else 1
        context.state["n"] = ConfigRecord({"n": calls})
        time.sleep(1)
        return reply(message, p=0, n=calls)

    def main(grid: Grid, context: Context) -> None:
        node = list(grid.get_node_ids())[:1]
        ids = list(grid.push_messages([*ask(grid, node), *ask(grid, node, ttl=0.1)]))
        seen["late"] = [(m.error.code, m.metadata.reply_to_message_id) for m in grid.send_and_receive(ask(grid, node, ttl=0.05))]
        seen["first"] = []
        while not seen["first"]:
            seen["first"] = [m for m in grid.pull_messages(ids[:1]) if m.has_content()]
        (last,) = grid.send_and_receive(ask(grid, node))
        seen["calls"] = last.content["c"]["n"]

    run(main, train, nodes=1, kind=way["kind"], workers=1)
    assert seen["late"] == [(3, "message-3")]
    assert seen["calls"] == 2


def test_addressing_a_node_that_does_not_exist_is_a_mistake_that_raises() -> None:
    for node in (0, 1, 999, 1004, -1):
        with pytest.raises(ValueError, match=f"no node {node}"):
            run(lambda grid, context, node=node: grid.push_messages(ask(grid, [node])), _own_message, workers=1)


def test_ids_are_the_same_in_every_run_with_the_same_seed() -> None:
    def ids_of(seed: int | None) -> tuple:
        seen: list[object] = []
        run(
            lambda grid, context: seen.extend([list(grid.get_node_ids()), context.run_id, *grid.push_messages(ask(grid))]),
            _own_message,
            seed=seed,
        )
        return tuple(map(str, seen))

    assert ids_of(1) == ids_of(1)
    assert ids_of(1) != ids_of(2)
    assert ids_of(None) != ids_of(None)


# --- Lost workers ---------------------------------------------------------------------------------------------------------------

DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "_exit": lambda: os._exit(3),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_answers_with_errors_and_the_others_go_on(death: str) -> None:
    """Nodes 0, 2, 4 belong to the worker that dies while it serves node 2."""
    seen: list[list[Message]] = []

    def train(message: Message, context: Context) -> Message:
        if partition(context) == 2:
            DEATHS[death]()
        return reply(message, p=partition(context))

    def main(grid: Grid, context: Context) -> None:
        seen.extend(grid.send_and_receive(ask(grid), timeout=20) for _ in range(2))

    run(main, train, nodes=6, **FORK)
    assert [set(values(replies)) for replies in seen] == [{0, 1, 3, 5}, {1, 3, 5}]
    assert [sorted(m.error.code for m in replies if m.has_error()) for replies in seen] == [[5, 8], [5, 5, 5]]
    how = {"SIGKILL": "killed by signal 9", "_exit": "exited with status 3", "SIGTERM": "killed by signal 15"}[death]
    assert all(how in m.error.reason for replies in seen for m in replies if m.has_error())


def test_a_dead_worker_is_noticed_even_if_its_own_child_holds_the_connection_open() -> None:
    seen: list[Message] = []

    def train(message: Message, context: Context) -> Message:
        if os.fork() == 0:
            time.sleep(15)
            os._exit(0)
        os._exit(1)

    started = time.monotonic()
    run(lambda grid, context: seen.extend(grid.send_and_receive(ask(grid))), train, nodes=1, kind="fork", workers=1)
    assert [m.error.code for m in seen] == [8]
    assert time.monotonic() - started < 12


def test_a_client_that_never_ends_holds_nobody_up() -> None:
    started = time.monotonic()
    run(lambda grid, context: grid.send_and_receive(ask(grid), timeout=0.2), lambda message, context: time.sleep(600), **FORK)
    assert time.monotonic() - started < 10


SCRIPT = """
import os, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fedsec.flower import leftovers
from fedsec.flower.local import run_local
server, client = ServerApp(), ClientApp()
@client.train()
def train(message, context):
    if sys.argv[1] == "print":
        print("client prints")
        os.write(1, b"client writes")
    else:
        os.write(2, f"PID {os.getpid()}\\n".encode())
        while True:
            time.sleep(0.1)
    return Message(RecordDict(), reply_to=message)
@server.main()
def main(grid, context):
    messages = [Message(RecordDict(), dst_node_id=n, message_type="train", group_id="1") for n in grid.get_node_ids()]
    print("server got", len(grid.send_and_receive(messages)))
sys.stdout.write("before ")
run_local(server_app=server, client_app=client, num_nodes=4, run_config={}, workers=2, kind="fork")
"""


def start_script(tmp_path: Path, argument: str) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(script), argument], stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def gone(pid: int, timeout_s: float = 5.0) -> bool:
    """Whether the process ends (a zombie that some init has yet to reap has ended)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def worker_pids(process: subprocess.Popen) -> list[int]:
    return [int(process.stderr.readline().removeprefix("PID ")) for _ in range(2)]


def test_what_workers_print_goes_to_stderr_and_nothing_is_printed_twice(tmp_path: Path) -> None:
    process = start_script(tmp_path, "print")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "before server got 4\n")
    assert err.count("client prints") == err.count("client writes") == 4


def test_ctrl_c_reaches_the_parent_alone_and_ends_all(tmp_path: Path) -> None:
    """As a terminal does it: the whole process group is signalled."""
    process = start_script(tmp_path, "hang")
    pids = worker_pids(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_busy_workers_do_not_outlive_a_killed_parent(tmp_path: Path, number: int) -> None:
    process = start_script(tmp_path, "hang")
    pids = worker_pids(process)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number
    assert all(gone(pid) for pid in pids)


# --- What workers are like ------------------------------------------------------------------------------------------------------


def test_workers_share_what_the_parent_loaded_and_do_not_change_it() -> None:
    cache = {"x": 1}
    seen: list[Message] = []

    def train(message: Message, context: Context) -> Message:
        cache["x"] += 1
        return reply(message, p=partition(context), x=cache["x"], pid=os.getpid())

    run(lambda grid, context: seen.extend(grid.send_and_receive(ask(grid))), train, **FORK)
    got = values(seen)
    assert sorted(v["x"] for v in got.values()) == [2, 2, 3, 3]
    assert got[0]["pid"] == got[2]["pid"] != got[1]["pid"] == got[3]["pid"]
    assert os.getpid() not in {v["pid"] for v in got.values()}
    assert cache == {"x": 1}


@pytest.mark.parametrize("seed", [None, 5])
def test_global_random_generators_differ_between_workers_and_repeat_only_with_a_seed(seed: int | None) -> None:
    torch = pytest.importorskip("torch")

    def draws() -> dict[int, tuple]:
        seen: list[Message] = []

        def train(message: Message, context: Context) -> Message:
            return reply(message, p=partition(context), a=random.random(), b=float(np.random.rand()), c=float(torch.rand(1)))  # noqa: NPY002 - the global generator is meant

        run(lambda grid, context: seen.extend(grid.send_and_receive(ask(grid))), train, nodes=2, seed=seed, **FORK)
        return {p: (v["a"], v["b"], v["c"]) for p, v in values(seen).items()}

    first, second = draws(), draws()
    assert all(a != b for a, b in zip(first[0], first[1], strict=True))
    assert (first == second) is (seed is not None)


@each_way
def test_clients_compute_with_one_thread_and_the_caller_keeps_its_own(way: dict) -> None:
    """Also after the caller used its threads and autograd: both are known to hang or fail in a forked process."""
    torch = pytest.importorskip("torch")

    def gradient() -> float:
        weights = torch.ones(300, 300, requires_grad=True)
        (weights @ weights).sum().backward()
        return float(weights.grad.sum())

    before, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(2)
    try:
        expected = gradient()
        seen: list[Message] = []

        def train(message: Message, context: Context) -> Message:
            return reply(message, p=partition(context), threads=torch.get_num_threads(), gradient=gradient())

        run(lambda grid, context: seen.extend(grid.send_and_receive(ask(grid), timeout=60)), train, **way)
        assert [(v["threads"], v["gradient"]) for v in values(seen).values()] == [(1, expected)] * 4
        assert torch.get_num_threads() == 2
        changed = {key for key in {*variables, *os.environ} if variables.get(key) != os.environ.get(key)}
        assert changed <= {"FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}
    finally:
        torch.set_num_threads(before)


def test_threads_are_chosen_for_one_worker_and_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        cuda = type("cuda", (), {"is_initialized": staticmethod(lambda: True)})

    assert (default_kind(1), default_kind(2)) == ("thread", "fork")
    monkeypatch.setitem(sys.modules, "torch", Cuda)
    assert default_kind(2) == "thread"


def test_the_stack_of_a_clients_bug_is_logged_once_and_that_of_a_refusal_not(caplog: pytest.LogCaptureFixture) -> None:
    def train(message: Message, context: Context) -> Message:
        raise FedsecError("refused") if partition(context) else KeyError("bug")

    run(lambda grid, context: [grid.send_and_receive(ask(grid)) for _ in range(3)], train, workers=1)
    logged = [record for record in caplog.records if record.name == "fedsec.flower.local" and record.levelno >= logging.WARNING]
    assert [record.exc_info[0] for record in logged] == [KeyError]


# --- Faults ---------------------------------------------------------------------------------------------------------------------


@each_kind
def test_faults_do_what_they_say(way: dict) -> None:
    """0: never asked; 1: works, reply lost; 2: late; 3: error; 4: as always. The second round has no faults, and shows who worked."""
    kinds = ("drop", "drop-after", "delay", "error")
    plan = FaultPlan(
        faults=tuple(Fault(kind=k, partition=p, server_round=1, delay_s=0.4 if k == "delay" else 0.0) for p, k in enumerate(kinds))
    )
    seen: dict[str, object] = {}

    def train(message: Message, context: Context) -> Message:
        calls = context.state["n"]["n"] + 1 if "n" in context.state else 1
        context.state["n"] = ConfigRecord({"n": calls})
        return reply(message, p=partition(context), n=calls)

    def main(grid: Grid, context: Context) -> None:
        ids = list(grid.push_messages(ask(grid)))
        started, replies = time.monotonic(), []
        arrived: dict[int, float] = {}
        late = False
        while not late:
            late = len(arrived) == 3 or time.monotonic() - started > 20
            grid.wait_for_replies(ids, 0.4 if late else 0.05)
            for message in grid.pull_messages(set(ids) - {m.metadata.reply_to_message_id for m in replies}):
                replies.append(message)
                arrived[ids.index(message.metadata.reply_to_message_id)] = time.monotonic() - started
        seen["arrived"], seen["errors"] = arrived, [(m.error.code, m.error.reason) for m in replies if m.has_error()]
        seen["calls"] = {p: v["n"] for p, v in values(grid.send_and_receive(ask(grid, group_id="2"))).items()}

    run(main, train, nodes=5, faults=plan, **way)
    assert set(seen["arrived"]) == {2, 3, 4}
    assert seen["arrived"][2] >= 0.4
    assert seen["errors"] == [(2, "injected fault")]
    assert seen["calls"] == {0: 1, 1: 2, 2: 2, 3: 1, 4: 2}


def test_send_and_receive_waits_for_late_replies_and_for_lost_ones_until_they_expire() -> None:
    plan = FaultPlan(
        faults=(Fault(kind="drop", partition=0), Fault(kind="drop-after", partition=1), Fault(kind="delay", partition=2, delay_s=0.2))
    )
    seen: list[Message] = []
    started = time.monotonic()
    run(
        lambda grid, context: seen.extend(grid.send_and_receive(ask(grid, ttl=1.0))),
        lambda message, context: reply(message, p=partition(context)),
        faults=plan,
        **FORK,
    )
    assert set(values(seen)) == {2, 3}
    assert [m.error.code for m in seen if m.has_error()] == [3, 3]
    assert 1.0 <= time.monotonic() - started < 10


def test_random_dropouts_are_the_same_whatever_the_workers() -> None:
    def survivors(**way) -> set[int]:
        seen: list[Message] = []
        run(
            lambda grid, context: seen.extend(grid.send_and_receive(ask(grid), timeout=1.5)),
            lambda message, context: reply(message, p=partition(context)),
            nodes=20,
            faults=FaultPlan.random(0.5, seed=3),
            **way,
        )
        return set(values(seen))

    first, second = survivors(**FORK), survivors(kind="thread", workers=1)
    assert first == second
    assert 3 < len(first) < 17


# --- Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"num_nodes": 0}, "cannot simulate 0 clients"),
        ({"num_nodes": 10**7}, "cannot simulate 10000000"),
        ({"num_nodes": True}, "cannot simulate True"),
        ({"workers": 0}, "0 workers"),
        ({"workers": -1}, "-1 workers"),
        ({"run_config": {"a": [1]}}, "run config 'a' is list"),
        ({"run_config": {3: 1}}, "run config 3"),
    ],
)
def test_impossible_arguments_are_refused(bad: dict, text: str) -> None:
    arguments = {"server_app": ServerApp(), "client_app": ClientApp(), "num_nodes": 2, "run_config": {}} | bad
    with pytest.raises(ConfigError, match=text):
        run_local(**arguments)


def test_a_second_run_inside_a_run_is_refused_and_a_later_one_is_not() -> None:
    def nested(grid: Grid, context: Context) -> None:
        run(lambda grid, context: None, _own_message)

    for _ in range(2):
        with pytest.raises(LocalProtocolError, match="already going on"):
            run(nested, _own_message)
    run(lambda grid, context: None, _own_message)


def test_a_process_that_cannot_be_started_is_a_clear_error_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, made = os.fork, []

    def only_one() -> int:
        if made:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", only_one)
    with pytest.raises(ConfigError, match="cannot start 3 workers: Resource temporarily unavailable"):
        run(lambda grid, context: None, _own_message, kind="fork", workers=3)


def test_there_are_as_many_cores_as_this_process_may_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
