"""What the rounds say together: collusion, or a push by one client, that stays under the edge in each round.

1. Within a round, products of two clients add up over the rounds that both took part in. Signs do not matter there: colluders who push a direction
   and its opposite in turn agree with each other in every round.
2. Over rounds, *lifted* rows add up: rows put back into the space of the updates, which is the same in all rounds though R is not. A push that
   persists grows with the number of rounds T, noise with √T. So the products of the sums show what no single round can: one client that pushes
   alone, and colluders who choose their noise so that their vectors are orthogonal and yet add up to a push.
3. A client's own products within a round say nothing but its norm and are left out; those over different rounds count.
4. The result is a **suspicion**, never a rejection: honest clients with alike records agree over many rounds too.
5. The state is a value: it is never changed, and writes and reads as strict JSON to the same bits. A client may be absent, come late, not come back.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, TEXT, list_of, read_object
from fedsec.robust.base import Matrix, Vector
from fedsec.robust.levels import FEWEST_CLIENTS, ScreeningSettings
from fedsec.robust.spectrum import outlying

FORMAT = "fedsec/screening/v1"
MOST_LIFTED = 1 << 22
"""Most numbers of lifted rows that are kept, over all clients; beyond it only products within rounds add up."""

_FEWEST_ROUNDS = 3
_TABLE = {"format": TEXT, "client_ids": list_of(TEXT), "rounds": INTEGER, "width": INTEGER, "products": TEXT, "columns": TEXT, "sums": TEXT}


@dataclass(frozen=True, kw_only=True, eq=False)
class ScreeningState:
    """Sums over the rounds so far.

    Attributes:
        client_ids: m of them, sorted, distinct: all that ever took part.
        products: float64 [m, m], symmetric: sums of inner products within rounds, in squared noise units.
        columns: float64 [m, m], symmetric: sums of k over the rounds shared; on the diagonal over a client's own rounds.
        sums: float32 [m, w]: sums of lifted rows, in noise units; w = d, or 0 where rows were not lifted.
        rounds: how many were added.

    Raises:
        ValueError: not such sums.
    """

    client_ids: tuple[str, ...]
    products: Matrix
    columns: Matrix
    sums: npt.NDArray[np.float32]
    rounds: int

    def __post_init__(self) -> None:
        count = len(self.client_ids)
        if list(self.client_ids) != sorted(set(self.client_ids)):
            raise ValueError("client ids are sorted and distinct")
        for matrix in (self.products, self.columns):
            if matrix.shape != (count, count) or not np.isfinite(matrix).all() or (matrix != matrix.T).any():
                raise ValueError(f"sums of {count} clients are finite and symmetric [{count}, {count}]")
        if self.sums.ndim != 2 or len(self.sums) != count or not np.isfinite(self.sums).all():
            raise ValueError(f"sums of lifted rows of {count} clients are finite [{count}, w]")
        if (self.columns < 0).any() or (self.columns > np.minimum.outer(self.columns.diagonal(), self.columns.diagonal())).any():
            raise ValueError("two clients share no more rounds than either took part in")
        if self.rounds < 0:
            raise ValueError("rounds are at least 0")

    @classmethod
    def empty(cls) -> ScreeningState:
        """Before the first round."""
        none = np.zeros((0, 0))
        return cls(client_ids=(), products=none, columns=none, sums=np.zeros((0, 0), dtype=np.float32), rounds=0)

    def add(self, client_ids: tuple[str, ...], products: Matrix, num_columns: int, lifted: Matrix | None) -> ScreeningState:
        """The state after one more round.

        Args:
            client_ids: n who took part, sorted.
            products: [n, n], inner products of their rows in squared noise units.
            num_columns: k.
            lifted: [n, d], their rows lifted, in noise units; None: not lifted. Once a round has none, sums over rounds are given up.
        """
        everybody = tuple(sorted({*self.client_ids, *client_ids}))
        place = {name: index for index, name in enumerate(everybody)}
        old, new = [place[name] for name in self.client_ids], [place[name] for name in client_ids]
        added = np.zeros((2, len(everybody), len(everybody)))
        added[0][np.ix_(old, old)], added[1][np.ix_(old, old)] = self.products, self.columns
        added[0][np.ix_(new, new)] += products
        added[1][np.ix_(new, new)] += num_columns
        width = lifted.shape[1] if lifted is not None else 0
        if width * len(everybody) > MOST_LIFTED or (self.rounds and width != self.sums.shape[1]):
            width = 0
        sums = np.zeros((len(everybody), width), dtype=np.float32)
        if width and lifted is not None:
            sums[old] = self.sums if self.rounds else 0.0
            sums[new] += lifted.astype(np.float32)
        return ScreeningState(client_ids=everybody, products=added[0], columns=added[1], sums=sums, rounds=self.rounds + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT,
            "client_ids": list(self.client_ids),
            "rounds": self.rounds,
            "width": self.sums.shape[1],
            "products": _packed(self.products, "<f8"),
            "columns": _packed(self.columns, "<f8"),
            "sums": _packed(self.sums, "<f4"),
        }

    @classmethod
    def from_json(cls, value: Any) -> ScreeningState:
        """Read what :meth:`to_json` wrote.

        Raises:
            DecodeError: anything else.
        """
        fields = read_object(_TABLE, value, "screening")
        if fields["format"] != FORMAT:
            raise DecodeError(f"screening is not of the format {FORMAT!r}")
        count, width = len(fields["client_ids"]), fields["width"]
        try:
            if width < 0:
                raise ValueError("a width is at least 0")
            return cls(
                client_ids=fields["client_ids"],
                rounds=fields["rounds"],
                products=_unpacked(fields["products"], "<f8", count, count).astype(np.float64),
                columns=_unpacked(fields["columns"], "<f8", count, count).astype(np.float64),
                sums=_unpacked(fields["sums"], "<f4", count, width).astype(np.float32),
            )
        except (ValueError, binascii.Error) as error:
            raise DecodeError(f"screening: {error}") from None

    def within_rounds(self, client_ids: tuple[str, ...]) -> tuple[Matrix, float]:
        """Sums of products within rounds, in units of their deviation under noise, [n, n], diagonal 0; and the columns that they are worth.

        Args:
            client_ids: n of ``self.client_ids``, sorted.
        """
        chosen = self._places(client_ids)
        result = _in_deviations(self.products[chosen], self.columns[chosen])
        np.fill_diagonal(result, 0.0)
        return result, float(np.median(self.columns[chosen].diagonal()))

    def over_rounds(self, client_ids: tuple[str, ...]) -> tuple[Matrix, float]:
        """Products of the lifted sums, as :meth:`within_rounds`; on the diagonal those of different rounds, variance 2 under noise.

        Args:
            client_ids: n of ``self.client_ids``, sorted.

        Raises:
            ValueError: rows were not lifted.
        """
        width = self.sums.shape[1]
        if not width:
            raise ValueError("rows were not lifted")
        chosen = self._places(client_ids)
        columns = self.columns[chosen]
        own = columns.diagonal().copy()
        # Noise within a round has products of variance k, of different rounds k²/d: two random subspaces of k dimensions share k·k/d.
        share = float(own.max()) / max(self.rounds, 1) / width
        over = np.outer(own, own) / width - share * columns
        variances = columns + over
        np.fill_diagonal(variances, over.diagonal())
        sums = self.sums[chosen[0].ravel()].astype(np.float64)
        products = sums @ sums.T
        np.fill_diagonal(products, products.diagonal() - self.products[chosen].diagonal())
        typical = float(np.median(own))
        return _in_deviations(products, variances), typical * typical / max(float(np.median(variances)), 1.0)

    def _places(self, client_ids: tuple[str, ...]) -> tuple[npt.NDArray[np.intp], ...]:
        found = np.searchsorted(np.array(self.client_ids), np.array(client_ids))
        return np.ix_(found, found)


def _in_deviations(products: Matrix, variances: Matrix) -> Matrix:
    """Zeros for clients that never met."""
    return np.divide(products, np.sqrt(np.maximum(variances, 0.5)), out=np.zeros_like(products), where=variances > 0.5)


def _packed(matrix: npt.NDArray[np.floating], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(matrix, dtype=dtype).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: str, rows: int, columns: int) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating] = np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)
    return values.reshape(rows, columns)


def suspicions(
    state: ScreeningState, relative_sizes: Mapping[str, float], *, most: int, settings: ScreeningSettings
) -> tuple[dict[str, float], dict[str, float]]:
    """How suspicious the clients of the last round are over all rounds together, and what was measured.

    Args:
        state: sums, the last round included.
        relative_sizes: client id → declared batch size over the median, of the clients of the last round.
        most: f.
        settings: levels of the tests.

    Returns:
        client id → score, at least 1 for a suspect; empty in the first rounds, and with few clients. And facts by name.
    """
    judged = tuple(sorted(relative_sizes))
    if len(judged) < FEWEST_CLIENTS or state.rounds < _FEWEST_ROUNDS:
        return {}, {}
    sizes: Vector = np.array([relative_sizes[name] for name in judged])
    larger = np.maximum(sizes, 1.0)  # judged by their model differences: over many rounds differences count, not noise
    scores, facts = np.zeros(len(judged)), dict[str, float]()
    views = {"within": state.within_rounds} | ({"over": state.over_rounds} if state.sums.shape[1] else {})
    for name, view in views.items():
        matrix, columns = view(judged)
        spectrum = outlying(
            matrix / np.outer(larger, larger), np.minimum(sizes, 1.0), unit=1.0, columns=columns, most=most, settings=settings
        )
        facts |= {f"{name}_rounds_edge": spectrum.edge, f"{name}_rounds_eigenvalue": float(spectrum.eigenvalues[0])}
        scores = np.maximum(scores, spectrum.scores)
    return dict(zip(judged, scores.tolist(), strict=True)), facts
