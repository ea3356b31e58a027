"""The training set of Fashion-MNIST in two parts, for choosing settings: the test set is not in it.

Own data for a plan: ``--set data.name=custom --set data.source=experiments.fashion_mnist.validation:load``. Then "test" in such a
run's result means the held-out part. The split is fixed: it depends on no seed of a run.
"""

from __future__ import annotations

import numpy as np

from fedsec.data.base import Dataset
from fedsec.data.download import ensure_images, find_data_root
from fedsec.data.idx import FASHION_MNIST, load_images

HELD_OUT = 10_000
_SPLIT_SEED = (20, 777)


def load() -> Dataset:
    """50,000 training records, and 10,000 others of the training set in the place of the test records.

    Raises:
        DataError: the image files are missing or damaged.
    """
    return held_out_part(load_images(FASHION_MNIST, ensure_images(FASHION_MNIST, find_data_root(None))), HELD_OUT)


def held_out_part(dataset: Dataset, count: int) -> Dataset:
    """The training records of ``dataset`` alone, ``count`` of them, drawn without regard to the label, as the test part."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(dataset.y))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return Dataset(
        name=f"{dataset.name}-validation",
        x=dataset.x[kept],
        y=dataset.y[kept],
        x_test=dataset.x[held],
        y_test=dataset.y[held],
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
    )
