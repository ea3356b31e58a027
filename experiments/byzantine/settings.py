"""Everything that one run of the lab depends on; its digest is the key under which the run's row is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

LAB_VERSION = 1
"""Raised when the lab's mathematics change, so that older rows are not taken for new ones."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run.

    Attributes:
        part: of which table.
        rule: name of a rule; ``group-filter`` is :mod:`fedsec.robust.sketch_filter`, all others are the registry's.
        mode: open: the rule sees updates; sketch: whitened sketches, and the aggregate is the mean of who is accepted.
        attack: name in the catalogue of attacks, or in :mod:`experiments.byzantine.flanders`.
        strength: the attack's own number; None for its default.
        disguised: colluders add noise as long as an honest residual, each its own, so that they do not look alike.
        seed: of partition, first weights, batches, attackers.
        data: image data set.
        num_clients: n, the attackers among them.
        num_byzantine: f: how many attack, and how many the rule may reject.
        alpha: Dirichlet concentration of labels.
        hidden: width of the hidden layers.
        rounds: rounds.
        steps: local steps a round.
        batch_size: records a step, the same for all clients.
        learning_rate: of the local steps.
        server_learning_rate: factor on the aggregate.
        server_momentum: over rounds.
        sketch_rows: k.
        root_examples: the server's own records, for a rule that needs them.
        first_round: of the attack.
        tail: the accuracy is the mean over so many last rounds.
        draws: sketches of their own over which the attackers' search averages, where the rule sees sketches.
    """

    part: Literal["n17", "flanders", "skew"]
    rule: str
    mode: Literal["open", "sketch"]
    attack: str
    seed: int
    num_clients: int
    num_byzantine: int
    alpha: float
    rounds: int
    steps: int
    batch_size: int
    learning_rate: float
    strength: float | None = None
    disguised: bool = False
    data: Literal["mnist", "fashion-mnist"] = "mnist"
    hidden: tuple[int, ...] = (128,)
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9
    sketch_rows: int = 256
    root_examples: int = 100
    first_round: int = 1
    tail: int = 10
    draws: int = 1

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Hex, 16 characters. ``draws`` came later and counts where it is not 1, so that rows of before keep their key."""
        content = {key: value for key, value in self.to_json().items() if (key, value) != ("draws", 1)}
        text = json.dumps({"lab": LAB_VERSION, **content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def column(self) -> str:
        """The attack as the tables name it."""
        number = "" if self.strength is None else f" {self.strength:g}"
        return f"{self.attack}{number}{' disguised' if self.disguised else ''}{f' {self.draws} draws' if self.draws > 1 else ''}"
