"""The sections of a plan: every key, its type, its limits, its default and what it means.

1. Sections are frozen; a plan is validated once, when it is made.
2. Types are strict: ``"3"`` is not 3, and an unknown key is an error.
3. Checks of one section stand here; checks that need two sections stand in ``fedsec.plan.model``.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ENTRY_POINT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
UnitInterval = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFinite = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]


def _entry_point(value: str | None) -> str | None:
    if value is not None and not _ENTRY_POINT.match(value):
        raise ValueError("must read module:function, for example mypackage.data:load")
    return value


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FederationSection(Section):
    """Who takes part, for how long, and the seed of everything that is not private."""

    num_clients: PositiveInt = Field(20, description="clients in the federation")
    rounds: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="training rounds")
    fraction: UnitInterval = Field(1.0, description="share of the clients asked in each round; never counted as amplification")
    min_clients: PositiveInt = Field(2, description="fewest valid updates a round needs; below it the model stays as it was")
    round_timeout_s: PositiveFinite = Field(600.0, description="seconds after which a round goes on without the missing clients")
    join_timeout_s: PositiveFinite = Field(30.0, description="seconds to wait for all clients to be online before the first round")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(
        1, description="seed of partition, initial weights and, in simulation, all noise"
    )
    evaluate_clients: bool = Field(False, description="clients report their own accuracy in clear: a release; free only in simulation")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = Field(
        0.0, description="simulation only: chance that a client vanishes in a round"
    )


class DataSection(Section):
    """Which records, and how a simulation spreads them over clients."""

    name: Literal["digits", "breast-cancer", "heart-disease", "mnist", "fashion-mnist", "flower", "custom"] = Field(
        "digits", description="data set; 'custom' needs source, 'flower' needs hub"
    )
    source: str | None = Field(None, description="own data for name = 'custom': module:function; ignored by deployed clients")
    hub: str | None = Field(None, description="data set id on the hub for name = 'flower' (optional extra)")
    partition: Literal["iid", "dirichlet", "shards", "natural"] = Field("dirichlet", description="how a simulation splits the records")
    alpha: PositiveFinite = Field(1.0, description="dirichlet: concentration; smaller is more skewed")
    classes_per_client: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="shards: classes each client holds")
    min_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(10, description="fewest training records a client may hold")
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = Field(
        0.2, description="share held out for the test, where the data set has no test part of its own"
    )
    transform: Literal["none", "scattering"] = Field("none", description="fixed public feature map, cached on disk")

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str | None) -> str | None:
        return _entry_point(value)


class ModelSection(Section):
    """The model; its weights initialise from the federation's seed."""

    name: Literal["logistic", "mlp", "cnn", "custom"] = Field("logistic", description="model family; 'custom' needs factory")
    hidden: tuple[PositiveInt, ...] = Field((128, 64), description="mlp: width of each hidden layer", max_length=16)
    factory: str | None = Field(None, description="own model for name = 'custom': module:function")
    personal: tuple[str, ...] = Field((), description="parameters that never leave the client, by name or last part of the name")
    personal_fit: Literal["after-release", "dp"] = Field(
        "after-release",
        description="after-release: a public constant until the last release, then fitted locally; dp: inside the clipped, noised gradient",
    )

    @field_validator("hidden", "personal", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("factory")
    @classmethod
    def _check_factory(cls, value: str | None) -> str | None:
        return _entry_point(value)


class TrainingSection(Section):
    """Local training of one round, and how the server applies the mean."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = Field(3, description="local steps per round")
    sample_rate: UnitInterval = Field(0.25, description="chance of each record to be in a step's batch (Poisson)")
    batch_size: PositiveInt | Literal["uniform", "per-client"] = Field(
        "uniform",
        description="declared, public expected batch size: a number; 'uniform': the same for all; 'per-client': makes client sizes public",
    )
    learning_rate: PositiveFinite = Field(0.5, description="step size of the local SGD")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = Field(
        0.0, description="momentum within a round, reset each round"
    )
    server_learning_rate: PositiveFinite = Field(1.0, description="factor on the mean update")
    server_momentum: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = Field(
        0.0, description="momentum over rounds, at the server"
    )
    tail_average: Annotated[int, Field(ge=0, le=100_000)] = Field(
        0, description="release the mean of the models of the last so many rounds; 0 or 1: the last one"
    )
    weight_cap: Annotated[float, Field(ge=1.0, le=1e6, allow_inf_nan=False)] = Field(
        3.0, description="largest declared batch size that counts, as a multiple of the median"
    )
    physical_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(512, description="records per forward pass; memory only")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda|cuda:\d{1,2}|auto)$")] = Field("cpu", description="cpu, cuda, cuda:N or auto")


class PrivacySection(Section):
    """What is protected, and how much it may leak."""

    unit: Literal["example", "none"] = Field("example", description="example: each record of each client; none: no differential privacy")
    epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=True)] = Field(
        8.0, description="epsilon for the whole run; inf with unit = 'none'"
    )
    delta: Annotated[float, Field(ge=1e-30, lt=1.0, allow_inf_nan=False)] = Field(1e-3, description="delta of the guarantee")
    clip_norm: PositiveFinite = Field(1.0, description="L2 bound on one record's gradient")
    neighboring_relation: Literal["add-remove"] = Field("add-remove", description="neighbours differ in one record's presence")
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1e6, allow_inf_nan=False)] | None = Field(
        None, description="fix sigma instead of calibrating it; epsilon is then a cap"
    )
    epsilon_cap: Annotated[float, Field(gt=0.0)] | None = Field(None, description="a client's own cap over all runs; default: epsilon")
    clipping: Literal["opacus", "bookkeeping"] = Field("opacus", description="engine for per-record gradients; same result, other speed")

    @field_validator("epsilon")
    @classmethod
    def _not_nan(cls, value: float) -> float:
        if math.isnan(value):
            raise ValueError("must be a number")
        return value


class SecaggSection(Section):
    """Secure aggregation: the server learns sums over cohorts, and of each client a sketch."""

    enabled: bool = Field(False, description="the server learns sums only; on in the default plan")
    cohort_size: Annotated[int, Field(ge=4, le=1024)] = Field(
        64, description="most clients that aggregate together; more make more cohorts"
    )
    num_corrupt: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1, description="clients of the whole federation that may work with the server: a number, never a share"
    )
    minimum_accepted: PositiveInt | None = Field(
        None, description="fewest clients in an opened sum; default: half the cohort, and at least two honest ones"
    )
    sketch_rows: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = Field(
        128, description="numbers in a client's sketch, a multiple of 8"
    )
    norm_slack: Annotated[float, Field(gt=1.0, lt=4.0, allow_inf_nan=False)] = Field(
        2.0, description="squared norm that a sketch may show, in multiples of what the bound gives"
    )
    weight_limit: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        None, description="largest batch size a client may declare; default: the largest of the plan's"
    )
    update_norm: PositiveFinite | None = Field(
        None, description="L2 norm of a model difference past which it is shrunk; default: from clip and noise, without privacy 100"
    )
    sketch_without_dp: bool = Field(
        False, description="allow sketches of updates without noise: they hide little from a server that chooses models"
    )
    attempts: Annotated[int, Field(ge=1, le=2)] = Field(2, description="tries of a round that ends before anything was opened")
    stage_timeout_s: PositiveFinite = Field(60.0, description="seconds to wait in each stage but training, which has round_timeout_s")
    rosters: Annotated[int, Field(ge=1, le=10_000)] = Field(
        12, description="lists of clients, each with cohorts drawn anew, that the bound on corrupt members of a cohort provides for"
    )


RuleName = Literal[
    "auto", "mean", "screening", "group-filter", "filter", "krum", "multi-krum", "geometric-median", "centred-clipping", "nnm-geometric-median",
    "arc-nnm-geometric-median", "fltrust", "spectral", "mad-filter", "foolsgold", "median", "trimmed-mean", "meamed", "bulyan",
]  # fmt: skip

AttackName = Literal[
    "none", "sign-flip", "fixed-direction", "gaussian", "dilution", "free-rider", "replay", "label-flip", "alie", "ipm", "optimised-alie",
    "optimised-ipm", "min-max", "min-sum", "fang", "mimic", "relocated", "backdoor", "model-replacement", "constrain-and-scale", "dba",
    "adaptive", "nan-value", "infinity", "huge-value", "denormal", "wrong-shape", "wrong-dtype", "wrong-names", "duplicate-names", "huge-array",
    "negative-count", "huge-count", "sketch-lie", "sketch-lie-mod", "wrong-mask", "cancelling-pair", "silence",
]  # fmt: skip


class RobustSection(Section):
    """Rejection of outlier updates."""

    rule: RuleName = Field(
        "auto", description="aggregation rule; auto: screening with privacy, else arc-nnm-geometric-median or, on sketches, group-filter"
    )
    num_byzantine: Annotated[int, Field(ge=0, le=500_000)] | None = Field(
        None, description="f, the most clients that a rule may reject as suspects; default: a quarter of the clients"
    )
    reputation: bool = Field(True, description="judge over rounds: quarantine, probation, return")
    quarantine_rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(5, description="rounds in quarantine before probation")
    root_examples: Annotated[int, Field(ge=1, le=1_000_000)] = Field(100, description="fltrust: the server's own trusted records")


class AttackSection(Section):
    """Simulated attackers: certified clients of a simulation that collude. A deployed client refuses a plan with an attack."""

    name: AttackName = Field("none", description="attack; fedsec attack --list explains each")
    fraction: Annotated[float, Field(gt=0.0, lt=0.5, allow_inf_nan=False)] = Field(0.2, description="share of the clients that attack")
    knowledge: Literal["omniscient", "partial"] = Field(
        "omniscient", description="omniscient: sees all honest updates of the round; partial: only what the attackers would send if honest"
    )
    strength: Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)] | None = Field(
        None, description="the attack's own number (factor, deviations, norm); default: the attack's"
    )
    own_noise: bool = Field(False, description="model attacks add the noise that an honest client would")
    first_round: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="round of the first attack; honest before")
    rounds_on: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="on-off: rounds of attack ...")
    rounds_off: Annotated[int, Field(ge=0, le=100_000)] = Field(0, description="... and honest rounds between; 0: always on")
    source_class: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        None, description="label-flip, backdoor: class to change; default: all"
    )
    target_class: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        None, description="label-flip, backdoor: class to see instead; default: the mirrored one, or 0"
    )
    compare: bool = Field(True, description="run the same federation undefended and without the attack beside it")
