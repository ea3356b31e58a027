"""One run as data: a row for each round and the result of the whole.

1. Records are frozen and check themselves when they are made, so a wrong number shows in the round that made it.
2. ``from_json`` is the strict inverse of ``to_json``: unknown or missing keys and other types are refused. One table for each record
   says how every key is written and read.
3. An epsilon is never NaN: "unknown" is None, "unbounded" is infinity, spelled ``"inf"`` in JSON. Accuracy and loss may be NaN (a
   diverged model is a result too), spelled ``"nan"``: the file is JSON for every reader, and ``float(value)`` reads both spellings.
"""

from fedsec.results.rejection import NamedClient, RejectedClient, RejectionReport
from fedsec.results.rounds import CohortRow, RoundRow, SecaggRow
from fedsec.results.run import RESULT_FORMAT, EpsilonReport, RunResult, SiteMetrics
from fedsec.results.screening import ScreeningRow

__all__ = [
    "RESULT_FORMAT",
    "CohortRow",
    "EpsilonReport",
    "NamedClient",
    "RejectedClient",
    "RejectionReport",
    "RoundRow",
    "RunResult",
    "ScreeningRow",
    "SecaggRow",
    "SiteMetrics",
]
