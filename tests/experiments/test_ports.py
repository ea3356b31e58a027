"""Ports for servers that are about to start: in use nowhere, and never the same one twice."""

import itertools
import socket
import subprocess
import sys
from pathlib import Path

from experiments import ports
from experiments.ports import _RANGE, _own_range, free_port, free_ports

ROOT = Path(__file__).resolve().parents[2]


def test_a_port_is_handed_out_once():
    # Drawn at random, two of a settings file were the same once in a few hundred runs of the tests, and the settings were refused.
    handed = [*free_ports(200), *(free_port() for _ in range(200))]
    assert len(set(handed)) == 400
    assert set(handed) <= set(_RANGE)


def test_a_port_can_be_listened_on_and_one_in_use_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", free_port())) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_own_range", lambda _: range(taken, taken + 20))
        others = list(itertools.islice(ports._ports(), 40))
    assert taken not in others
    with socket.create_server(("127.0.0.1", others[0])):
        pass


def test_workers_of_one_run_have_ranges_apart():
    blocks = [set(_own_range(f"gw{worker}")) for worker in range(8)]
    assert len(set().union(*blocks)) == sum(map(len, blocks)) == len(_RANGE)
    assert _own_range("master") == _own_range("") == _RANGE


def test_the_start_is_not_what_a_seeded_test_run_makes_it():
    code = "import random; random.seed(0); from experiments.ports import free_port; print(free_port())"
    seen = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(3)}
    assert len(seen) > 1
