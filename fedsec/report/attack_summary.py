"""What a grid of attacks and rules says: the mean over seeds of every setting, the worst share of attackers, the worst attack of each rule.

1. Figures come from rows alone. A setting without a finished run has no figure; one that lacks some of its runs says how many.
2. The worst of what ended is an upper bound as long as something is missing: it can only get lower.
3. An accuracy that is not a number (a diverged model) counts as 0 and is counted.
4. A lowest mean of several is lower than what a new set of seeds would give: no interval here accounts for the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedsec.plan.grid import NO_ATTACK, AttackGrid, Cell
from fedsec.plan.robust import UNDEFENDED
from fedsec.report.attack_rows import CellRow
from fedsec.report.intervals import half_width


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One setting, all its seeds.

    Attributes:
        rule: name.
        attack: name, "none" without one.
        fraction: share of attackers; None without an attack.
        rows: of the runs that ended, at least one, by seed.
        missing: runs behind this figure that did not end: of the setting, or of all settings of which it is the worst.
    """

    rule: str
    attack: str
    fraction: float | None
    rows: tuple[CellRow, ...]
    missing: int

    @property
    def accuracies(self) -> list[float]:
        """One for each seed, 0 where the model diverged."""
        return [0.0 if math.isnan(row.accuracy) else row.accuracy for row in self.rows]

    @property
    def diverged(self) -> int:
        """Runs whose accuracy is not a number."""
        return sum(math.isnan(row.accuracy) for row in self.rows)

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean over seeds; None under three seeds, or while a run is missing."""
        return None if self.missing else half_width(self.accuracies)

    def mean_of(self, read: Callable[[CellRow], float | None]) -> float | None:
        """Mean over the seeds that have this figure; None if none has."""
        known = [value for value in map(read, self.rows) if value is not None and not math.isnan(value)]
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A grid and what ended of it.

    Attributes:
        grid: what was asked for.
        rows: of the cells of this grid that ended, in the order of the cells.
        missing: cells without a row.
        figures: (rule, attack, fraction) → figure, where a run ended.
    """

    grid: AttackGrid
    rows: tuple[CellRow, ...]
    missing: tuple[Cell, ...]
    figures: Mapping[tuple[str, str, float | None], Figure]

    def no_attack(self, rule: str) -> Figure | None:
        """A rule where nobody attacks."""
        return self.figures.get((rule, NO_ATTACK, None))

    def cell(self, rule: str, attack: str) -> Figure | None:
        """A rule under an attack, at the share of attackers that leaves least."""
        return self._lowest(rule, [attack])

    def worst(self, rule: str) -> Figure | None:
        """A rule under the attack, and the share of attackers, that leave least."""
        return self._lowest(rule, self.grid.attacks)

    def best_rules(self) -> list[Figure]:
        """Worst cases of the rules that keep most in their worst case: one, or several that keep the very same."""
        known = [figure for figure in map(self.worst, self.grid.rules) if figure is not None]
        most = max((figure.accuracy for figure in known), default=0.0)
        return [figure for figure in known if figure.accuracy == most]

    def damage(self, attack: str) -> float | None:
        """What an attack takes, in accuracy, on average over the rules that reject; over the mean if there is no other."""
        rules = [rule for rule in self.grid.rules if rule != UNDEFENDED] or [UNDEFENDED]
        lost = []
        for rule in rules:
            clean, hit = self.no_attack(rule), self.cell(rule, attack)
            if clean is not None and hit is not None:
                lost.append(clean.accuracy - hit.accuracy)
        return statistics.fmean(lost) if lost else None

    def _lowest(self, rule: str, attacks: Sequence[str]) -> Figure | None:
        settings = [(rule, attack, fraction) for attack in attacks for fraction in self.grid.fractions]
        known = [self.figures[setting] for setting in settings if setting in self.figures]
        if not known:
            return None
        lowest = min(known, key=lambda figure: figure.accuracy)
        missing = len(settings) * len(self.grid.seeds) - sum(len(figure.rows) for figure in known)
        return Figure(rule=rule, attack=lowest.attack, fraction=lowest.fraction, rows=lowest.rows, missing=missing)


def summarise(grid: AttackGrid, rows: Iterable[CellRow]) -> Summary:
    """Sort rows into the grid; rows of other grids are left out."""
    by_cell = {row.cell: row for row in rows}
    cells = grid.cells()
    ended = tuple(by_cell[cell] for cell in cells if cell in by_cell)
    settings: dict[tuple[str, str, float | None], list[CellRow]] = {}
    for row in ended:
        settings.setdefault((row.rule, row.attack, row.fraction), []).append(row)
    figures = {
        (rule, attack, fraction): Figure(
            rule=rule, attack=attack, fraction=fraction, rows=tuple(found), missing=len(grid.seeds) - len(found)
        )
        for (rule, attack, fraction), found in settings.items()
    }
    return Summary(grid=grid, rows=ended, missing=tuple(cell for cell in cells if cell not in by_cell), figures=figures)
