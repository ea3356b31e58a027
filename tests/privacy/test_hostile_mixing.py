"""Regression of decision record 0005: weights chosen by the server must not hide from the probe that a custom model mixes records."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsec.errors import ConfigError
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams


class MixesWhenOpen(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.out = nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x + (torch.relu(self.gate(x)) * x).sum(0, keepdim=True))


@pytest.mark.parametrize("clipping", ["bookkeeping", "opacus"])
def test_a_gate_that_is_shut_for_the_probe_does_not_let_one_record_move_the_others(clipping):
    def released(with_target):
        model = MixesWhenOpen()
        with torch.no_grad():
            model.gate.weight.copy_(torch.tensor([[0.0, 0, 0, 1]]))
            model.gate.bias.fill_(-1.5)
            model.out.weight.copy_(torch.tensor([[20.0, 0, 0, -20], [-20, 0, 0, 20]]))
            model.out.bias.zero_()
        x = np.zeros((300 + with_target, 4), np.float32)
        x[:300, 0] = 0.5
        x[300:, 3] = 9
        y = np.zeros(len(x), np.int64)
        y[300:] = 1
        settings = SgdSettings(
            steps=1, sample_rate=1.0, batch_size=1, learning_rate=1.0, clip_norm=1.0, noise_multiplier=1e-3, clipping=clipping
        )
        before = [p.detach().clone() for p in model.parameters()]
        train(model, x, y, settings, streams=RoundStreams.derive(bytes(32)))
        return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)])

    try:
        moved = float((released(1) - released(0)).norm())
    except ConfigError:
        return
    assert moved < 1.1
