"""A matplotlib figure as SVG inside a page: no network, no script, readable in light and dark.

1. Text stays text: it can be searched, and follows the reader's fonts.
2. Ink, grey, grid and series colours become the page's own variables, so that the picture changes with the page.
3. Identifiers carry the picture's name: several pictures stand in one page without clashing.
4. The same figure gives the same bytes: no date, no random identifiers.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fedsec.report import figures

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe and Ito 2008, and two more; the page has a variable for each."""
_VARIABLES = {
    figures.INK: "--ink",
    figures.GREY: "--soft",
    figures.PALE: "--line",
    **{colour: f"--c{index}" for index, colour in enumerate(SERIES)},
}
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"')


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element.

    Args:
        figure: drawn inside ``fedsec.report.figures.canvas``.
        name: distinct on the page; letters, digits and hyphens.
        alt: what a reader who cannot see it is told.
    """
    buffer = io.BytesIO()
    settings: Any = mpl.rcParams
    settings.update({"svg.fonttype": "none", "svg.hashsalt": name})
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = _METADATA.sub("", _PROLOGUE.sub("", buffer.getvalue().decode("utf-8")))
    drawn = _SIZE.sub(r"\1", drawn, count=1)
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", drawn)
    for colour, variable in _VARIABLES.items():
        drawn = re.sub(rf"(?<=: ){re.escape(colour)}(?=[;\"])", f"var({variable})", drawn, flags=re.IGNORECASE)
    drawn = drawn.replace("'DejaVu Sans'", "system-ui, sans-serif")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{_attribute(alt)}" ', 1).strip()


def _attribute(words: str) -> str:
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
