"""The pages in a real browser: no error, no request, readable in light, dark, print and on a phone; nothing runs over the edge.

With ``FEDSEC_SCREENSHOTS=DIR`` every picture is left there, for people to look at.
"""

import io
import math
import os
from pathlib import Path

import pytest
from PIL import Image

from fedsec.plan.grid import NO_ATTACK, AttackGrid, Cell, base_plan
from fedsec.plan.load import load_plan
from fedsec.report.attack_page import PageFacts, write_attack_page
from fedsec.report.attack_summary import summarise
from fedsec.report.sweep_audit import gather
from fedsec.report.sweep_page import SweepFacts, render_sweep
from fedsec.report.sweep_pictures import pictures_in
from fedsec.report.sweep_plots import plot_all
from fedsec.report.sweep_summary import summarise_sweep
from fedsec.report.sweep_verdict import recommend

LOOKS = {
    "light": {},
    "dark": {"dark": True},
    "print": {"media": "print", "width": 760},
    "phone": {"width": 400},
}
CONTRAST = """(() => {
  const channel = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(v => channel(v / 255)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = colour => { const ink = light(colour); return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); };
  const words = [...document.querySelectorAll('h1, h2, p, dd, figcaption, svg text')].filter(node => !node.closest('.heat, .pick, .warn'));
  return Math.min(...words.map(node => ratio(node.closest('svg') ? getComputedStyle(node).fill : getComputedStyle(node).color)));
})()"""


def sweep_page(sweeps, folder, *, missing=0):
    grid = sweeps.grid(audits=("one-run", "loss-threshold"))
    keys = sweeps.keys(grid)
    rows, audits = sweeps.rows(grid), sweeps.audits(grid)
    summary = summarise_sweep(
        grid,
        rows[: len(rows) - missing],
        audits,
        keys=[key for (what, _), key in keys.items() if what == "run"],
        audit_keys=[key for (what, _), key in keys.items() if what != "run"],
    )
    found = gather(summary.audits)
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("L", (64, 16), 128).save(folder / "pictures" / "inversion-plain.png")
    plots = plot_all(summary, found, sweeps.plan, folder)
    facts = SweepFacts(plan=sweeps.plan, manifest={"command": "fedsec sweep"}, plots=plots, pictures=pictures_in(folder))
    path = folder / "report.html"
    path.write_text(render_sweep(summary, found, recommend(summary, found), facts), encoding="utf-8")
    return path


def attack_page(make_cell_row, folder):
    grid = AttackGrid(attacks=("alie", "ipm"), rules=("mean", "filter", "screening"), fractions=(0.1, 0.2), seeds=(1, 2, 3))
    rows = []
    for cell in grid.cells():
        base = {"mean": 0.3, "filter": 0.7, "screening": 0.85}[cell.rule]
        accuracy = 0.91 if cell.attack == NO_ATTACK else base - (cell.fraction or 0) / 2 + 0.01 * cell.seed
        facts = {name: getattr(cell, name) for name in ("attack", "rule", "fraction", "seed", "strength")}
        rows.append(make_cell_row(**facts, accuracy=accuracy))
    notes = {"attack_notes": dict.fromkeys(grid.attacks, "what it does"), "rule_notes": dict.fromkeys(grid.rules, "what it does")}
    facts = PageFacts(plan=base_plan(load_plan()), command="fedsec attack", failures=[(Cell(**facts), "exit code 7: no memory")], **notes)
    path = folder / "attack.html"
    write_attack_page(summarise(grid, rows), facts, path)
    return path


def look_at(browser, path, name):
    """Open the page in every look, check what holds in all of them, and return what differs."""
    found = {}
    for look, how in LOOKS.items():
        browser.look(**how)
        browser.open(path)
        assert browser.faults() == []
        wide, window = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window, f"{look}: {wide} pixels in a window of {window}"
        assert browser.evaluate(CONTRAST) >= 4.5, look
        assert browser.evaluate(
            "[...document.querySelectorAll('a[href^=\"#\"]')].every(link => document.getElementById(link.hash.slice(1)))"
        )
        assert browser.evaluate("document.scripts.length") == 0
        picture = browser.screenshot()
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        assert image.width == how.get("width", 1200)
        assert len(image.getcolors(1 << 24)) > 50, "an empty page"
        found[look] = image.getpixel((2, 2))
        if os.environ.get("FEDSEC_SCREENSHOTS"):
            Path(os.environ["FEDSEC_SCREENSHOTS"], f"{name}-{look}.png").write_bytes(picture)
    assert sum(found["dark"]) < 150
    assert sum(found["light"]) > 600
    assert sum(found["print"]) == 3 * 255
    assert browser.pdf().startswith(b"%PDF")
    return found


@pytest.mark.needs("chromium")
def test_the_page_of_a_sweep_reads_well_in_a_browser(browser, sweeps, tmp_path):
    look_at(browser, sweep_page(sweeps, tmp_path), "sweep")
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 6
    assert browser.evaluate("document.querySelector('figure img').naturalWidth") == 64


@pytest.mark.needs("chromium")
def test_a_partial_report_says_so_on_the_first_screen(browser, sweeps, tmp_path):
    browser.look()
    browser.open(sweep_page(sweeps, tmp_path, missing=2))
    assert browser.evaluate("document.querySelector('.warn').textContent").startswith("PARTIAL REPORT: 2 of 9 runs are missing")
    assert browser.evaluate("document.querySelector('.warn').getBoundingClientRect().bottom") < 300
    assert browser.evaluate("document.title").startswith("PARTIAL")
    assert browser.faults() == []


@pytest.mark.needs("chromium")
def test_the_page_of_a_grid_of_attacks_reads_well_in_a_browser(browser, make_cell_row, tmp_path):
    look_at(browser, attack_page(make_cell_row, tmp_path), "attack")
    assert browser.evaluate("document.querySelectorAll('.heat tbody tr').length") == 3


@pytest.mark.needs("chromium")
def test_the_browser_would_see_a_script_error_and_a_request(browser, tmp_path):
    """The test above can fail: a page with both faults is found out."""
    page = tmp_path / "bad.html"
    page.write_text('<script>undefinedThing()</script><img src="http://127.0.0.1:9/x.png">')
    browser.look()
    browser.open(page)
    faults = browser.faults()
    assert any("undefinedThing" in str(fault) for fault in faults)
    assert any("127.0.0.1:9" in str(fault) for fault in faults)
    assert math.isfinite(browser.evaluate("performance.now()"))
