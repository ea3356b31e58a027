"""What the server remembers of members that leave failed openings unresolved."""

import pytest

from fedsec.errors import StorageError
from fedsec.flower.journal import MOST_DOUBLINGS, SITS_OUT_ROUNDS, Journal


def journal(tmp_path):
    return Journal.load(tmp_path / "rounds.json")


def test_each_further_time_a_member_sits_out_twice_as_long(tmp_path):
    kept, lengths, number = journal(tmp_path), [], 1
    for _ in range(MOST_DOUBLINGS + 3):
        kept.begin(number, 1, 0)
        kept.sit_out("mallory")
        lengths.append(kept.sits_out_until["mallory"] - number)
        number = kept.sits_out_until["mallory"] + 1
    assert lengths[:4] == [SITS_OUT_ROUNDS, 2 * SITS_OUT_ROUNDS, 4 * SITS_OUT_ROUNDS, 8 * SITS_OUT_ROUNDS]
    assert lengths[-2:] == [SITS_OUT_ROUNDS * 2**MOST_DOUBLINGS] * 2


def test_three_liars_who_take_turns_cost_fewer_and_fewer_rounds(tmp_path):
    kept, lost = journal(tmp_path), 0
    for number in range(1, 201):
        kept.begin(number, 1, 0)
        free = sorted({"a", "b", "c"} - kept.left_out(number))
        if free:
            kept.sit_out(free[0])
            lost += 1
    assert lost <= 24  # it was every round


def test_asked_twice_in_one_round_it_sits_out_once(tmp_path):
    kept = journal(tmp_path)
    kept.begin(4, 1, 0)
    kept.sit_out("slow")
    kept.sit_out("slow")
    assert kept.times_out == {"slow": 1}
    assert kept.left_out(4 + SITS_OUT_ROUNDS) == {"slow"}
    assert kept.left_out(5 + SITS_OUT_ROUNDS) == set()


def test_a_restart_remembers_and_a_damaged_file_is_refused(tmp_path):
    kept = journal(tmp_path)
    kept.begin(1, 1, 0)
    kept.sit_out("slow")
    kept.exclude("mallory", "sent a sketch that is not its upload's")
    again = journal(tmp_path)
    assert (again.times_out, again.sits_out_until, again.excluded) == (kept.times_out, kept.sits_out_until, kept.excluded)
    (tmp_path / "rounds.json").write_text('{"times_out": {"a": "b"}}')
    with pytest.raises(StorageError):
        journal(tmp_path)
