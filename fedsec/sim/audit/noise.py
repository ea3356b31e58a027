"""The noise multiplier that a plan's clients use."""

from __future__ import annotations

from fedsec.plan.model import Plan
from fedsec.privacy.calibration import calibrate_noise_multiplier


def noise_multiplier_of(plan: Plan) -> float:
    """Fixed by the plan or calibrated to its epsilon; 0 without privacy.

    Raises:
        ConfigError: no noise reaches the plan's epsilon.
    """
    if not plan.is_private:
        return 0.0
    if plan.privacy.noise_multiplier is not None:
        return plan.privacy.noise_multiplier
    return calibrate_noise_multiplier(
        epsilon=plan.privacy.epsilon, delta=plan.privacy.delta, sample_rate=plan.training.sample_rate, steps=plan.total_steps
    )
