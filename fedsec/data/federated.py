"""A data set spread over the clients of a simulation, loaded once per process.

Server, clients and command line of a simulation all ask here with the same arguments and share one copy; workers forked after the
first call share it too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.data.datasets import Dataset, load_dataset
from fedsec.data.partition import label_histogram, partition, test_parts
from fedsec.plan.sections import DataSection

DATA_ROOT_VARIABLE = "FEDSEC_DATA_ROOT"

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedData:
    """A data set and who holds what of it.

    Attributes:
        dataset: all of it.
        train_parts: per client, indices into the training records; disjoint, together all of them.
        test_parts: per client, indices into the test records.
    """

    dataset: Dataset
    train_parts: tuple[IndexArray, ...]
    test_parts: tuple[IndexArray, ...]

    @property
    def smallest_client(self) -> int:
        """Training records of the client that has fewest."""
        return min(len(part) for part in self.train_parts)

    def histogram(self) -> npt.NDArray[np.int64]:
        """Label counts, [clients, classes]. Not private: for simulations only."""
        return label_histogram(self.dataset, self.train_parts)

    def client_arrays(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Training records and labels of one client."""
        rows = self.train_parts[index]
        return self.dataset.x[rows], self.dataset.y[rows]

    def client_test_arrays(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Test records and labels of one client."""
        rows = self.test_parts[index]
        return self.dataset.x_test[rows], self.dataset.y_test[rows]


def federated_data(section: DataSection, *, num_clients: int, seed: int) -> FederatedData:
    """Load and spread a data set; the second call with equal arguments is free.

    Raises:
        DataError: files are missing or damaged, or the partition is impossible.
        ConfigError: an entry point that does not give records.
    """
    return _load(section, num_clients, seed, os.environ.get(DATA_ROOT_VARIABLE))


@lru_cache(maxsize=4)
def _load(section: DataSection, num_clients: int, seed: int, data_root: str | None) -> FederatedData:
    dataset = load_dataset(section, data_root=Path(data_root) if data_root else None, seed=seed)
    parts = partition(dataset, section, num_clients=num_clients, seed=seed)
    return FederatedData(dataset=dataset, train_parts=parts, test_parts=test_parts(dataset, section, num_clients=num_clients, seed=seed))
