import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.sim.faults import Fault, FaultKind, FaultPlan

MESSAGE = {"partition": 3, "group_id": "2", "message_type": "train"}


@pytest.mark.parametrize(
    ("fault", "fits"),
    [
        (Fault(kind="drop"), True),
        (Fault(kind="drop", partition=3), True),
        (Fault(kind="drop", partition=4), False),
        (Fault(kind="drop", server_round=2), True),
        (Fault(kind="drop", server_round=20), False),
        (Fault(kind="drop", message_type="train"), True),
        (Fault(kind="drop", message_type="train.personalise"), False),
        (Fault(kind="drop", partition=3, server_round=2, message_type="train"), True),
        (Fault(kind="drop", partition=3, server_round=3, message_type="train"), False),
    ],
)
def test_a_fault_concerns_the_messages_that_it_names_and_no_others(fault: Fault, fits: bool) -> None:
    assert fault.fits(**MESSAGE) is fits
    assert FaultPlan(faults=(fault,)).decide(**MESSAGE) == (fault if fits else None)


def test_the_first_named_fault_wins_and_named_ones_go_before_chance() -> None:
    late, lost = Fault(kind="delay", delay_s=1.0, partition=3), Fault(kind="drop-after")
    assert FaultPlan(faults=(late, lost), rate=1.0).decide(**MESSAGE) == late
    assert FaultPlan(faults=(late, lost), rate=1.0).decide(partition=0, group_id="2", message_type="train") == lost
    assert FaultPlan(faults=(late,), rate=1.0).decide(partition=0, group_id="2", message_type="train") == Fault(kind="drop")


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "explode"},
        {"kind": "delay"},
        {"kind": "delay", "delay_s": -1.0},
        {"kind": "delay", "delay_s": math.inf},
        {"kind": "delay", "delay_s": math.nan},
        {"kind": "drop", "delay_s": 1.0},
        {"kind": "drop", "partition": -1},
        {"kind": "drop", "partition": "3"},
        {"kind": "drop", "server_round": 1.5},
        {"kind": "drop", "server_round": True},
    ],
)
def test_an_impossible_fault_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        Fault(**bad)


@pytest.mark.parametrize("bad", [{"rate": -0.1}, {"rate": 1.1}, {"rate": math.nan}, {"random_kind": "delay"}, {"random_kind": "explode"}])
def test_an_impossible_plan_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        FaultPlan(**bad)


@given(st.integers(0, 10**6), st.integers(0, 100), st.text(max_size=5), st.floats(0, 1))
def test_chance_depends_on_the_message_alone(seed: int, partition: int, group_id: str, rate: float) -> None:
    """Another plan object, asked other things before, decides the same."""
    first, second = FaultPlan.random(rate, seed), FaultPlan.random(rate, seed)
    for other in range(3):
        second.decide(partition=other, group_id="x", message_type="train")
    message = {"partition": partition, "group_id": group_id, "message_type": "train"}
    assert first.decide(**message) == second.decide(**message)


def test_chance_hits_its_rate_and_a_higher_rate_hits_a_superset() -> None:
    """20,000 fair draws at 0.3: five standard deviations are 0.0162 (false alarm 6e-7; the seed is fixed)."""
    messages = [{"partition": p, "group_id": str(r), "message_type": "train"} for p in range(100) for r in range(200)]
    some = [FaultPlan.random(0.3, seed=1).decide(**m) is not None for m in messages]
    more = [FaultPlan.random(0.5, seed=1).decide(**m) is not None for m in messages]
    other = [FaultPlan.random(0.3, seed=2).decide(**m) is not None for m in messages]
    assert abs(sum(some) / len(some) - 0.3) < 0.0162
    assert all(b for a, b in zip(some, more, strict=True) if a)
    assert some != other


def test_the_ends_of_chance_are_never_and_always() -> None:
    assert FaultPlan.random(0.0, seed=1).decide(**MESSAGE) is None
    assert all(FaultPlan.random(1.0, seed=s).decide(**MESSAGE) is not None for s in range(50))


def test_chance_can_be_limited_to_message_types_and_be_of_any_kind() -> None:
    plan = FaultPlan.random(1.0, seed=1, kind=FaultKind.DELAY, message_types=("train",), delay_s=2.0)
    assert plan.decide(**MESSAGE) == Fault(kind="delay", delay_s=2.0)
    assert plan.decide(partition=3, group_id="2", message_type="evaluate") is None
