"""Evaluation: right numbers, nothing claimed for absent classes, and no crash on a model that diverged."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsec.models.evaluation import Evaluation, evaluate


class Fixed(nn.Module):
    """Returns the records themselves as logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return x


def test_numbers_of_a_worked_example():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25]], dtype=np.float32))
    result = evaluate(Fixed(), logits, np.array([0, 0, 1, 1]), num_classes=3)
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-np.mean(np.log([0.7, 0.3, 0.8, 0.25])), rel=1e-6)
    assert result.recall == (0.5, 0.5, None)
    assert result.num_examples == 4
    assert result.confusion == ((1, 1, 0), (1, 1, 0), (0, 0, 0))


def test_batches_do_not_change_the_result():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(101, 5)).astype(np.float32), generator.integers(0, 5, 101)
    whole = evaluate(Fixed(), logits, labels, num_classes=5)
    for size in (1, 7, 100, 101):
        part = evaluate(Fixed(), logits, labels, num_classes=5, batch_size=size)
        assert part.confusion == whole.confusion
        assert part.loss == pytest.approx(whole.loss, rel=1e-12)
    assert sum(map(sum, whole.confusion)) == 101


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_record_without_finite_logits_counts_as_wrong_and_makes_the_loss_infinite(poison):
    logits = np.array([[9, 0], [poison, 0], [0, 9]], dtype=np.float32)
    result = evaluate(Fixed(), logits, np.array([0, 0, 1]), num_classes=2, batch_size=1)
    assert result.loss == math.inf
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.recall == (0.5, 1.0)
    assert result.confusion == ((1, 0), (0, 1))


def test_a_wholly_diverged_model_is_a_result_and_no_crash():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(3e38)
    result = evaluate(model, np.full((10, 4), 3e38, np.float32), np.zeros(10, np.int64), num_classes=3)
    assert result == Evaluation(accuracy=0.0, loss=math.inf, recall=(0.0, None, None), num_examples=10, confusion=((0, 0, 0),) * 3)


def test_huge_but_finite_logits_have_a_finite_loss():
    logits = np.array([[3e38, -3e38]] * 5, dtype=np.float32)
    result = evaluate(Fixed(), logits, np.ones(5, np.int64), num_classes=2)
    assert result.loss == pytest.approx(6e38, rel=1e-6)
    assert result.accuracy == 0.0


def test_results_are_plain_python_numbers():
    result = evaluate(Fixed(), np.eye(3, dtype=np.float32), np.arange(3), num_classes=3)
    assert json.loads(json.dumps([result.accuracy, result.loss, result.recall, result.num_examples, result.confusion]))[0] == 1.0


def test_the_model_comes_back_in_its_own_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    evaluate(model, np.zeros((3, 4), np.float32), np.zeros(3, np.int64), num_classes=2)
    assert [module.training for module in (model, *model)] == [True, True, False, True]


def test_the_mode_comes_back_after_an_error_too():
    model = nn.Linear(4, 2).train()
    with pytest.raises(RuntimeError):
        evaluate(model, np.zeros((3, 5), np.float32), np.zeros(3, np.int64), num_classes=2)
    assert model.training


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "at least one"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), "not 2 and 3"),
        (np.zeros((2, 3), np.float32), np.array([0, 3]), r"0\.\.2, not 0\.\.3"),
        (np.zeros((2, 3), np.float32), np.array([-100, 0]), r"0\.\.2, not -100"),
        (np.zeros((2, 4), np.float32), np.array([0, 1]), r"logits of shape \[2, 4\]"),
    ],
)
def test_records_and_labels_that_cannot_be_evaluated_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Fixed(), x, y, num_classes=3)


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(Fixed(), np.zeros((1, 3), np.float32), np.zeros(1, np.int64), num_classes=3, batch_size=0)


def test_read_only_records_are_taken():
    x = np.eye(3, dtype=np.float32)
    x.setflags(write=False)
    assert evaluate(Fixed(), x, np.arange(3), num_classes=3).accuracy == 1.0
