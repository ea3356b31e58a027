"""CONFIG: no unsound round can be written down, every number binds the context, and a retry changes two things only."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.errors import ConfigError, DecodeError, SignatureError
from fedsec.secagg.checks import read_config, sign_config
from fedsec.secagg.cohorts import CohortLimits
from fedsec.secagg.config import LocalPolicy, Member, RoundConfig, check_members, nonce_commitment
from fedsec.secagg.messages import BlameValues, EdgeValue, Envelope
from fedsec.signing import verify_signature

BASE: dict[str, Any] = {
    "federation": "example.org", "cohort": 1, "num_cohorts": 3, "run_id": "run-1", "server_round": 5, "attempt": 1, "model_hash": bytes([1]) * 32,
    "terms_hash": bytes([2]) * 32, "roster_hash": bytes([3]) * 32, "num_clients": 10, "num_corrupt": 1, "minimum_accepted": 4, "threshold": 6,
    "dimension": 1000, "scale": 1024.0, "norm_bound": 1 << 20, "num_rows": 64, "norm_slack": 2.0, "weight_limit": 100, "rule": "mean",
    "nonce_commitment": bytes([4]) * 32, "time_s": 1_900_000_000,
}  # fmt: skip
CONFIG = RoundConfig(**BASE)

OTHER: dict[str, dict[str, Any]] = {
    "federation": {"federation": "example.com"}, "cohort": {"cohort": 0}, "num_cohorts": {"num_cohorts": 4}, "run_id": {"run_id": "run-2"},
    "server_round": {"server_round": 6}, "attempt": {"attempt": 2}, "model_hash": {"model_hash": bytes(32)}, "terms_hash": {"terms_hash": bytes(32)},
    "roster_hash": {"roster_hash": bytes(32)}, "num_clients": {"num_clients": 11, "threshold": 7}, "num_corrupt": {"num_corrupt": 2, "threshold": 7},
    "minimum_accepted": {"minimum_accepted": 5}, "threshold": {"num_clients": 11, "threshold": 7}, "dimension": {"dimension": 1001},
    "scale": {"scale": math.nextafter(1024.0, 0)}, "norm_bound": {"norm_bound": (1 << 20) - 1}, "num_rows": {"num_rows": 72},
    "norm_slack": {"norm_slack": 2.5}, "weight_limit": {"weight_limit": 99}, "rule": {"rule": "median"},
    "nonce_commitment": {"nonce_commitment": bytes(32)}, "time_s": {"time_s": 1_900_000_001},
}  # fmt: skip

HOSTILE: dict[str, list[Any]] = {
    "federation": ["", "a\nb", "x" * 129, "\u202e", "\ud800", None],
    "cohort": [-1, 3, 65536, 1.0, None],
    "num_cohorts": [0, -1, 1, 4097, 3.0],
    "run_id": ["", "a\0", "é" * 65],
    "server_round": [0, -1, 1 << 32, 1.0],
    "attempt": [0, 3, -1, True, 1.0],
    "model_hash": [b"", bytes(31), bytes(33)],
    "terms_hash": [b"", bytes(31), bytes(33)],
    "roster_hash": [b"", bytes(31), bytes(33)],
    "num_clients": [0, 3, 8, 11, 1025, -10, 10.0, math.nan],
    "num_corrupt": [0, -1, 2, 10, 1.0, math.nan],
    "minimum_accepted": [0, 2, 10, 65536, 4.0],
    "threshold": [0, 5, 7, 6.0],
    "dimension": [0, -1, (1 << 26) + 1, 1000.0],
    "scale": [0.0, -1.0, -0.0, math.inf, -math.inf, math.nan, 1024],
    "norm_bound": [0, -1, 32, 1 << 27, 1 << 32, 1048576.0],
    "num_rows": [0, 4, 7, 63, 4104, -8, 64.0],
    "norm_slack": [1.0, 0.0, -2.0, 4.0, math.nan, math.inf, 2],
    "weight_limit": [0, -1, (1 << 20) + 1, 100.0],
    "rule": ["", "x" * 65, "\x7f"],
    "nonce_commitment": [b"", bytes(31), bytes(33)],
    "time_s": [-1, 1 << 64, 1.0, None],
}


def test_the_tables_of_these_tests_are_complete() -> None:
    names = {field.name for field in fields(RoundConfig)}
    assert names == OTHER.keys() == HOSTILE.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values])
def test_a_hostile_value_makes_no_config(name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cohort", 3), ("num_cohorts", 0), ("num_cohorts", 1), ("server_round", 0), ("attempt", 0), ("attempt", 255), ("num_clients", 0),
        ("num_clients", 65535), ("num_corrupt", 0), ("num_corrupt", 65535), ("minimum_accepted", 2), ("minimum_accepted", 65535),
        ("threshold", 0), ("threshold", 65535), ("dimension", 0), ("dimension", 2**32 - 1), ("norm_bound", 0), ("norm_bound", 2**32 - 1),
        ("num_rows", 0), ("num_rows", 65535), ("weight_limit", 0), ("weight_limit", 2**32 - 1),
    ],
)  # fmt: skip
def test_a_hostile_value_in_the_bytes_is_a_decode_error(name: str, value: int) -> None:
    changed = replace(CONFIG)
    object.__setattr__(changed, name, value)
    with pytest.raises(DecodeError):
        RoundConfig.decode(changed.encode())


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_context(name: str) -> None:
    assert replace(CONFIG, **OTHER[name]).context() != CONFIG.context()


@pytest.mark.parametrize("name", OTHER)
def test_only_attempt_and_nonce_leave_a_retry_the_same_round(name: str) -> None:
    same = replace(CONFIG, **OTHER[name]).retry_digest() == CONFIG.retry_digest()
    assert same == (name in {"attempt", "nonce_commitment"})


def test_contexts_and_retry_digests_are_of_different_kinds() -> None:
    bare = replace(CONFIG, nonce_commitment=bytes(32))
    assert bare.context() != bare.retry_digest()
    retry = replace(CONFIG, attempt=2, nonce_commitment=bytes([9]) * 32)
    assert retry.retry_digest() == CONFIG.retry_digest()
    assert retry.context() != CONFIG.context()


@given(n=st.integers(1, 70), c=st.integers(0, 12), least=st.integers(0, 70), t=st.integers(0, 70))
def test_a_config_holds_limits_that_follow_from_one_another_or_is_none(n: int, c: int, least: int, t: int) -> None:
    try:
        limits = CohortLimits(num_clients=n, num_corrupt=c, minimum_accepted=least)
    except ConfigError:
        limits = None
    numbers = {"num_clients": n, "num_corrupt": c, "minimum_accepted": least, "threshold": t}
    if limits is None or limits.threshold != t:
        with pytest.raises(ConfigError):
            replace(CONFIG, **numbers)
    else:
        made = replace(CONFIG, **numbers)
        assert made.limits == limits
        assert RoundConfig.decode(made.encode()) == made


def test_a_sum_or_a_sketch_that_could_wrap_is_no_config() -> None:
    replace(CONFIG, norm_bound=(2**30 - 1) // 10)
    with pytest.raises(ConfigError, match="wrap"):
        replace(CONFIG, norm_bound=2**30 // 10 + 1)


def test_values_of_blame_fit_a_message_or_it_is_no_config() -> None:
    most = replace(CONFIG, num_clients=256, threshold=129, minimum_accepted=100, num_rows=2040)
    edges = tuple(EdgeValue(peer=peer, values=bytes(4 * most.num_rows)) for peer in range(1, 256))
    values = BlameValues(context=bytes(32), sender=0, view=bytes(32), agreement=bytes(32), edges=edges)
    Envelope(content=values.encode(), signature=bytes(64)).encode()
    with pytest.raises(ConfigError, match="longer than a message"):
        replace(most, num_rows=2048)


# --- signed by the server ---


def test_only_what_the_server_signed_is_read(rounds: Any) -> None:
    server, other = rounds.signer_of("server"), rounds.signer_of("other")
    good = sign_config(CONFIG, server)
    assert read_config(good, server_key=server.public_key, verify=verify_signature) == CONFIG
    with pytest.raises(SignatureError):
        read_config(sign_config(CONFIG, other), server_key=server.public_key, verify=verify_signature)
    for place in range(len(good)):
        with pytest.raises((DecodeError, SignatureError)):
            read_config(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :], server_key=server.public_key, verify=verify_signature)
    with pytest.raises(DecodeError, match="attachment"):
        read_config(replace(Envelope.decode(good), attachment=b"x").encode(), server_key=server.public_key, verify=verify_signature)


# --- nonce, members, policy ---


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError):
        nonce_commitment(bytes(size))


def test_a_commitment_is_neither_the_nonce_nor_the_same_for_two() -> None:
    assert len({bytes(32), bytes([1]) * 32, nonce_commitment(bytes(32)), nonce_commitment(bytes([1]) * 32)}) == 4


def test_a_cohort_has_n_members_of_different_names_and_keys() -> None:
    members = [Member(client_id=f"c{index}", public_key=bytes([2, index]) + bytes(31)) for index in range(10)]
    check_members(CONFIG, members)
    for bad in (
        members[:9], [*members, members[0]], [*members[:9], replace(members[9], client_id="c0")],
        [*members[:9], replace(members[9], public_key=members[0].public_key)],
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            check_members(CONFIG, bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"minimum_cohort": 3}, {"minimum_cohort": math.nan}, {"minimum_cohort": 4.0}, {"minimum_cohort": True}, {"num_corrupt": 0},
        {"num_corrupt": -1}, {"num_corrupt": True}, {"honest_minimum": 1}, {"honest_minimum": None}, {"maximum_rows": -1},
        {"maximum_rows": 1 << 40}, {"sketches_allowed": 1}, {"sketches_allowed": None},
    ],
)  # fmt: skip
def test_a_policy_that_protects_nobody_is_refused(changes: Any) -> None:
    with pytest.raises(ConfigError, match="policy"):
        LocalPolicy(**changes)


@given(
    cohort=st.integers(4, 14), corrupt=st.integers(1, 3), honest=st.integers(2, 5), rows=st.integers(0, 200), attempt=st.integers(1, 2),
    allowed=st.booleans(),
)  # fmt: skip
def test_a_policy_admits_exactly_what_meets_every_floor(
    cohort: int, corrupt: int, honest: int, rows: int, attempt: int, allowed: bool
) -> None:
    policy = LocalPolicy(minimum_cohort=cohort, num_corrupt=corrupt, honest_minimum=honest, maximum_rows=rows, sketches_allowed=allowed)
    config = replace(CONFIG, attempt=attempt)
    fine = cohort <= 10 and corrupt <= 1 and honest <= 3 and attempt * 64 <= rows and allowed
    if fine:
        policy.check(config)
    else:
        with pytest.raises(ConfigError):
            policy.check(config)
