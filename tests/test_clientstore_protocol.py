"""What a client keeps of secure aggregation: one answer a question, one attempt at a time, one UNMASK a round, and nothing older than it saw."""

import itertools
import shutil
from dataclasses import replace

import pytest

from fedsec.clientstore.protocol import KEPT_RUNS, Attempt, KeptRoster, Reply
from fedsec.clientstore.store import ANCHOR, DATABASE, ClientStore
from fedsec.errors import LocalProtocolError, PeerError, StorageError
from fedsec.secagg.labels import Phase

STAGES = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK)


@pytest.fixture
def store(tmp_path):
    with opened(tmp_path) as store:
        yield store


@pytest.fixture
def protocol(store):
    return store.protocol


def opened(folder, *, durable=False):
    return ClientStore.open(folder / "s", client_id="alice", durable=durable)


def attempt(server_round=1, number=1, *, run_id="r", retry=b"same", commitment=None, context=None):
    name = f"{run_id}/{server_round}/{number}".encode()
    return Attempt(
        run_id=run_id, server_round=server_round, attempt=number, context=context or b"c" + name, retry=retry + b"%d" % server_round,
        commitment=commitment or b"n" + name,
    )  # fmt: skip


def reply(given, stage, *, request=b"q", data=None, phase=None):
    data = b"%s of %s" % (stage.encode(), given.context) if data is None else data
    return Reply(context=given.context, stage=stage, request_hash=request, data=data, phase=phase)


def join(protocol, given, **kwargs):
    protocol.join(given, reply(given, Phase.ADVERTISE_KEYS, **kwargs))
    return given


def answer(protocol, given, *stages):
    for stage in stages:
        if stage is Phase.MASKED_INPUT:
            protocol.store_upload(reply(given, stage), num_rows=64)
        else:
            protocol.store_reply(reply(given, stage), unmask=stage is Phase.UNMASK)


def known(protocol, given, stage, request=b"q"):
    return protocol.known_reply(given.context, stage, request)


def erased(protocol, given, stage):
    with pytest.raises(PeerError, match="erased"):
        known(protocol, given, stage)
    return True


def test_the_same_request_gets_the_same_bytes_another_one_is_refused_and_the_next_stage_is_open(protocol):
    given = join(protocol, attempt())
    for before, stage in itertools.pairwise(STAGES):
        assert known(protocol, given, before) == reply(given, before).data
        with pytest.raises(PeerError, match="another request"):
            known(protocol, given, before, b"Q")
        assert known(protocol, given, stage) is None
        answer(protocol, given, stage)


def test_no_stage_is_answered_twice_even_if_nobody_looked_first(protocol):
    given = join(protocol, attempt())
    answer(protocol, given, *STAGES[1:-1])
    for stage in STAGES[:-1]:
        with pytest.raises(LocalProtocolError, match="answered before"):
            protocol.store_reply(reply(given, stage, data=b"another"))
    assert known(protocol, given, Phase.CONSISTENCY_CHECK) == reply(given, Phase.CONSISTENCY_CHECK).data
    answer(protocol, given, Phase.UNMASK)
    for unmask in (True, False):
        with pytest.raises(LocalProtocolError, match="before"):
            protocol.store_reply(reply(given, Phase.UNMASK, data=b"another"), unmask=unmask)


def test_an_upload_is_forgotten_with_the_sketch_and_everything_with_unmask(protocol):
    given = join(protocol, attempt())
    answer(protocol, given, Phase.SHARE_KEYS, Phase.MASKED_INPUT)
    assert known(protocol, given, Phase.MASKED_INPUT)
    answer(protocol, given, Phase.SKETCH)
    assert erased(protocol, given, Phase.MASKED_INPUT)
    assert known(protocol, given, Phase.SHARE_KEYS)
    answer(protocol, given, Phase.CONSISTENCY_CHECK, Phase.UNMASK)
    assert all(erased(protocol, given, stage) for stage in STAGES[:-1])
    assert known(protocol, given, Phase.UNMASK)


def test_what_is_forgotten_is_gone_from_the_file(tmp_path):
    with opened(tmp_path) as store:
        given = join(store.protocol, attempt())
        secret = b"bytes that must not stay on the disk"
        store.protocol.store_upload(reply(given, Phase.MASKED_INPUT, data=secret * 300), num_rows=64)
        assert secret in (tmp_path / "s" / DATABASE).read_bytes()
        answer(store.protocol, given, Phase.SKETCH)
    assert not any(secret in path.read_bytes() for path in (tmp_path / "s").iterdir())


