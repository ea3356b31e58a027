"""Names from strangers show and never act; numbers read the same everywhere."""

import doctest
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.report import text


@given(st.text())
def test_printable_text_holds_nothing_that_acts(raw):
    shown = text.printable(raw)
    assert all(unicodedata.category(char)[0] != "C" for char in shown)
    assert all(char == " " or unicodedata.category(char)[0] != "Z" for char in shown)
    assert text.printable(shown) == shown


@given(st.text(), st.integers(1, 20))
def test_printable_text_keeps_its_limit(raw, limit):
    assert len(text.printable(raw, limit)) <= limit


@pytest.mark.parametrize("char", ["\x1b", "\r", "\n", "\u202e", "\u2066", "\x9b", "\ud800"])
def test_terminal_escapes_and_bidirectional_overrides_are_written_out(char):
    assert char not in text.printable(f"a{char}b")


@pytest.mark.parametrize(
    "raw",
    ["=cmd()", "+1", "-1", "@SUM(A1)", " =1", '"=1', "\t=1", "＝1", "a;=1", "a,=1", 'a";"=1', "x;\t=1", "a;  @x"],
)
def test_no_cell_starts_a_formula_wherever_a_sheet_splits_it(raw):
    cell = text.safe_cell(raw)
    for piece in cell.replace(",", ";").replace("\t", ";").split(";"):
        assert piece.strip(' "')[:1] not in tuple("=+-@＝＋－＠")


@given(st.text())
def test_safe_cells_never_start_with_a_formula_sign(raw):
    assert not text.safe_cell(raw).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_harmless_cells_are_left_alone():
    assert text.safe_cell("client-7: not finite, 3 of 4") == "client-7: not finite, 3 of 4"


@given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "no-such-encoding"]))
def test_encodable_text_can_be_encoded(raw, encoding):
    shown = text.encodable(text.printable(raw), encoding)
    shown.encode("ascii" if encoding == "no-such-encoding" else encoding)


@given(st.floats(min_value=1e-12, max_value=1e9))
def test_shown_epsilon_never_claims_more_than_was_proven(value):
    shown = float(text.epsilon(value))
    assert shown >= value * (1 - 1e-5)
    assert shown <= value * 1.02


@pytest.mark.parametrize(
    ("value", "shown"),
    [(8.0, "8.00"), (7.9912, "8.00"), (7.981, "7.99"), (1.0, "1.00"), (0.1, "0.100"), (0.0999999, "0.100"), (0.0, "0"), (math.nan, "n/a")],
)
def test_epsilon_reads(value, shown):
    assert text.epsilon(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (86400, "24 h 00 min"),
        (math.inf, "n/a"),
        (math.nan, "n/a"),
    ],
)
def test_duration_reads(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (999_960, "1.0 MB"), (5e9, "5.0 GB"), (5e15, "5000.0 TB")])
def test_bytes_read(count, shown):
    assert text.byte_size(count) == shown


def test_absent_values_read_as_such():
    assert text.percent(None) == text.percent(math.nan) == text.decimal(None) == text.decimal(math.nan) == text.epsilon(None) == "n/a"


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(text)
    assert result.attempted >= 9
    assert result.failed == 0
