"""The numbers of secure aggregation that follow from a plan: cohorts, c, t, a_min, tolerated drops, scale and norm bound.

1. Server and client compute them from the same plan, and a client holds CONFIG against its own result.
2. Cohorts are cut evenly, so their sizes differ by one at most; each size has its own c and t.
3. In a federation of one cohort c is the plan's number. In several it is the hypergeometric bound for a seed that is drawn after corruption is
   chosen (``secagg.cohorts.corrupt_bound``), and never over the plan's number.
4. The encoding's L2 bound is public: what clip, noise and the declared weight allow, with room. A longer update is shrunk, not refused.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsec.errors import ConfigError
from fedsec.plan.sections import SecaggSection
from fedsec.secagg.bounds import hiding_factor, log2_hiding
from fedsec.secagg.cohorts import CohortLimits, corrupt_bound
from fedsec.secagg.labels import HONEST_MINIMUM, MAX_COHORTS

if TYPE_CHECKING:
    from fedsec.plan.model import Plan

DEFAULT_UPDATE_NORM = 100.0
"""L2 norm of a model difference that no honest training of a usable model passes; for plans without noise and clip."""


@dataclass(frozen=True, kw_only=True)
class CohortNumbers:
    """One size of cohort in a federation.

    Attributes:
        limits: N, c and a_min.
        count: cohorts of this size.
    """

    limits: CohortLimits
    count: int

    @property
    def drops_with_bad_dealers(self) -> int:
        """Drop-outs survived if the corrupt members deal bad shares as well: ``N - 2c - t`` (decision 0010, finding 6); may be below 0."""
        limits = self.limits
        return limits.num_clients - 2 * limits.num_corrupt - max(limits.threshold, limits.minimum_accepted)


def cohort_numbers(secagg: SecaggSection, num_clients: int) -> tuple[CohortNumbers, ...]:
    """The cohorts of a federation, largest first.

    Raises:
        ConfigError: the numbers break the protocol; says which and what to change.
    """
    count = -(-num_clients // secagg.cohort_size)
    if count > MAX_COHORTS:
        raise ConfigError(f"{count} cohorts, at most {MAX_COHORTS}", field="secagg.cohort_size", mend="raise it")
    edges = [num_clients * index // count for index in range(count + 1)]
    sizes = sorted((stop - start for start, stop in itertools.pairwise(edges)), reverse=True)
    return tuple(
        CohortNumbers(limits=cohort_limits(secagg, num_clients=num_clients, size=size, cohorts=count), count=sizes.count(size))
        for size in sorted(set(sizes), reverse=True)
    )


def cohort_limits(secagg: SecaggSection, *, num_clients: int, size: int, cohorts: int) -> CohortLimits:
    """N, c and a_min of a cohort of ``size`` clients.

    Raises:
        ConfigError: they break the protocol.
    """
    corrupt = secagg.num_corrupt
    if corrupt >= num_clients:
        raise ConfigError(
            f"{corrupt} of {num_clients} clients corrupt leave nobody to protect", field="secagg.num_corrupt", mend="lower it"
        )
    if cohorts > 1:
        corrupt = min(corrupt, corrupt_bound(num_clients, corrupt, size, draws=cohorts * secagg.rosters))
    least = max(corrupt + HONEST_MINIMUM, -(-size // 2))
    if secagg.minimum_accepted is not None:
        least = secagg.minimum_accepted
    return CohortLimits(num_clients=size, num_corrupt=corrupt, minimum_accepted=least)


def hiding_statement(plan: Plan) -> tuple[float, float]:
    """``(g, log2 probability)``: colluders hide g times the norm of what passes with that probability a round, at most; see ``secagg.bounds``."""
    cohorts = sum(numbers.count for numbers in cohort_numbers(plan.secagg, plan.federation.num_clients))
    subsets = plan.secagg.num_corrupt + math.log2(cohorts) + math.log2(plan.secagg.attempts)
    factor = hiding_factor(plan.secagg.sketch_rows, subsets_bits=subsets)
    if math.isinf(factor):
        return factor, 0.0
    return factor, subsets + log2_hiding(plan.secagg.sketch_rows, factor)


def update_bound(plan: Plan, *, dimension: int, noise_multiplier: float, weight_limit: int) -> float:
    """L2 norm, in units of a sum-form update, that an honest update stays under but for a negligible chance.

    A step moves the sum-form update by the learning rate times (clipped gradients of a batch + noise). A batch of expectation B holds more than
    ``8·B + 50`` records with probability under 2**-50 if B is its true expectation; a norm of Gaussian noise passes
    ``√d + 10`` deviations with probability under ``exp(-50)``. Momentum m multiplies both by at most ``1 / (1 - m)``.

    Args:
        plan: what is trained.
        dimension: d.
        noise_multiplier: sigma over clip norm; 0 without privacy.
        weight_limit: largest declared batch size.
    """
    if plan.secagg.update_norm is not None or not plan.is_private:
        return weight_limit * (plan.secagg.update_norm if plan.secagg.update_norm is not None else DEFAULT_UPDATE_NORM)
    training, clip = plan.training, plan.privacy.clip_norm
    signal = training.steps * clip * (8 * weight_limit + 50)
    noise = math.sqrt(training.steps) * noise_multiplier * clip * (math.sqrt(dimension) + 10)
    return training.learning_rate / (1 - training.momentum) * (signal + noise)