def test_joining_the_next_attempt_ends_all_earlier_ones_of_the_run(protocol):
    first = join(protocol, attempt(1, 1))
    answer(protocol, first, Phase.SHARE_KEYS, Phase.MASKED_INPUT)
    second = join(protocol, attempt(1, 2))
    assert all(erased(protocol, first, stage) for stage in STAGES[:3])
    for stage in (Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK):  # and what it had not answered it never will
        with pytest.raises(PeerError, match="later one"):
            answer(protocol, first, stage)
    with pytest.raises(PeerError, match="later one"):
        protocol.store_upload(reply(first, Phase.MASKED_INPUT), num_rows=64)
    answer(protocol, second, *STAGES[1:])
    third = join(protocol, attempt(2, 1))
    assert all(erased(protocol, second, stage) for stage in STAGES)
    with pytest.raises(PeerError, match="later one"):
        answer(protocol, second, Phase.BLAME)
    answer(protocol, third, Phase.SHARE_KEYS)


def test_a_context_that_was_never_joined_is_not_answered(protocol):
    for stage in STAGES[1:]:
        with pytest.raises(PeerError, match="not joined"):
            answer(protocol, attempt(), stage)


def test_another_run_is_left_alone(protocol):
    mine, other = join(protocol, attempt()), join(protocol, attempt(run_id="other"))
    answer(protocol, other, Phase.SHARE_KEYS)
    answer(protocol, mine, Phase.SHARE_KEYS)
    assert known(protocol, other, Phase.SHARE_KEYS)


def test_replies_of_many_runs_do_not_fill_the_disk(protocol):
    runs = [join(protocol, attempt(run_id=f"run-{number}")) for number in range(KEPT_RUNS + 3)]
    assert all(known(protocol, given, Phase.ADVERTISE_KEYS) for given in runs[-KEPT_RUNS:])
    assert all(erased(protocol, given, Phase.ADVERTISE_KEYS) for given in runs[:-KEPT_RUNS])


@pytest.mark.parametrize("place", [(1, 1), (2, 1), (2, 2), (1, 2), (1, 3)])
def test_rounds_and_attempts_only_rise(protocol, place):
    join(protocol, attempt(1, 1))
    join(protocol, attempt(2, 1))
    join(protocol, attempt(2, 2))
    with pytest.raises(PeerError, match="only rise"):
        join(protocol, attempt(*place, context=b"another", commitment=b"another"))
    assert known(protocol, attempt(2, 2), Phase.ADVERTISE_KEYS)  # nothing changed


def test_one_attempt_has_one_context(protocol):
    join(protocol, attempt(1, 1))
    with pytest.raises(PeerError):
        join(protocol, attempt(1, 1, context=b"another", commitment=b"another"))
    with pytest.raises((PeerError, StorageError)):
        join(protocol, attempt(1, 2, context=attempt(1, 1).context))


def test_a_commitment_serves_once_in_all_runs(protocol):
    seen = join(protocol, attempt()).commitment
    for again in (attempt(1, 2, commitment=seen), attempt(2, 1, commitment=seen), attempt(run_id="other", commitment=seen)):
        with pytest.raises(PeerError, match="nonce commitment"):
            join(protocol, again)


def test_a_retry_differs_in_attempt_and_nonce_only(protocol):
    join(protocol, attempt(1, 1))
    with pytest.raises(PeerError, match="attempt and nonce only"):
        join(protocol, attempt(1, 2, retry=b"changed"))
    join(protocol, attempt(1, 2))
    join(protocol, attempt(2, 1, retry=b"changed"))  # another round may


def test_unmask_is_answered_once_a_round_over_all_attempts(protocol):
    first = join(protocol, attempt(1, 1))
    answer(protocol, first, *STAGES[1:])
    for number in (2, 3):
        with pytest.raises(PeerError, match="answered UNMASK"):
            join(protocol, attempt(1, number))
    assert known(protocol, first, Phase.UNMASK)  # the refusal cost nothing
    join(protocol, attempt(2, 1))


def test_a_refused_attempt_changes_nothing_at_all(tmp_path):
    with opened(tmp_path) as store:
        given = join(store.protocol, attempt(2, 1))
        before = (tmp_path / "s" / ANCHOR).read_bytes()
        for bad in (attempt(1, 1), attempt(2, 2, retry=b"x"), attempt(3, 1, commitment=given.commitment)):
            with pytest.raises(PeerError):
                join(store.protocol, bad)
        assert (tmp_path / "s" / ANCHOR).read_bytes() == before
        assert known(store.protocol, given, Phase.ADVERTISE_KEYS)


def test_sketch_rows_add_up_over_given_up_attempts_and_runs_and_are_never_forgotten(tmp_path):
    with opened(tmp_path) as store:
        for given in (attempt(1, 1), attempt(1, 2), attempt(2, 1), attempt(run_id="other")):
            answer(store.protocol, join(store.protocol, given), Phase.MASKED_INPUT)
        join(store.protocol, attempt(3, 1))  # no upload, no rows
        assert store.protocol.sketch_rows() == 4 * 64
    with opened(tmp_path) as store:
        assert store.protocol.sketch_rows() == 4 * 64


