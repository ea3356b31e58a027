"""What per-record clipping costs: ours (book-keeping) against plain SGD and three other ways to clip.

Measured: forward, backward, clipping and summing of one batch of 256 records on one thread; no noise, no step. All ways are
measured in turn, round after round, so that a busy machine slows all of them; the best round of each counts. Before that,
each way's clipped sum is compared with ours.

``python -m experiments.bench.clipping [--json] [--rounds N]``
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from experiments.bench.table import Row, parser, show
from fedsec.privacy.bookkeeping import BookKeepingEngine
from fedsec.privacy.clipping import FunctionalEngine

BATCH = 256
CLIP_NORM = 1.0
TOLERANCE = 1e-5  # relative L2 difference of two ways' clipped sums in float32
OURS = "book-keeping"

Way = Callable[[], list[Tensor]]


def cnn() -> nn.Module:
    """26,010 parameters: the MNIST network of Opacus' examples and of Papernot et al. 2021."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "CNN, 26k parameters": (cnn, (1, 28, 28)),
    "MLP 784-128-64-10": (mlp, (784,)),
    "linear 3969x10": (lambda: nn.Linear(3969, 10), (3969,)),
}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Way:
    parameters = list(model.parameters())
    return lambda: list(torch.autograd.grad(functional.cross_entropy(model(x), y, reduction="sum"), parameters))


def engine(made: BookKeepingEngine | FunctionalEngine, x: Tensor, y: Tensor) -> Way:
    return lambda: made.clipped_sum(x, y, cross_entropy, CLIP_NORM)[1]


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor) -> Way:
    wrapped = GradSampleModule(model, loss_reduction="sum")
    sgd = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=CLIP_NORM, expected_batch_size=None, loss_reduction="sum")

    def run() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(wrapped(x), y, reduction="sum"))
        optimizer.clip_and_accumulate()
        return [parameter.summed_grad for parameter in optimizer.params]

    return run


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor) -> Way:
    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=CLIP_NORM)
    sgd = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    optimizer = DPOptimizerFastGradientClipping(
        sgd, noise_multiplier=0.0, max_grad_norm=CLIP_NORM, expected_batch_size=None, loss_reduction="sum"
    )
    loss = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum")

    def run() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss(wrapped(x), y).backward()
        return [parameter.grad for parameter in wrapped.parameters()]

    return run


def ways_of(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Way]:
    """Every way to sum (clipped) gradients, on copies of one model and one batch."""
    torch.manual_seed(0)
    model = make().train()
    x, y = torch.randn((BATCH, *shape)), torch.randint(0, 10, (BATCH,))
    return {
        OURS: engine(BookKeepingEngine(copy.deepcopy(model)), x, y),
        "plain SGD, no clipping": plain(copy.deepcopy(model), x, y),
        "Opacus hooks": opacus_hooks(copy.deepcopy(model), x, y),
        "Opacus ghost clipping": opacus_ghost(copy.deepcopy(model), x, y),
        "torch.func": engine(FunctionalEngine(copy.deepcopy(model)), x, y),
    }


def check_agreement(what: str, ways: dict[str, Way]) -> None:
    """Stop the benchmark if two ways of clipping give different sums: their times could not be compared."""
    ours = torch.cat([total.flatten() for total in ways[OURS]()])
    for name, way in ways.items():
        difference = float((torch.cat([total.flatten() for total in way()]) - ours).norm() / ours.norm())
        if "no clipping" not in name and difference > TOLERANCE:
            raise SystemExit(f"{what}: {name} differs from {OURS} by {difference:.2g}")


def best_ms(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Best time of each way over all rounds, in ms."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            way()  # not timed: brings code and data back into the cache after the way before it
            start = time.perf_counter()
            way()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def measure(rounds: int) -> list[Row]:
    rows = []
    for what, (make, shape) in CASES.items():
        ways = ways_of(make, shape)
        check_agreement(what, ways)
        best = best_ms(ways, rounds)
        rows += [
            Row(what=what, ours=best[OURS], peer=peer, peer_name=name, unit=f"ms per batch of {BATCH}")
            for name, peer in best.items()
            if name != OURS
        ]
    return rows


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=15, help="rounds of measurement (default: 15)")
    arguments = made.parse_args()
    if arguments.rounds < 1:
        made.error("--rounds must be at least 1")
    warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
    torch.set_num_threads(1)
    show(f"Clipping the gradients of {BATCH} records, one thread", measure(arguments.rounds), as_json=arguments.json)


if __name__ == "__main__":
    main()
