import pytest
import torch
from torch import nn

from fedsec.errors import ConfigError
from fedsec.models.sparse import refuse_sparse_layers


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(x).mean(dim=1))


NAMES = ("table.weight", "out.weight", "out.bias")


def test_an_embedding_whose_update_would_be_sketched_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"table.*Embedding"):
        refuse_sparse_layers(Words(), NAMES)


def test_a_frozen_embedding_sends_zeros_and_passes():
    model = Words()
    model.table.weight.requires_grad_(False)
    refuse_sparse_layers(model, NAMES)


def test_a_personal_embedding_never_leaves_and_passes():
    refuse_sparse_layers(Words(), NAMES[1:])


@pytest.mark.parametrize("layer", [nn.EmbeddingBag(5, 3), nn.Embedding(5, 3, sparse=True)])
def test_the_model_itself_may_be_the_embedding(layer):
    with pytest.raises(ConfigError, match="layer model"):
        refuse_sparse_layers(layer, ["weight"])


def test_dense_models_pass():
    refuse_sparse_layers(nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1)), ["0.weight", "0.bias"])
