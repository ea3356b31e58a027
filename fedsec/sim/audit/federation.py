"""A whole federated training with canaries in it, in this process: the clients' own training code, the server's mean, nobody in between.

1. Every client trains with :func:`fedsec.privacy.dpsgd.train`, as the client program does: same batches, clipping, noise, step counts, sum form. What an
   attacker may see of a round is handed to the views, which keep scores and nothing else.
   The attacker knows every record that is not in question, as the attacker of differential privacy does: where the canaries are not quiet, what the
   records are expected to add to an update is subtracted first.
2. Left out, because it is no part of the claim that is audited: attackers, the defence against them, sampling of clients (never counted as amplification),
   drop-outs, and the rounding to ring steps under secure aggregation, which is a thousand times under the noise.
3. Coins, directions and noise follow from the seed: an audit can be repeated. It is apart from every run for use: other keys, and its models are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import federated_data
from fedsec.models.factory import Model, build_model
from fedsec.models.parameters import get_arrays, set_arrays, split_names
from fedsec.plan.model import Plan
from fedsec.privacy.auditing.canaries import OVER_CLIP, GradientCanaries, lay_out, quiet_layer
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import KEY_BYTES, RoundStreams, derive_key, simulation_root
from fedsec.robust.rules import capped_weights
from fedsec.sim.audit.sites import Coins, Site, lay_out_site
from fedsec.vectors import FloatArray, Layout

Floats = npt.NDArray[np.float64]
Observer = Callable[[Floats], None]
"""Given the round's updates, float64 [clients, d]: summed gradients of the round, weighted by their steps, in the unit of one canary."""
Progress = Callable[[str, float], None]

