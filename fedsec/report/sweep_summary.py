"""What the rows of a sweep say: means over seeds with intervals, for the whole, each class, each site; and differences to the run without privacy.

1. Figures come from rows alone, and keep them: every number can be traced to the digests of its rows.
2. Under three seeds there is no interval. A figure that lacks a seed has none either, and says how many are missing.
3. The price of privacy is a difference between runs of the same seed: what the seed moves in both cancels out.
4. An accuracy that is not a number (a diverged model) counts as 0 and is counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedsec.plan.arms import ALL, Arm
from fedsec.plan.sweep import Point, SweepGrid
from fedsec.report.intervals import half_width
from fedsec.report.sweep_rows import AuditRow, SiteRow, UtilityRow

Read = Callable[[UtilityRow], float | None]
Series = tuple[tuple[tuple[str, str], ...], Arm]
MOST_GROUPS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: a mean over seeds.

    Attributes:
        values: one for each seed that has it, by seed.
        rows: that they come from.
        missing: seeds without a row.
    """

    values: tuple[float, ...]
    rows: tuple[UtilityRow, ...]
    missing: int = 0

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval; None under three seeds, or while a run is missing."""
        return None if self.missing else half_width(self.values)

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval of a share, cut to what a share can be; None where there is none."""
        return None if self.half_width is None else (max(self.mean - self.half_width, 0.0), min(self.mean + self.half_width, 1.0))

    @property
    def digests(self) -> tuple[str, ...]:
        """Of its rows."""
        return tuple(dict.fromkeys(row.digest for row in self.rows))


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the test records, or of the sites.

    Attributes:
        kind: "class", "site" or "size".
        name: of it.
        read: its figure in one row.
        tests: test records of it, over the first row; 0 where unknown.
    """

    kind: str
    name: str
    read: Read
    tests: int


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """A sweep and what ended of it.

    Attributes:
        grid: what was asked for.
        rows: of the points that ended, in the order of the points.
        missing: points without a row.
        audits: rows of audits of this sweep.
        audits_missing: audits without a row.
        others: rows in the file that belong to other sweeps.
    """

    grid: SweepGrid
    rows: tuple[UtilityRow, ...]
    missing: tuple[Point, ...]
    audits: tuple[AuditRow, ...]
    audits_missing: int
    others: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.audits_missing

    @property
    def main(self) -> Series:
        """The series that the first page is about: the first choice of every varied setting, all layers."""
        return self.grid.choices()[0], ALL

    @property
    def series(self) -> list[Series]:
        """All of them, the main one first."""
        return list(dict.fromkeys(point.series for point in self.grid.points()))

    @property
    def finite(self) -> tuple[float, ...]:
        """Epsilons with privacy, rising."""
        return tuple(epsilon for epsilon in self.grid.epsilons if math.isfinite(epsilon))

    @property
    def is_personal(self) -> bool:
        """Whether the main runs keep parameters at the sites and measure them."""
        found = self.at(self.main, None)
        return bool(found) and all(row.personal_mean is not None for row in found)

    def merit(self, row: UtilityRow) -> float:
        """The figure of merit: test accuracy, or the mean over the sites where they have parameters of their own; 0 if diverged.

        A series without such parameters beside one with them is measured alike: the shared model at each site, each site counting the same.
        """
        if self.is_personal and row.sites:
            return _known(statistics.fmean(_site_figure(site, is_personal=True) for site in row.sites))
        return _known(row.accuracy)

    def at(self, series: Series, epsilon: float | None) -> list[UtilityRow]:
        """Rows of one epsilon of a series, by seed; with None of all its epsilons."""
        found = [row for row in self.rows if row.point.series == series and epsilon in (None, row.target)]
        return sorted(found, key=lambda row: row.seed)

    def figure(self, series: Series, epsilon: float, read: Read | None = None) -> Figure | None:
        """Mean over seeds of what ``read`` finds (the figure of merit if left out); None where no row has it."""
        rows = self.at(series, epsilon)
        found = [(value, row) for row in rows if (value := (read or self.merit)(row)) is not None]
        if not found:
            return None
        values = tuple(0.0 if math.isnan(value) else value for value, _ in found)
        return Figure(values=values, rows=tuple(row for _, row in found), missing=len(self.grid.seeds) - len(found))

    def price(self, series: Series, epsilon: float, read: Read | None = None) -> Figure | None:
        """What privacy costs at this epsilon: without minus with, for the same seed; None where no seed has both."""
        return self.difference(series, epsilon, series, math.inf, read)

    def difference(self, series: Series, epsilon: float, other: Series, at: float, read: Read | None = None) -> Figure | None:
        """How much ``other`` at ``at`` lies above ``series`` at ``epsilon``, paired by seed."""
        reader = read or self.merit
        below = {row.seed: row for row in self.at(series, epsilon)}
        values, rows = [], []
        for row in self.at(other, at):
            high, low = reader(row), reader(below[row.seed]) if row.seed in below else None
            if high is not None and low is not None:
                values.append(_known(high) - _known(low))
                rows += [below[row.seed], row]
        if not values:
            return None
        return Figure(values=tuple(values), rows=tuple(rows), missing=len(self.grid.seeds) - len(values))

    def diverged(self, series: Series, epsilon: float) -> int:
        """Runs whose accuracy is not a number."""
        return sum(math.isnan(row.accuracy) for row in self.at(series, epsilon))

    @property
    def majority(self) -> Figure | None:
        """Always naming the commonest class; where sites have their own parameters, each its own commonest, on average over the sites."""
        if self.is_personal:
            return self._baseline(lambda row: statistics.fmean(site.majority for site in row.sites))
        return self._baseline(lambda row: row.majority_accuracy)

    @property
    def alone(self) -> Figure | None:
        """Each site with a model of its own records alone, on average over the sites; None where it was not measured."""

        def read(row: UtilityRow) -> float | None:
            known = [site.local for site in row.sites if site.local is not None]
            return statistics.fmean(known) if known and len(known) == len(row.sites) else None

        return self._baseline(read)

    def _baseline(self, read: Read) -> Figure | None:
        """A figure that no training moves: one value a seed."""
        by_seed = {row.seed: (value, row) for row in self.at(self.main, None) if (value := read(row)) is not None}
        found = list(by_seed.values())
        return Figure(values=tuple(value for value, _ in found), rows=tuple(row for _, row in found)) if found else None

    def classes(self) -> list[Slice]:
        """One slice a class."""
        rows = self.at(self.main, None)
        if not rows:
            return []
        names = rows[0].class_names
        return [
            Slice(kind="class", name=name, read=lambda row, place=index: row.recall[place], tests=rows[0].class_tests[index])  # type: ignore[misc]
            for index, name in enumerate(names)
            if all(len(row.recall) == len(names) for row in rows)
        ]

    @property
    def has_lasting_sites(self) -> bool:
        """Whether a site is the same one in every seed, as a hospital is; a simulated client is dealt other records by each seed."""
        dealt = {tuple((site.name, site.train, site.test) for site in row.sites) for row in self.at(self.main, None)}
        return len(dealt) == 1 and (len(self.grid.seeds) > 1 or not any(name.startswith("client ") for name, _, _ in next(iter(dealt))))

    def sites(self) -> list[Slice]:
        """One slice a site; where each seed deals anew, the worst-off, the middle and the best-off site of each run, and thirds by size."""
        rows = self.at(self.main, None)
        if not any(row.sites for row in rows):
            return []
        if not self.has_lasting_sites:
            ranked = [
                Slice(kind="site", name=name, read=self._rank_reader(share), tests=0)
                for name, share in (("worst-off site of each run", 0.0), ("middle site", 0.5), ("best-off site", 1.0))
            ]
            return [*ranked, *self.sizes()]
        return [Slice(kind="site", name=site.name, read=self._site_reader(site.name), tests=site.test) for site in rows[0].sites]

    def sizes(self) -> list[Slice]:
        """Sites in thirds by their number of training records, in each row anew; empty under six sites."""
        rows = self.at(self.main, None)
        if not rows or min(len(row.sites) for row in rows) < 2 * MOST_GROUPS:
            return []
        names = ("smallest third of the sites", "middle third", "largest third")
        return [Slice(kind="size", name=name, read=_size_reader(place), tests=0) for place, name in enumerate(names)]

    def _rank_reader(self, share: float) -> Read:
        def read(row: UtilityRow) -> float | None:
            ordered = sorted(_site_figure(site, is_personal=self.is_personal) for site in row.sites)
            return ordered[round(share * (len(ordered) - 1))] if ordered else None

        return read

    def hardest_hit(self, epsilon: float) -> Figure | None:
        """What the site that loses most loses, in each seed anew: its accuracy without privacy minus that with it."""
        below = {row.seed: row for row in self.at(self.main, epsilon)}
        values, rows = [], []
        for row in self.at(self.main, math.inf):
            other = below.get(row.seed)
            if other is None or [site.name for site in other.sites] != [site.name for site in row.sites] or not row.sites:
                continue
            losses = [
                _site_figure(high, is_personal=self.is_personal) - _site_figure(low, is_personal=self.is_personal)
                for high, low in zip(row.sites, other.sites, strict=True)
            ]
            values.append(max(losses))
            rows += [other, row]
        return Figure(values=tuple(values), rows=tuple(rows), missing=len(self.grid.seeds) - len(values)) if values else None

    def _site_reader(self, name: str) -> Read:
        def read(row: UtilityRow) -> float | None:
            found = next((site for site in row.sites if site.name == name), None)
            return None if found is None else _site_figure(found, is_personal=self.is_personal)

        return read


def _site_figure(site: SiteRow, *, is_personal: bool) -> float:
    return site.personal if is_personal and site.personal is not None else site.accuracy


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _size_reader(place: int) -> Read:
    def read(row: UtilityRow) -> float | None:
        ordered = sorted(row.sites, key=lambda site: (site.train, site.name))
        start, end = (len(ordered) * part // MOST_GROUPS for part in (place, place + 1))
        group = ordered[start:end]
        tests = sum(site.test for site in group)
        return sum(site.accuracy * site.test for site in group) / tests if tests else None

    return read


def summarise_sweep(
    grid: SweepGrid, rows: Iterable[UtilityRow], audits: Iterable[AuditRow], *, keys: Sequence[str], audit_keys: Sequence[str] | None = None
) -> SweepSummary:
    """Sort rows into the sweep; rows of other sweeps are left out and counted.

    Args:
        grid: the sweep.
        rows: all of the folder.
        audits: all of the folder.
        keys: of the grid's points, in their order.
        audit_keys: of its audits; None: all audits of the folder are of this sweep.
    """
    by_key, by_audit = {row.key: row for row in rows}, {row.key: row for row in audits}
    points = grid.points()
    ended = tuple(by_key[key] for key in keys if key in by_key)
    chosen = list(by_audit) if audit_keys is None else [key for key in audit_keys if key in by_audit]
    return SweepSummary(
        grid=grid,
        rows=ended,
        missing=tuple(point for point, key in zip(points, keys, strict=True) if key not in by_key),
        audits=tuple(by_audit[key] for key in chosen),
        audits_missing=0 if audit_keys is None else len(audit_keys) - len(chosen),
        others=len(by_key) - len(ended),
    )