def test_the_phase_of_a_run_is_kept_with_its_reply_and_only_where_it_is_given(protocol):
    given = join(protocol, attempt(), phase=(50, b"one"))
    assert protocol.phase("r") == (50, b"one")
    protocol.store_reply(reply(given, Phase.SHARE_KEYS, phase=(51, b"two")))
    assert protocol.phase("r") == (51, b"two")
    answer(protocol, given, Phase.MASKED_INPUT)
    assert protocol.phase("r") == (51, b"two")
    assert protocol.phase("other") is None
    with pytest.raises(LocalProtocolError):
        protocol.store_reply(reply(given, Phase.SHARE_KEYS, phase=(99, b"bad")))
    assert protocol.phase("r") == (51, b"two")


def test_everything_is_there_again_after_reopening(tmp_path):
    with opened(tmp_path, durable=True) as store:
        given = join(store.protocol, attempt(1, 1))
        answer(store.protocol, given, *STAGES[1:])
        store.protocol.keep_roster(roster())
    with opened(tmp_path, durable=True) as store:
        protocol = store.protocol
        assert known(protocol, given, Phase.UNMASK) == reply(given, Phase.UNMASK).data
        assert erased(protocol, given, Phase.SHARE_KEYS)
        assert protocol.roster("f") == roster()
        with pytest.raises(PeerError, match="answered UNMASK"):
            join(protocol, attempt(1, 2))
        with pytest.raises(PeerError, match="nonce commitment"):
            join(protocol, attempt(2, 1, commitment=given.commitment))


@pytest.mark.parametrize("what", [(DATABASE,), (ANCHOR,)])
def test_a_store_that_was_rolled_back_is_not_used(tmp_path, what):
    with opened(tmp_path) as store:
        given = join(store.protocol, attempt())
    for name in what:
        shutil.copy(tmp_path / "s" / name, tmp_path / name)
    with opened(tmp_path) as store:
        answer(store.protocol, given, *STAGES[1:])
    for name in what:
        shutil.copy(tmp_path / name, tmp_path / "s" / name)
    with pytest.raises(StorageError):
        opened(tmp_path)


# --- The list of clients ------------------------------------------------------------------------------------------------------------


def roster(version=3, digest=b"d", body=b"b", log_size=10, log_root=b"root", federation="f"):
    return KeptRoster(federation=federation, version=version, digest=digest, body=body, log_size=log_size, log_root=log_root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "older or another"),
        ({"version": 2, "log_size": 99}, "older or another"),
        ({"digest": b"e"}, "older or another"),
        ({"digest": b"e", "log_size": 99}, "older or another"),
        ({"log_size": 9}, "shorter"),
        ({"version": 4, "digest": b"e", "log_size": 9}, "shorter"),
        ({"log_root": b"other"}, "log"),
    ],
)
def test_nothing_older_than_was_seen_is_kept(protocol, changes, reason):
    protocol.keep_roster(roster())
    with pytest.raises(PeerError, match=reason):
        protocol.keep_roster(roster(**changes))
    assert protocol.roster("f") == roster()


def test_a_newer_list_or_a_longer_log_is_kept_and_federations_are_apart(protocol):
    assert protocol.roster("f") is None
    for given in (roster(), roster(), roster(log_size=11, log_root=b"new"), roster(version=5, digest=b"e", log_size=12)):
        protocol.keep_roster(given)
        assert protocol.roster("f") == given
    protocol.keep_roster(roster(federation="g", version=1, log_size=1))
    assert protocol.roster("f").version == 5


# --- Types --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"run_id": None}, {"server_round": "one"}, {"attempt": 1.5}, {"context": None}, {"context": "text"}, {"retry": "text"}, {"commitment": 7},
        {"server_round": 2**70},
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_not_stored(protocol, bad):
    join(protocol, attempt())
    given = replace(attempt(2, 1), **bad)
    with pytest.raises((PeerError, StorageError, TypeError, ValueError, OverflowError)):
        protocol.join(given, Reply(context=given.context, stage="s", request_hash=b"q", data=b"d"))
    assert known(protocol, attempt(), Phase.ADVERTISE_KEYS)
    assert join(protocol, attempt(2, 1))


@pytest.mark.parametrize("bad", [{"data": "text"}, {"data": None, "phase": ("x", b"")}, {"request": 5}, {"phase": (1, "text")}])
def test_a_reply_of_the_wrong_type_is_not_stored(protocol, bad):
    given = join(protocol, attempt())
    values = {"data": b"d", **bad}
    with pytest.raises((PeerError, StorageError, LocalProtocolError, TypeError, ValueError)):
        protocol.store_reply(reply(given, Phase.SHARE_KEYS, **values))
    assert known(protocol, given, Phase.SHARE_KEYS) is None
