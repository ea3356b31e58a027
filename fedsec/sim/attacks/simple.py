"""Attacks that need no search: sign flip, a fixed push, noise, dilution, free-riding, replay.

Source: design note ROBUST, "Attacks the harness holds"; free-riding: Fraboni et al. 2021 (arXiv 2006.11901), Lin et al. 2019 (arXiv 1911.12560).
"""

from __future__ import annotations

import numpy as np

from fedsec.sim.attacks.knowledge import Knowledge, Sent, send, send_honestly, send_sums

SIGN_FLIP_FACTOR = 5.0
FIXED_AMPLITUDE = 6.0
GAUSSIAN_FACTOR = 10.0
DILUTION_FACTOR = 20.0
FREE_RIDER_FACTOR = 0.0
REPLAY_AGE = 5.0


def sign_flip(knowledge: Knowledge) -> Sent:
    """Δ = −c·μ; c is the strength."""
    return send(knowledge, -knowledge.strength(SIGN_FLIP_FACTOR) * knowledge.mean)


def fixed_direction(knowledge: Knowledge) -> Sent:
    """Send x = a·unit·u and nothing else, u the same unit vector in all rounds; a is the strength.

    Negative: amplitude ``|a|``, forwards in odd rounds and backwards in even ones.
    """
    amplitude = knowledge.strength(FIXED_AMPLITUDE)
    if amplitude < 0 and knowledge.server_round % 2:
        amplitude = -amplitude
    push = amplitude * knowledge.unit * knowledge.push_direction
    return send(knowledge, push[None, :] / knowledge.own_batch_sizes.astype(np.float64)[:, None])


def gaussian(knowledge: Knowledge) -> Sent:
    """Send x ~ N(0, (c·unit)²) in every coordinate, independent for each colluder; c is the strength."""
    return send_sums(knowledge, knowledge.draw_noise(abs(knowledge.strength(GAUSSIAN_FACTOR)) * knowledge.unit))


def dilution(knowledge: Knowledge) -> Sent:
    """Declare c times the true batch size, c being the strength, and send the noise of an honest client and nothing else.

    Without privacy there is no noise to hide behind: zeros.
    """
    factor = max(1.0, abs(knowledge.strength(DILUTION_FACTOR)))
    noise = send_sums(knowledge, knowledge.draw_noise(knowledge.noise_stddev))
    declared = np.maximum(1, np.rint(knowledge.own_batch_sizes.astype(np.float64) * factor)).astype(np.int64)
    return Sent(updates=noise.updates, batch_sizes=declared)


def free_rider(knowledge: Knowledge) -> Sent:
    """Δ = c·(the server's last step), c being the strength; 0: nothing at all. With ``own_noise`` in an honest client's noise."""
    step = next((past.step for past in reversed(knowledge.history) if past.step is not None), np.zeros(knowledge.dimension))
    return send(knowledge, knowledge.strength(FREE_RIDER_FACTOR) * np.asarray(step, dtype=np.float64))


def replay(knowledge: Knowledge) -> Sent:
    """Each colluder's own honest update of some rounds ago: as many as the strength says, or the oldest it remembers."""
    last = knowledge.server_round - abs(knowledge.strength(REPLAY_AGE))
    if not knowledge.history:
        return send_honestly(knowledge)
    past = next((past for past in reversed(knowledge.history) if past.server_round <= last), knowledge.history[0])
    return send_sums(knowledge, past.own * knowledge.own_batch_sizes[:, None].astype(np.float64))
