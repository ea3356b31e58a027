"""Malformed messages, through Flower's records and the server's own reading and validation: refused and named, or harmless."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedsec.errors import DecodeError, PeerError
from fedsec.flower.records import record_to_arrays
from fedsec.robust.validation import validate_update
from fedsec.sim.attacks.catalogue import CATALOGUE, Family
from fedsec.sim.attacks.malformed import RawArray, malform
from fedsec.vectors import Layout

LAYOUT = Layout((("b", (2,)), ("w", (2, 2))))
HONEST = {"b": np.ones(2, np.float32), "w": np.full((2, 2), 2, np.float32)}
NAMES = sorted(name for name, info in CATALOGUE.items() if info.family is Family.MALFORMED)
HARMLESS = ("denormal", "duplicate-names")


def received(reply):
    """What the server reads of it: as Flower's reader of the wire does, the last array of a name stands."""
    made = {
        name: Array(array.dtype, array.shape, "numpy.ndarray", array.data)
        if isinstance(array, RawArray)
        else Array(np.ascontiguousarray(array))
        for name, array in reply.arrays
    }
    return record_to_arrays(ArrayRecord(made))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HARMLESS])
def test_every_malformed_message_is_a_fault_that_names_its_sender(name):
    reply = malform(name, HONEST, 10)
    with pytest.raises((PeerError, DecodeError), match=r"mallory|array 'b'"):
        validate_update("mallory", received(reply), reply.batch_size, layout=LAYOUT)


def test_an_honest_message_passes_the_same_way():
    assert validate_update("c", received(malform("denormal", HONEST, 10)), 10, layout=LAYOUT).vector.tolist() == [np.float32(1e-45)] * 6


def test_of_two_arrays_with_one_name_the_server_sees_the_last():
    reply = malform("duplicate-names", HONEST, 10)
    assert [name for name, _ in reply.arrays] == ["b", "w", "b"]
    assert validate_update("c", received(reply), reply.batch_size, layout=LAYOUT).vector.tolist() == [-5, -5, 2, 2, 2, 2]


def test_the_claim_of_a_huge_array_costs_no_memory_here():
    reply = malform("huge-array", HONEST, 10)
    raw = dict(reply.arrays)["b"]
    assert isinstance(raw, RawArray)
    assert len(raw.data) < 1000
    with pytest.raises(DecodeError, match="header does not match"):
        received(reply)


def test_counts_are_no_counts():
    assert malform("negative-count", HONEST, 10).batch_size == -10
    assert malform("huge-count", HONEST, 10).batch_size == 2**62


@pytest.mark.parametrize("name", NAMES)
def test_the_honest_update_is_not_changed_and_scalars_will_do(name):
    arrays = {key: array.copy() for key, array in HONEST.items()}
    malform(name, arrays, 10)
    assert all(np.array_equal(arrays[key], HONEST[key]) for key in HONEST)
    malform(name, {"only": np.array(1.0, np.float32)}, 1)


def test_nothing_can_be_made_of_nothing():
    for arrays in ({}, {"b": np.zeros(0, np.float32)}):
        with pytest.raises(ValueError, match="no entry"):
            malform("nan-value", arrays, 10)
    with pytest.raises(ValueError, match="alie"):
        malform("alie", HONEST, 10)
