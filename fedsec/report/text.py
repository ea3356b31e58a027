"""How numbers and foreign names are written for people, on terminals, in pictures and in spreadsheets.

1. Names and reasons come from clients: nothing in them may act on a terminal (control characters), read backwards (bidirectional
   overrides) or run in a spreadsheet (formulas).
2. A value that there is not, or that is not a number, reads "n/a"; an unbounded epsilon reads "infinite".
"""

from __future__ import annotations

import math
import re

MISSING = "n/a"

_FORMULA_START = re.compile(r"""^["\s]*[=+\-@＝＋－＠]""")
_FORMULA_AFTER_SEPARATOR = re.compile(r"""([;,]["\s]*)(?=[=+\-@＝＋－＠])""")


def printable(text: str, limit: int | None = None) -> str:
    r"""Text without characters that act instead of showing; they are written as escapes. Cut to ``limit`` characters with "…".

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    >>> printable("abcdef", 4)
    'abc…'
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return shown if limit is None or len(shown) <= limit else shown[: max(limit - 1, 0)] + "…"


def safe_cell(text: str) -> str:
    """Text for one spreadsheet cell: never read as a formula, also where the sheet splits cells at other separators than ours.

    >>> safe_cell("=cmd()"), safe_cell("client-3")
    ("'=cmd()", 'client-3')

    Source: OWASP, "CSV Injection": a leading apostrophe marks text.
    """
    shown = _FORMULA_AFTER_SEPARATOR.sub(r"\1'", printable(text))
    return f"'{shown}" if _FORMULA_START.match(shown) else shown


def encodable(text: str, encoding: str) -> str:
    """Text as the terminal's encoding can hold it; Greek letters are spelled out where it has none.

    >>> encodable("ε = 8", "ascii")
    'epsilon = 8'
    """
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        spelled = text.replace("ε", "epsilon").replace("δ", "delta").replace("σ", "sigma").replace("…", "...")
        return spelled.encode("ascii", "backslashreplace").decode("ascii")
    return text


def number_or(value: float | None, otherwise: float) -> float:
    """The value, or ``otherwise`` where there is none or it is not a number."""
    return otherwise if value is None or math.isnan(value) else value


def percent(share: float | None) -> str:
    """A share of 1 as per cent with one decimal.

    >>> percent(0.8889), percent(None)
    ('88.9%', 'n/a')
    """
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def counted(count: int, thing: str) -> str:
    """A count with its noun.

    >>> counted(1, "round"), counted(20, "client")
    ('1 round', '20 clients')
    """
    return f"{count} {thing}{'' if count == 1 else 's'}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:.{digits}g}"


def epsilon(value: float | None) -> str:
    """An epsilon: two decimals from 1 up, three significant digits below. Rounded up, so that no claim is stronger than the number.

    >>> epsilon(7.9912), epsilon(0.07312), epsilon(float("inf")), epsilon(None)
    ('8.00', '0.0732', 'infinite', 'n/a')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    decimals = _epsilon_decimals(value)
    rounded = math.ceil(round(value * 10**decimals, 6)) / 10**decimals
    return f"{rounded:.{_epsilon_decimals(rounded)}f}"


def _epsilon_decimals(value: float) -> int:
    return 2 if value >= 1 else 2 - math.floor(math.log10(value))


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(12.34), duration(252), duration(7380)
    ('12.3 s', '4 min 12 s', '2 h 03 min')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def byte_size(count: float) -> str:
    """Bytes in decimal units.

    >>> byte_size(999), byte_size(1_234_567)
    ('999 B', '1.2 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
