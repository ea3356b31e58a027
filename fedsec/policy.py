"""What a client insists on, whatever the server asks: its own cap, its own least protection, its own idea of what may leave.

1. The policy is the client's; a plan that asks for less protection is refused before any record is read.
2. A simulated client has no will of its own: its policy is what its plan says.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Self

from fedsec.codec import digest_json
from fedsec.errors import ConfigError
from fedsec.plan.model import Plan
from fedsec.secagg.config import LocalPolicy

MIN_NOISE_MULTIPLIER = 0.01
MAX_NOISE_MULTIPLIER = 1e6
"""Beyond these the accountants run out of numbers; no useful run comes near."""
MIN_DELTA = 1e-30
UNPROTECTED_ROW_SHARE = 0.25
"""Without noise, the rows of one update over all attempts are at most this share of its entries: 11 attempts of 64 rows rebuilt one of 650."""


class PolicyRefusedError(ConfigError):
    """The client's own limits forbid what the plan asks. Its text speaks of the plan only, so it may be sent."""


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """One client's own limits.

    Attributes:
        epsilon_cap: most that may be spent on its records over all runs, by PRV; infinite only where unprotected training is allowed.
        delta: the delta that the cap is stated at; a plan with a larger one is refused.
        allow_unprotected: whether it trains without differential privacy at all.
        allow_evaluation: whether its own test result may leave in clear: a release of its records that no epsilon bounds.
        min_noise_multiplier: least sigma over clip norm of one step; 0 leaves it to the cap.
        model_factories: entry points of own models that a plan may name; a plan comes from the server, and naming code is running it.
        require_secagg: refuse to send any update that is not masked.
        min_cohort: fewest members of a cohort of secure aggregation.
        num_corrupt: how many members of its cohort it believes may work with the server: a number, at least 1.
        honest_minimum: fewest honest clients in an opened sum, at least 2.
        max_sketch_rows: most sketch rows of one update over all attempts of a round.
        allow_sketches_unprotected: whether a sketch of an update without differential privacy may leave.
    """

    epsilon_cap: float
    delta: float
    allow_unprotected: bool = False
    allow_evaluation: bool = False
    min_noise_multiplier: float = 0.0
    model_factories: tuple[str, ...] = ()
    require_secagg: bool = False
    min_cohort: int = 4
    num_corrupt: int = 1
    honest_minimum: int = 2
    max_sketch_rows: int = 512
    allow_sketches_unprotected: bool = False

    def __post_init__(self) -> None:
        for name in ("allow_unprotected", "allow_evaluation", "require_secagg", "allow_sketches_unprotected"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(
                    f"{getattr(self, name)!r} is not true or false", field=f"policy.{name}", mend="write true or false, without quotes"
                )
        for name in ("epsilon_cap", "delta", "min_noise_multiplier"):
            if type(getattr(self, name)) not in (int, float):
                raise ConfigError(f"{getattr(self, name)!r} is not a number", field=f"policy.{name}", mend="write a number, without quotes")
        self.local_policy(is_private=True)  # checks the numbers of secure aggregation
        if not self.epsilon_cap > 0 or not MIN_DELTA <= self.delta < 1 or not 0 <= self.min_noise_multiplier < math.inf:
            raise ConfigError("epsilon_cap must be > 0, delta in (0, 1), min_noise_multiplier >= 0", field="policy")
        if math.isinf(self.epsilon_cap) and not self.allow_unprotected:
            raise ConfigError(
                "an infinite cap protects nothing", field="policy.epsilon_cap", mend="give a number, or set allow_unprotected = true openly"
            )

    def digest(self) -> str:
        """Hex digest of the limits, for the ledger."""
        return digest_json("fedsec/client-policy/v1", {key: str(value) for key, value in asdict(self).items()})

    @classmethod
    def of_plan(cls, plan: Plan) -> Self:
        """The policy of a simulated client."""
        return cls(
            epsilon_cap=plan.epsilon_cap,
            delta=plan.privacy.delta,
            allow_unprotected=not plan.is_private,
            allow_evaluation=True,
            model_factories=(plan.model.factory,) if plan.model.factory is not None else (),
            require_secagg=plan.secagg.enabled,
            max_sketch_rows=plan.secagg.sketch_rows * plan.secagg.attempts,
            allow_sketches_unprotected=plan.secagg.sketch_without_dp,
        )

    def local_policy(self, *, is_private: bool) -> LocalPolicy:
        """What the protocol's state machine is told to insist on.

        Raises:
            ConfigError: a number that protects nobody.
        """
        return LocalPolicy(
            minimum_cohort=self.min_cohort,
            num_corrupt=self.num_corrupt,
            honest_minimum=self.honest_minimum,
            maximum_rows=self.max_sketch_rows,
            row_share=1.0 if is_private else UNPROTECTED_ROW_SHARE,
            sketches_allowed=is_private or self.allow_sketches_unprotected,
        )

    def check_clear_update(self, plan: Plan) -> None:
        """Refuse to send an update in clear where the plan, or this client, says that it is masked.

        Raises:
            PolicyRefusedError: it is asked to.
        """
        if self.require_secagg or plan.secagg.enabled:
            raise PolicyRefusedError(
                "this client sends masked updates only",
                field="secagg.enabled",
                mend="run the protocol's stages instead of a plain training round",
            )

    def check_code(self, plan: Plan) -> None:
        """Refuse a plan that names code which this client's operator did not list; before anything is built.

        Raises:
            PolicyRefusedError: it does.
        """
        if plan.model.factory is not None and plan.model.factory not in self.model_factories:
            raise PolicyRefusedError(
                f"this client does not run {plan.model.factory}",
                field="model.factory",
                mend="its operator must list it under model_factories in the client's own settings",
            )

    def check_training(self, plan: Plan, noise_multiplier: float) -> None:
        """Refuse a plan that protects less than this client insists on.

        Raises:
            ConfigError: names the limit that the plan breaks.
        """
        if not plan.is_private:
            if not self.allow_unprotected:
                raise PolicyRefusedError(
                    "this client does not train without differential privacy", field="privacy.unit", mend='use unit = "example"'
                )
            return
        if not MIN_NOISE_MULTIPLIER <= noise_multiplier <= MAX_NOISE_MULTIPLIER:
            raise PolicyRefusedError(f"noise multiplier {noise_multiplier!r} is no protection", field="noise_multiplier")
        if noise_multiplier < self.min_noise_multiplier:
            raise PolicyRefusedError(
                f"noise multiplier {noise_multiplier:g} is under this client's least of {self.min_noise_multiplier:g}",
                field="noise_multiplier",
            )
        if plan.privacy.delta > self.delta:
            raise PolicyRefusedError(f"delta {plan.privacy.delta:g} is over this client's {self.delta:g}", field="privacy.delta")

    def check_evaluation(self) -> None:
        """Refuse to send a test result in clear unless this client allows it.

        Raises:
            ConfigError: it does not.
        """
        if not self.allow_evaluation:
            raise PolicyRefusedError(
                "this client does not send test results: they are a release in clear",
                field="federation.evaluate_clients",
                mend="evaluate at the server, or set allow_evaluation = true in the client's own settings",
            )