_DIRECTIONS = 42


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """All clients of a plan, ready for any number of audited runs.

    Attributes:
        plan: with the audit's seed; its attack and rule play no part.
        layout: of the shared parameters.
        num_classes: of the task.
        sites: the clients.
    """

    plan: Plan
    layout: Layout
    num_classes: int
    sites: tuple[Site, ...]
    _first: dict[str, FloatArray] = field(repr=False)

    @classmethod
    def of(cls, plan: Plan, *, canaries: int, candidates: int, most_records: int | None = None) -> Federation:
        """Load the records and lay the canaries out.

        Args:
            plan: as it is to be audited, seed included.
            canaries: wanted over all clients together; fewer if the model is too small for them.
            candidates: records in question, over all clients together; at most half of each client's.
            most_records: of each client, for a shorter run; the declared batch size shrinks with them.

        Raises:
            DataError: no records.
            ConfigError: a model that cannot be built.
        """
        data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
        model = build_model(
            plan.model, input_shape=data.dataset.x.shape[1:], num_classes=data.dataset.num_classes, seed=plan.federation.seed
        )
        shared, _ = split_names(model, plan.model.personal)
        first = get_arrays(model, shared)
        layout = Layout.of(first)
        quiet = quiet_layer(layout, data.dataset.num_classes) if plan.model.name != "custom" else None
        directions = lay_out(
            layout,
            clients=plan.federation.num_clients,
            wanted=canaries,
            quiet=quiet,
            generator=np.random.default_rng([plan.federation.seed, _DIRECTIONS]),
        )
        sites = [
            lay_out_site(plan, data, place, directions[place], candidates=-(-candidates // plan.federation.num_clients), most=most_records)
            for place in range(plan.federation.num_clients)
        ]
        return cls(plan=plan, layout=layout, num_classes=data.dataset.num_classes, sites=tuple(sites), _first=first)

    @property
    def canary_unit(self) -> float:
        """Norm of one canary in the sum: the clip norm, or its whole norm if nothing clips."""
        return self.plan.privacy.clip_norm * (1.0 if self.plan.is_private else OVER_CLIP)

    @property
    def quiet(self) -> bool:
        """Whether the canaries' directions are orthogonal to all records' gradients."""
        return self.sites[0].directions.quiet is not None

    @property
    def num_canaries(self) -> int:
        """Over all clients, in or out."""
        return sum(len(site.directions) for site in self.sites)

    def as_control(self, *, least_rounds: int = 1) -> Federation:
        """The same, trained with per-record clipping and noise even if the plan has none, for at least so many rounds."""
        privacy, federation = self.plan.privacy, self.plan.federation
        if not self.plan.is_private:
            privacy = privacy.model_copy(update={"unit": "example", "epsilon": 1.0})
        longer = federation.model_copy(update={"rounds": max(federation.rounds, least_rounds)})
        return replace(self, plan=self.plan.model_copy(update={"privacy": privacy, "federation": longer}))

    def model(self, arrays: dict[str, FloatArray] | None = None) -> Model:
        """A model with these shared parameters, or the first ones."""
        shape = self.sites[0].x.shape[1:]
        model = build_model(self.plan.model, input_shape=shape, num_classes=self.num_classes, seed=self.plan.federation.seed)
        set_arrays(model, self._first if arrays is None else arrays)
        return model

    def run(
        self,
        coins: Coins,
        *,
        noise_multiplier: float,
        label: str,
        observers: Sequence[Observer] = (),
        guests: FloatArray | None = None,
        progress: Progress | None = None,
    ) -> dict[str, FloatArray]:
        """Train from the first round to the last, and give the released model.

        Args:
            coins: who is in.
            noise_multiplier: of every step; 0 for none.
            label: of this run: other labels give other noise and batches.
            observers: what attackers see, every round; guests come after the clients.
            guests: float32 [g, d], unit directions of canary clients: each sends its own, as long as the median honest update, every round.
            progress: told after every round.
        """
        rounds = self.plan.federation.rounds
        vector, velocity = self.layout.flatten(self._first).astype(np.float64), np.zeros(self.layout.size)
        tail: list[Floats] = []
        worker = self.model()
        own = [float(site.batch_size) for site in self.sites]
        sizes = np.array(own + [float(np.median(own))] * (0 if guests is None else len(guests)))
        weights = np.array(capped_weights(sizes.tolist(), weight_cap=self.plan.training.weight_cap))
        for server_round in range(1, rounds + 1):
            start = self.layout.unflatten(vector)
            updates = np.stack(
                [self._update(worker, place, start, coins, noise_multiplier, (label, str(server_round))) for place in range(len(own))]
            )
            if guests is not None:
                updates = np.concatenate([updates, guests * np.median(np.linalg.norm(updates, axis=1))])
            seen = updates
            if observers and not self.quiet:
                seen = updates.copy()
                seen[: len(own)] -= [self._expected(worker, place, start, coins) for place in range(len(own))]
            for observe in observers:
                observe(seen / (-self.plan.training.learning_rate * self.canary_unit))
            mean = (weights / sizes) @ updates / weights.sum()
            velocity = self.plan.training.server_momentum * velocity + mean
            vector = (vector + self.plan.training.server_learning_rate * velocity).astype(np.float32).astype(np.float64)
            if server_round > rounds - max(1, self.plan.training.tail_average):
                tail.append(vector)
            if progress is not None:
                progress(f"{label}: round {server_round} of {rounds}", server_round / rounds)
        return self.layout.unflatten(np.mean(tail, axis=0))

    def _update(
        self, model: Model, place: int, start: dict[str, FloatArray], coins: Coins, noise_multiplier: float, labels: tuple[str, str]
    ) -> Floats:
        """One client's update in sum form."""
        site = self.sites[place]
        planted = GradientCanaries(
            directions=site.directions,
            places=np.flatnonzero(coins.canaries[place]),
            names=tuple(name for name, _ in model.named_parameters() if name in start),
            norm=self.plan.privacy.clip_norm * OVER_CLIP,
        )
        root = derive_key(simulation_root(self.plan.federation.seed), "audit", *labels, f"client-{place}")
        return self._train(model, place, start, coins, self._settings(site, noise_multiplier), RoundStreams.derive(root), planted)

    def _expected(self, model: Model, place: int, start: dict[str, FloatArray], coins: Coins) -> Floats:
        """What the records are expected to add: every record in every step, weighted with the sample rate."""
        settings = self._settings(self.sites[place], 0.0)
        certain = replace(settings, sample_rate=1.0, learning_rate=settings.learning_rate * settings.sample_rate)
        return self._train(model, place, start, coins, certain, RoundStreams.derive(bytes(KEY_BYTES)), None)

    def _settings(self, site: Site, noise_multiplier: float) -> SgdSettings:
        training, privacy = self.plan.training, self.plan.privacy
        return SgdSettings(
            steps=training.steps,
            sample_rate=training.sample_rate,
            batch_size=site.batch_size,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            clip_norm=privacy.clip_norm if self.plan.is_private else None,
            noise_multiplier=noise_multiplier,
            physical_batch_size=training.physical_batch_size,
            clipping=privacy.clipping,
        )

    def _train(
        self,
        model: Model,
        place: int,
        start: dict[str, FloatArray],
        coins: Coins,
        settings: SgdSettings,
        streams: RoundStreams,
        canaries: GradientCanaries | None,
    ) -> Floats:
        site = self.sites[place]
        set_arrays(model, start)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in start)
        x, y = site.x, site.y
        if len(site.candidates):
            kept = np.ones(len(y), dtype=np.bool_)
            kept[site.candidates] = coins.records[place]
            x, y = x[kept], y[kept]
        train(model, x, y, settings, streams=streams, canaries=canaries)
        after = self.layout.flatten(get_arrays(model, start))
        return (after.astype(np.float64) - self.layout.flatten(start)) * site.batch_size
