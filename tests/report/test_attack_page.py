"""The page about a grid: every figure comes from a row, nothing hostile acts, and a part of a grid never passes for the whole."""

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.plan.grid import NO_ATTACK, AttackGrid, Cell, base_plan
from fedsec.plan.load import load_plan
from fedsec.report.attack_page import PageFacts, render, write_attack_page
from fedsec.report.attack_summary import summarise
from fedsec.report.attack_words import sentences
from fedsec.report.heatmap import BLACK, WHITE, colour, luminance, plot_heat_map, write_cells_csv, write_heat_map_csv

PLAN = base_plan(load_plan())
ACCURACY = {
    ("mean", NO_ATTACK): 0.91, ("mean", "alie"): 0.64, ("mean", "ipm"): 0.08,
    ("screening", NO_ATTACK): 0.89, ("screening", "alie"): 0.72, ("screening", "ipm"): 0.86,
    ("filter", NO_ATTACK): 0.90, ("filter", "alie"): 0.61, ("filter", "ipm"): 0.83,
}  # fmt: skip


class Page(HTMLParser):
    """Tables as lists of lines of cells; text; tags with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.words, self.tags, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f"{data.strip()} "

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def table(self, *heading):
        """The table whose first line starts so, without it."""
        for lines in self.tables:
            if [cell.strip() for cell in lines[0]][: len(heading)] == list(heading):
                return [[cell.strip() for cell in line] for line in lines[1:]]
        raise AssertionError(f"no table {heading}")


def grid_of(**changes):
    values = {"attacks": ("alie", "ipm"), "rules": ("mean", "screening", "filter"), "fractions": (0.2,), "seeds": (1,)}
    return AttackGrid(**(values | changes))


def rows_of(grid, make_cell_row, accuracy=lambda cell: ACCURACY[cell.rule, cell.attack]):
    def row(cell):
        clean = {"num_attackers": None, "precision": None, "recall": None} if cell.attack == NO_ATTACK else {}
        facts = {"attack": cell.attack, "rule": cell.rule, "fraction": cell.fraction, "seed": cell.seed}
        return make_cell_row(**facts, accuracy=accuracy(cell), **clean)

    return [row(cell) for cell in grid.cells()]


def facts_of(**changes):
    values = {
        "plan": PLAN,
        "command": "fedsec attack --attacks alie,ipm",
        "attack_notes": {"alie": "μ + z·σ", "ipm": "−ε·μ"},
        "rule_notes": {"mean": "no defence"},
    }
    return PageFacts(**(values | changes))


def page_of(grid, rows, **changes):
    return Page(render(summarise(grid, rows), facts_of(**changes)))


def test_the_map_shows_every_row_in_its_place(make_cell_row):
    grid = grid_of()
    page = page_of(grid, rows_of(grid, make_cell_row))
    lines = page.table("rule", "no attack", "alie", "ipm", "worst case")
    assert [line[0].split(" (")[0] for line in lines] == ["mean", "screening", "filter"]
    for line in lines:
        rule = line[0].split(" (")[0]
        shown = [f"{100 * ACCURACY[rule, attack]:.1f}%" for attack in (NO_ATTACK, "alie", "ipm")]
        assert [cell.split()[0] for cell in line[1:4]] == shown
        worst = min(("alie", "ipm"), key=lambda attack: ACCURACY[rule, attack])
        assert line[4].split() == [f"{100 * ACCURACY[rule, worst]:.1f}%", worst]


def test_the_first_paragraph_says_what_matters(make_cell_row):
    grid = grid_of()
    said = " ".join(sentences(summarise(grid, rows_of(grid, make_cell_row)), failed=0, most_suspects=5))
    assert "2 attacks by 20% of 20 clients, against 3 rules, with 1 seed: 9 runs" in said
    assert "In the worst case screening keeps most: accuracy is 72.0%, under alie; without a rule (mean) it is 8.0%, under ipm." in said
    # alie takes 17 points from screening and 29 from filter, ipm 3 and 7
    assert "The attack that hurts most is alie: it takes 23.0 points of accuracy on average over the rules that reject." in said
    assert (
        "With nobody attacking, screening reaches 89.0% and mean 91.0%: the rule costs 2.0 points, and leaves out 1.0% of the honest updates."
        in said
    )
    assert "No interval is given: it takes 3 seeds, and this grid has 1." in said
    assert "not complete" not in said
    assert said in page_of(grid, rows_of(grid, make_cell_row)).text


def test_more_attackers_than_a_rule_may_suspect_are_pointed_out(make_cell_row):
    grid = grid_of()
    rows = rows_of(grid, make_cell_row)
    assert "may suspect" not in " ".join(sentences(summarise(grid, rows), failed=0, most_suspects=4))
    said = " ".join(sentences(summarise(grid, rows), failed=0, most_suspects=3))
    assert "With 4 attackers there are more than the 3 clients that a rule may suspect here." in said


def test_where_no_rule_helps_it_says_so(make_cell_row):
    grid = grid_of()
    rows = rows_of(grid, make_cell_row, lambda cell: 0.9 if cell.rule == "mean" else 0.5)
    said = " ".join(sentences(summarise(grid, rows), failed=0, most_suspects=5))
    assert "No rule kept more in its worst case than mean, which rejects nobody: 90.0%" in said
    assert "No attack took any accuracy" in said
    alone = grid_of(rules=("mean",))
    assert "from mean" in " ".join(sentences(summarise(alone, rows_of(alone, make_cell_row)), failed=0, most_suspects=5))


def test_rules_that_keep_the_same_share_the_first_place(make_cell_row):
    grid = grid_of()
    rows = rows_of(grid, make_cell_row, lambda cell: 0.3 if cell.rule == "mean" else 0.8)
    assert "In the worst case screening and filter keep most: accuracy is 80.0%" in " ".join(
        sentences(summarise(grid, rows), failed=0, most_suspects=5)
    )


def test_a_part_of_a_grid_never_passes_for_the_whole(make_cell_row):
    grid = grid_of()
    lost = {("screening", "ipm"), ("filter", NO_ATTACK)}
    rows = [row for row in rows_of(grid, make_cell_row) if (row.rule, row.attack) not in lost]
    fault = (Cell(attack="ipm", rule="screening", fraction=0.2, seed=1), "exit code 1: error: out of <memory>\nlast words")
    page = page_of(grid, rows, failures=[fault])
    assert "This grid is not complete: 2 of 9 runs are missing, 1 of them failed." in page.text
    assert "accuracy is at most 72.0%" in page.text
    lines = {line[0].split(" (")[0]: line for line in page.table("rule", "no attack")}
    assert lines["screening"][3].startswith("–")
    assert lines["screening"][4] == "≤ 72.0% alie 1 run missing"
    assert lines["filter"][1].startswith("–")
    assert "missing" not in lines["mean"][4]
    assert "out of <memory>" in page.text
    assert "last words" in page.text
    assert "ipm by 20%, screening, seed 1" in page.text
    assert "no attack, filter, seed 1" in page.text
    assert {"class": "lead warn"} in [attributes for tag, attributes in page.tags if tag == "p"]


def test_a_grid_of_which_nothing_ended_says_only_that(make_cell_row):
    grid = grid_of()
    page = page_of(grid, [])
    assert "9 of 9 runs are missing" in page.text
    assert "keeps most" not in page.text
    assert "hurts most is" not in page.text


def test_the_worst_share_of_attackers_counts_and_is_named(make_cell_row):
    grid = grid_of(fractions=(0.1, 0.2, 0.3))
    rows = rows_of(
        grid, make_cell_row, lambda cell: ACCURACY[cell.rule, cell.attack] - {0.1: 0.0, 0.2: 0.05, 0.3: 0.01, None: 0.0}[cell.fraction]
    )
    page = page_of(grid, rows)
    lines = {line[0].split(" (")[0]: line for line in page.table("rule", "no attack")}
    assert lines["screening"][2] == "67.0% by 20%"
    assert lines["screening"][4] == "67.0% alie by 20%"
    shares = {(line[0], line[1]): line[2:] for line in page.table("rule", "attack", "10%", "20%", "30%")}
    assert shares["filter", "ipm"] == ["83.0%", "78.0%", "82.0%"]


def test_intervals_come_with_three_seeds_and_are_students(make_cell_row):
    spread = {1: -0.02, 2: 0.0, 3: 0.02}
    for seeds, shown in (((1, 2), False), ((1, 2, 3), True)):
        grid = grid_of(seeds=seeds)
        page = page_of(grid, rows_of(grid, make_cell_row, lambda cell: ACCURACY[cell.rule, cell.attack] - 0.03 + spread[cell.seed]))
        heat = page.table("rule", "no attack")
        assert (sum("±" in cell for line in heat for cell in line) == 12) == shown
        assert any("±" in cell for line in heat for cell in line) == shown
        assert ("No interval is given" in page.text) != shown
    # standard error 0.02/√3, t = 4.3027
    assert f"± {100 * 4.302653 * 0.02 / math.sqrt(3):.1f}" in heat[0][1]


def test_a_best_rule_that_the_seeds_do_not_tell_from_another_is_said_to_be_so(make_cell_row):
    grid = grid_of(seeds=(1, 2, 3))
    for spread, apart in ((0.001, True), (0.02, False)):
        shift = {1: -spread, 2: 0.0, 3: spread}
        rows = rows_of(grid, make_cell_row, lambda cell, shift=shift: 0.5 * ACCURACY[cell.rule, cell.attack] + 0.2 + shift[cell.seed])
        said = " ".join(sentences(summarise(grid, rows), failed=0, most_suspects=5))
        assert ("The intervals of screening and filter overlap" in said) != apart, said


def test_three_seeds_of_which_one_is_missing_give_no_interval(make_cell_row):
    grid = grid_of(seeds=(1, 2, 3))
    rows = [row for row in rows_of(grid, make_cell_row) if (row.rule, row.attack, row.seed) != ("filter", "ipm", 2)]
    line = page_of(grid, rows).table("rule", "no attack")[2]
    assert "±" not in line[3]
    assert "1 run missing" in line[3]
    assert "±" in line[2]


def test_a_diverged_model_counts_as_nothing_kept(make_cell_row):
    grid = grid_of()
    rows = rows_of(
        grid, make_cell_row, lambda cell: math.nan if (cell.rule, cell.attack) == ("mean", "alie") else ACCURACY[cell.rule, cell.attack]
    )
    line = page_of(grid, rows).table("rule", "no attack")[0]
    assert line[2] == "0.0% 1 diverged"
    assert line[4].startswith("0.0% alie")


def test_precision_and_recall_stand_where_results_have_them(make_cell_row):
    grid = grid_of(seeds=(1, 2))
    rows = []
    for row in rows_of(grid, make_cell_row):
        if row.rule == "mean":
            rows.append(replace(row, precision=None, recall=None, honest_rate=None))
        elif row.attack == "alie" and row.seed == 2:
            rows.append(replace(row, precision=0.5, recall=0.4, attack_success=0.25))
        else:
            rows.append(row)
    page = page_of(grid, rows)
    lines = {(line[0], line[1]): line[2:] for line in page.table("rule", "attack", "attackers", "precision", "recall")}
    assert not any(rule == "mean" for rule, _ in lines)
    assert lines["screening", "alie"] == ["20% (4 of 20)", "70.0%", "60.0%", "1.0%", "25.0%"]
    assert lines["filter", "ipm"] == ["20% (4 of 20)", "90.0%", "80.0%", "1.0%", "n/a"]
    assert lines["screening", "no attack"] == ["0", "n/a", "n/a", "1.0%", "n/a"]
    assert "How far alie reached an aim of its own" in page.text


def test_the_chart_is_drawn_to_scale(make_cell_row):
    grid = grid_of()
    page = page_of(grid, rows_of(grid, make_cell_row))
    ticks = {round(float(tag["x1"])): index for index, (name, tag) in enumerate(page.tags) if name == "line" and tag["class"] == "axis"}
    zero, full = min(ticks), max(ticks)
    worst = [float(tag["cx"]) for name, tag in page.tags if name == "circle" and tag["class"] == "worst" and tag["r"] == "7"]
    assert [(x - zero) / (full - zero) for x in worst] == pytest.approx([0.08, 0.72, 0.61], abs=0.002)
    clean = [float(tag["x"]) + 6 for name, tag in page.tags if name == "rect" and float(tag["x"]) > 430]
    assert [(x - zero) / (full - zero) for x in clean] == pytest.approx([0.91, 0.89, 0.90], abs=0.002)


def test_the_page_asks_nothing_of_the_network(make_cell_row):
    grid = grid_of()
    html = render(summarise(grid, rows_of(grid, make_cell_row)), facts_of())
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "image", "use", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "href", "xlink:href", "action") or name.startswith("on")
    ]
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html
    policy = next(tag["content"] for name, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_settings_versions_plan_and_command_are_there(make_cell_row):
    grid = grid_of()
    page = page_of(grid, rows_of(grid, make_cell_row))
    for words in (
        "20 clients, 20 rounds",
        "digits, dirichlet with α = 1",
        "ε = 8 at δ = 0.001",
        "7.99",
        "on: rules see sketches",
        "fedsec 0.1.0",
        "python 3.11",
    ):
        assert words in page.text, words
    assert "fedsec attack --attacks alie,ipm" in page.text
    assert "learning_rate = 3.0" in page.text
    assert "μ + z·σ" in page.text
    runs = page.table("attack", "rule", "attackers", "seed", "accuracy")
    assert [line[4] for line in runs] == [f"{100 * row.accuracy:.1f}%" for row in rows_of(grid, make_cell_row)]


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</pre></style><b>", "{{ 7 * 7 }}", "\x1b[31mred\u202egnp", "a\nb\x00c", "'; --"]  # fmt: skip


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_show_and_never_act(make_cell_row, words):
    grid = grid_of()
    rows = [replace(row, versions={words: words}, fedsec_version=words) for row in rows_of(grid, make_cell_row)]
    plan = PLAN.model_copy(update={"name": words})
    fault = (Cell(attack="alie", rule="mean", fraction=0.2, seed=1), words)
    facts = {
        "plan": plan,
        "command": words,
        "failures": [fault],
        "attack_notes": dict.fromkeys(grid.attacks, words),
        "rule_notes": {"mean": words},
    }
    html = render(summarise(grid, rows), facts_of(**facts))
    plain = render(summarise(grid, rows_of(grid, make_cell_row)), facts_of(failures=[(fault[0], "x")], rule_notes={"mean": "x"}))
    page = Page(html)
    shape = [tag for tag, _ in Page(plain).tags if tag != "b"]
    assert [tag for tag, _ in page.tags if tag != "b"] == shape, "the words made or broke an element"
    assert not [char for char in html if not (char.isprintable() or char == "\n")]
    if words.isprintable():
        assert " ".join(words.split()) in page.text
    assert not (words == "{{ 7 * 7 }}" and re.search(r"\b49\b", page.text))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=120))
def test_any_name_gives_a_page_of_the_same_shape(make_cell_row, name):
    grid = grid_of(rules=("mean",), attacks=("alie",))
    rows = rows_of(grid, make_cell_row)
    tags = [tag for tag, _ in page_of(grid, rows).tags]
    assert [tag for tag, _ in page_of(grid, rows, plan=PLAN.model_copy(update={"name": name})).tags] == tags


def test_the_page_is_the_same_twice_and_lands_whole(make_cell_row, tmp_path):
    grid = grid_of()
    summary = summarise(grid, rows_of(grid, make_cell_row))
    write_attack_page(summary, facts_of(), tmp_path / "attack.html")
    assert (tmp_path / "attack.html").read_text(encoding="utf-8") == render(summary, facts_of())
    assert [path.name for path in tmp_path.iterdir()] == ["attack.html"]


def test_rows_of_other_grids_are_left_out(make_cell_row):
    grid = grid_of()
    others = [
        make_cell_row(attack="mimic"),
        make_cell_row(seed=9),
        make_cell_row(fraction=0.3),
        make_cell_row(strength=4.0),
        make_cell_row(rule="krum"),
    ]
    rows = rows_of(grid, make_cell_row)
    assert summarise(grid, [*others, *rows]).rows == tuple(rows)


# --- CSV, PNG, colours ------------------------------------------------------------------------------------------------------------


def test_the_csv_of_the_map_holds_what_the_map_shows(make_cell_row, tmp_path):
    grid = grid_of()
    rows = [row for row in rows_of(grid, make_cell_row) if (row.rule, row.attack) != ("filter", "ipm")]
    write_heat_map_csv(summarise(grid, rows), tmp_path / "map.csv")
    lines = {line["rule"]: line for line in csv.DictReader((tmp_path / "map.csv").open())}
    assert list(lines) == ["mean", "screening", "filter"]
    for rule, line in lines.items():
        for column, attack in (("no attack", NO_ATTACK), ("alie", "alie"), ("ipm", "ipm")):
            expected = "" if (rule, attack) == ("filter", "ipm") else repr(ACCURACY[rule, attack])
            assert line[column] == expected
    assert (lines["screening"]["worst case"], lines["screening"]["worst attack"], lines["screening"]["worst fraction"]) == (
        "0.72",
        "alie",
        "0.2",
    )
    assert [line["runs missing"] for line in lines.values()] == ["0", "0", "1"]


def test_the_csv_of_the_runs_has_a_line_for_each(make_cell_row, tmp_path):
    grid = grid_of(seeds=(1, 2))
    rows = rows_of(grid, make_cell_row)
    write_cells_csv(summarise(grid, rows), tmp_path / "cells.csv")
    lines = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert [(line["attack"], line["rule"], line["seed"], line["accuracy"]) for line in lines] == [
        (row.attack, row.rule, str(row.seed), repr(row.accuracy)) for row in rows
    ]
    assert (lines[0]["fraction"], lines[0]["precision"]) == ("", "")


@pytest.mark.parametrize("missing", [0, 2, 9])
def test_the_picture_is_drawn_whole_or_in_part_and_the_same_twice(make_cell_row, tmp_path, missing):
    grid = grid_of()
    rows = rows_of(grid, make_cell_row)
    summary = summarise(grid, rows[missing:])
    for name in ("a.png", "b.png"):
        plot_heat_map(summary, tmp_path / name, title="$\\frac{x}$ \x1b[31m" + "long " * 60)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@given(st.floats(0, 1), st.floats(0.05, 1))
def test_every_cell_can_be_read(accuracy, top):
    background, ink = colour(accuracy, top)
    light, dark = sorted((luminance(background), luminance(ink)), reverse=True)
    assert ink in (WHITE, BLACK)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_more_accuracy_is_a_colour_further_along():
    blues = [int(colour(share / 20, 0.9)[0][5:], 16) for share in range(10)]
    reds = [int(colour(share / 20, 0.9)[0][1:3], 16) for share in range(10, 19)]
    assert blues == sorted(blues)
    assert reds == sorted(reds, reverse=True)
    assert colour(0.9, 0.9) == colour(1.0, 0.9)
