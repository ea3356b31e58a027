"""docs/wire-format.md says what the code writes: its tables are made from the records' own fields.

``python tests/secagg/test_wire_format_page.py --write`` puts them there.
"""

import inspect
import sys
from pathlib import Path

from fedsec.flower import secure_records
from fedsec.secagg import config, evidence_record, messages, wire
from fedsec.secagg.labels import Label, SignLabel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "wire-format.md"
BEGIN, END = "<!-- made by tests/secagg/test_wire_format_page.py -->", "<!-- end -->"
MODULES = (config, messages, evidence_record, secure_records)


def form(codec) -> str:  # noqa: PLR0911 - one line a kind
    match codec:
        case wire.UInt(width=width):
            return f"u{8 * width}"
        case wire.Float():
            return "f64"
        case wire.Fixed(length=length):
            return f"{length} bytes"
        case wire.Blob(limit=limit):
            return f"u32 length, ≤ {limit:,} bytes"
        case wire.Text(limit=limit):
            return f"u32 length, ≤ {limit} bytes of UTF-8"
        case wire.ListOf(item=item, limit=limit):
            return f"u16 count ≤ {limit:,}, of ({form(item)})"
        case wire.Part(kind=kind):
            return f"`{kind.__name__}`"
    raise TypeError(codec)


def kinds():
    found = {}
    for module in MODULES:
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, wire.Parted) and "FIELDS" in vars(kind):
                found[kind.__name__] = kind
    return found


def table(kind) -> list[str]:
    mark = f"type {kind.TYPE}" if issubclass(kind, wire.Record) else "part"
    lines = [f"**{kind.__name__}** ({mark})", "", "| field | form |", "|---|---|"]
    return [*lines, *(f"| {name} | {form(codec)} |" for name, codec in kind.FIELDS), ""]


def render() -> str:
    found = kinds()
    records = sorted((kind for kind in found.values() if issubclass(kind, wire.Record)), key=lambda kind: kind.TYPE)
    parts = sorted((kind for kind in found.values() if not issubclass(kind, wire.Record)), key=lambda kind: kind.__name__)
    lines = ["## Records", "", *(line for kind in records for line in table(kind)), "## Parts", ""]
    lines += [line for kind in parts for line in table(kind)]
    lines += ["## Labels of hashes and keys", "", *(f"* `{label}`" for label in Label), ""]
    lines += ["## Labels of signatures", "", *(f"* `{label}`" for label in SignLabel)]
    return "\n".join(lines)


def test_the_page_is_what_the_code_writes():
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == render().strip()


def test_no_two_records_share_a_type():
    types = [kind.TYPE for kind in kinds().values() if issubclass(kind, wire.Record)]
    assert len(types) == len(set(types))


if __name__ == "__main__" and "--write" in sys.argv:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{render()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
