"""One exchange (send and receive) with live nodes through our edge, beside Flower alone; and a whole round of secure aggregation.

``python -m experiments.bench.edge [--json] [--exchanges N] [--out FILE]``

Both sides run the same two apps, which send 4 kB to each of three nodes and 4 kB back, on this machine, one after the other. "Flower alone" is the stock SuperLink
and SuperNodes on loopback and Flower's own ``send_and_receive``. Ours is CA, gateway and agents with mutual TLS, admission and fork servers, and fedsec's own loop.
The apps stand in a copy of the code in place of fedsec's, and are approved by a release as any code is. The round is ``examples/live.toml`` on four nodes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.bench.table import Row, parser, show
from experiments.live_federation.live import LiveFederation, copy_code, live_federation
from experiments.live_federation.stock import ROOT, stock_federation
from experiments.live_federation.story import Story

NODES, PAYLOAD, EXCHANGES = 3, 4096, 6
LIMIT_EXCHANGE_S, LIMIT_ROUND_S, LIMIT_FASTER = 4.0, 40.0, 2.5

SERVER_APP = '''
"""Sends 4 kB to every node and waits for the answers, some times."""
import json, os, threading, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    from fedsec.flower.exchange import exchange
    from fedsec.flower.posted import PostedGrid
    posted = PostedGrid(grid, Path(os.environ["FEDSEC_HOME"]) / "gateway")
    given = json.loads(open(context.run_config["plan"]).read())
    while len(list(grid.get_node_ids())) < given["nodes"]:
        time.sleep(0.2)
    nodes, seconds = list(grid.get_node_ids()), []
    for number in range(given["exchanges"]):
        started = time.monotonic()
        messages = [Message(RecordDict({"a": ConfigRecord({"payload": os.urandom(given["payload"])})}), dst_node_id=n, message_type="query.echo") for n in nodes]
        if given["loop"] == "flower":
            replies = list(grid.send_and_receive(messages, timeout=120))
        else:
            replies = exchange(posted, messages, timeout_s=120, stop=threading.Event())
        assert len(replies) == len(nodes) and not any(reply.has_error() for reply in replies), [r.error for r in replies if r.has_error()]
        seconds.append(time.monotonic() - started)
    with open(given["out"] + ".new", "w") as handle:
        json.dump(seconds, handle)
    os.replace(given["out"] + ".new", given["out"])
'''
CLIENT_APP = '''
"""Sends the payload back."""
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("echo")
def echo(message, context):
    return Message(RecordDict({"a": ConfigRecord({"payload": message.content["a"]["payload"]})}), reply_to=message)
'''
SUBMIT = "import json, sys; from pathlib import Path; from fedsec.edge.submit import submit; print(submit(Path(sys.argv[1]), json.loads(sys.argv[2])))"


def put_apps(code: Path) -> None:
    """The two apps in the place of fedsec's; whatever else is installed stays."""
    (code / "server" / "app.py").write_text(SERVER_APP)
    (code / "client" / "app.py").write_text(CLIENT_APP)


def measure(home: Path, code: Path, environment: Mapping[str, str], *, loop: str, exchanges: int, wait: Any) -> list[float]:
    """Seconds of each exchange, the first included."""
    out, plan = home.parent / f"seconds-{loop}.json", home.parent / f"bench-{loop}.json"
    plan.write_text(json.dumps({"nodes": NODES, "payload": PAYLOAD, "exchanges": exchanges, "loop": loop, "out": str(out)}))
    command = [sys.executable, "-P", "-c", SUBMIT, str(home), json.dumps({"plan": str(plan)})]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**environment, "PYTHONPATH": str(code)})
    wait(out)
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def wait_for(path: Path, timeout_s: float = 300.0) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not come")
        time.sleep(0.2)


def stock_seconds(root: Path, exchanges: int) -> list[float]:
    """Flower alone."""
    code = copy_code(root / "bench-code")
    put_apps(code)
    (root / "stock").mkdir()
    with stock_federation(root / "stock", NODES) as federation:
        return measure(federation.home, code, federation.environment, loop="flower", exchanges=exchanges, wait=wait_for)


def edge_seconds(root: Path, exchanges: int) -> list[float]:
    """Through CA, gateway and agents."""
    (root / "edge").mkdir()
    federation = LiveFederation(root=root / "edge", count=NODES)
    put_apps(federation.code)
    try:
        federation.up()
        return measure(federation.server, federation.code, federation.environment, loop="fedsec", exchanges=exchanges, wait=wait_for)
    finally:
        federation.processes.end_all()


def round_seconds(root: Path) -> tuple[list[float], dict[str, float]]:
    """Rounds of secure aggregation on four nodes, the first included; and the stages of the last, milliseconds."""
    text = (ROOT / "examples" / "live.toml").read_text().replace("num_clients = 6", "num_clients = 4").replace("rounds = 6", "rounds = 3")
    (root / "plan.toml").write_text(text)
    with live_federation(root / "round", 4, keep=True) as federation:
        result = Story(federation=federation, plan=str(root / "plan.toml"), quiet=True).play()
    rows = result["rows"]
    if not all(cohort["opening"] == "held" for row in rows for cohort in row["secagg"]["cohorts"]):
        raise RuntimeError("a round was not opened")
    return [row["seconds"] for row in rows], rows[-1]["secagg"]["stage_ms"]


def main() -> None:
    """Measure and print."""
    made = parser(__doc__ or "")
    made.add_argument("--exchanges", type=int, default=EXCHANGES)
    made.add_argument("--out", type=Path, default=None, help="also write everything that was measured here, as JSON")
    given = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedsec-bench-") as folder:
        root = Path(folder)
        stock = stock_seconds(root, given.exchanges)
        edge = edge_seconds(root, given.exchanges)
        rounds, stages = round_seconds(root)
    ours, peer = statistics.median(edge), statistics.median(stock)
    rows = [
        Row(what=f"exchange, {NODES} nodes, 4 kB, median of {len(edge)}", ours=ours, peer=peer, peer_name="Flower alone", unit="s"),
        Row(what="the same, held against its limit", ours=ours, peer=LIMIT_EXCHANGE_S, peer_name="limit", unit="s"),
        Row(what="first exchange of the run", ours=edge[0], peer=stock[0], peer_name="Flower alone", unit="s"),
        Row(what="Flower alone over ours", ours=LIMIT_FASTER, peer=peer / ours, peer_name="measured (ours: limit)", unit="x"),
        Row(
            what=f"secure aggregation, 4 nodes, slowest of {len(rounds)} rounds",
            ours=max(rounds),
            peer=LIMIT_ROUND_S,
            peer_name="limit",
            unit="s",
        ),
    ]
    if given.out is not None:
        from dataclasses import asdict

        measured = {"edge_s": edge, "flower_alone_s": stock, "round_s": rounds, "stage_ms": stages}
        given.out.write_text(json.dumps({"rows": [asdict(row) | {"ratio": row.ratio} for row in rows], **measured}, indent=2) + "\n")
    show("Live edge", rows, as_json=given.json)


if __name__ == "__main__":
    main()
