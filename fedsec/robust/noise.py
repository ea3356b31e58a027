"""The deviation of the noise in an honest update, which everybody can compute: what calibrated screening is calibrated on.

1. An update in sum form is ``B_k`` times the model difference. DP-SGD adds noise of deviation ``noise_multiplier * clip_norm`` to the sum of a
   step's gradients and divides by ``B_k``; in sum form ``B_k`` cancels, so every client's noise has one deviation, whatever its size.
2. Momentum that starts anew each round has a known gain: the noise of a step counts in that step and, weaker, in all later ones of the round.
3. Anything else is refused, not guessed: see :func:`noise_stddev_of`.

Two things are left out, both measured or bounded in ``docs/screening.md``: noise of an early step changes the gradients of later ones a little, and
stochastic rounding to ring steps adds a variance of at most ``1 / (4 * scale**2)``.
"""

from __future__ import annotations

import math

from fedsec.errors import ConfigError


def noise_stddev_of(*, steps: int, learning_rate: float, momentum: float, noise_multiplier: float, clip_norm: float) -> float:
    """Deviation of the noise in each coordinate of a sum-form update after ``steps`` steps of DP-SGD.

    ``s0 = noise_multiplier * clip_norm * learning_rate * sqrt(sum_s g_s**2)`` with ``g_s = 1 + m + ... + m**(steps - s)`` for momentum m.

    It holds where each step adds the noise to the *sum* of clipped gradients, one noise multiplier is everybody's, and the optimiser is SGD with
    momentum that starts from zero each round. It does not hold for weight decay (which shrinks old noise), for Adam (whose steps divide by a
    running scale), for momentum kept over rounds (rounds are then not independent) or for a noise multiplier of a client's own: such a plan
    needs a formula of its own here before its updates can be screened.

    Args:
        steps: local steps of a round, at least 1.
        learning_rate: of every step, over 0.
        momentum: within a round, in [0, 1).
        noise_multiplier: sigma over clip norm, over 0.
        clip_norm: L2 bound on a record's gradient, over 0.

    Raises:
        ConfigError: a number out of range, or no noise at all.

    >>> noise_stddev_of(steps=4, learning_rate=0.5, momentum=0.0, noise_multiplier=2.0, clip_norm=1.0)
    2.0
    """
    if steps < 1 or not (0 < learning_rate < math.inf) or not (0 <= momentum < 1):
        raise ConfigError(f"{steps} steps, rate {learning_rate}, momentum {momentum}: no such training", field="training")
    if not (0 < noise_multiplier < math.inf and 0 < clip_norm < math.inf):
        raise ConfigError(
            f"noise multiplier {noise_multiplier} with clip norm {clip_norm} is no known noise to calibrate on",
            field="robust.rule",
            mend="use another rule for training without differential privacy",
        )
    gains = (sum(momentum**power for power in range(steps - step)) for step in range(steps))
    return noise_multiplier * clip_norm * learning_rate * math.sqrt(sum(gain * gain for gain in gains))
