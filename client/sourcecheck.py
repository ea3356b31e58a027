"""Loads a site's records as a round would and says, in one JSON line, whether that works: ``fedsec.edge.source_check`` starts it by name.

What the site's own code prints goes to stderr; of the records nothing is said but how many there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

from fedsec.errors import FedsecError


def main() -> None:
    """Check the source that the argument names."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        facts = facts_of(sys.argv[1])
    answer.write(json.dumps(facts) + "\n")
    answer.close()


def facts_of(source: str) -> dict[str, object]:
    """What a round would find: how many records and classes, or what it would end with and the mend."""
    from client.localdata import load_source  # noqa: PLC0415 - its failing is an answer as well

    try:
        found = load_source(source)
    except Exception as error:  # noqa: BLE001 - of the site's code, whatever it is
        return _explained(source, error)
    return {"records": len(found.x), "test_records": len(found.x_test), "classes": found.num_classes}


def _explained(source: str, error: Exception) -> dict[str, object]:
    """What it says; the empty folder that this process runs in is nobody's business, and running elsewhere no mend."""
    text = str(error) if isinstance(error, FedsecError) else f"{source}: {type(error).__name__}: {error}"
    problem, mend = str(getattr(error, "problem", text)), str(getattr(error, "mend", "") or "")
    missing = isinstance(error.__cause__, ModuleNotFoundError)
    return {"error": problem.replace(f" in {os.getcwd()} or among", " among"), "mend": "" if missing else mend}  # noqa: PTH109


if __name__ == "__main__":
    main()
