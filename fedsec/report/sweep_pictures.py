"""Pictures that attacks left in a sweep's folder (``pictures/*.png``), inside the page.

1. A picture is shown with what its name says, or with the line that ``pictures/captions.json`` gives for it.
2. Only real PNG files, of limited size and number: the page stays one file that a mail can carry.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

MOST_PICTURES = 12
MOST_BYTES = 200_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        name: of its file, without the ending.
        caption: what it shows.
        source: ``data:`` address.
    """

    name: str
    caption: str
    source: str


def pictures_in(folder: Path) -> list[Picture]:
    """The pictures of a sweep's folder, by name; none where there is no such folder."""
    captions = _captions(folder / "pictures" / "captions.json")
    found = []
    for path in sorted((folder / "pictures").glob("*.png"))[:MOST_PICTURES]:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if data.startswith(_PNG) and len(data) <= MOST_BYTES:
            name = path.stem
            source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
            found.append(Picture(name=name, caption=captions.get(name, name.replace("-", " ").replace("_", " ")), source=source))
    return found


def _captions(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(line) for name, line in value.items()} if isinstance(value, dict) else {}
