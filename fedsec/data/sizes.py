"""Declared batch sizes of a simulation: one rule for its clients, who declare them, and its server, who bounds them."""

from __future__ import annotations

from fedsec.data.federated import FederatedData
from fedsec.plan.model import Plan


def simulated_batch_size(plan: Plan, data: FederatedData, partition: int) -> int:
    """What the client of one partition declares: the plan's number, or the sample rate times the mean or its own number of records."""
    rate, declared = plan.training.sample_rate, plan.training.batch_size
    if declared == "uniform":
        return max(1, round(rate * len(data.dataset.x) / plan.federation.num_clients))
    if declared == "per-client":
        return max(1, round(rate * len(data.train_parts[partition])))
    return int(declared)


def largest_batch_size(plan: Plan, data: FederatedData) -> int:
    """The largest that any client of a simulation declares."""
    return max(simulated_batch_size(plan, data, partition) for partition in range(plan.federation.num_clients))


def weight_limit_of(plan: Plan, data: FederatedData) -> int:
    """The largest batch size that a client may declare, masked or in clear: the plan's limit, or the largest that an honest client declares."""
    if plan.secagg.enabled and plan.secagg.weight_limit is not None:
        return plan.secagg.weight_limit
    return largest_batch_size(plan, data)
