"""CONFIG: everything that a cohort's round depends on, signed by the server; and what a client insists on before it takes part.

1. The context is the hash of the whole CONFIG: one changed number is another round, in which no key and no signature of this one serves.
2. Threshold and limits are recomputed, never believed: a CONFIG that does not follow from its own numbers cannot be made or read.
3. The client's :class:`LocalPolicy` decides. The server's numbers may be stricter, never weaker.
4. A retry has the same :meth:`RoundConfig.retry_digest`: it differs in the attempt and in the nonce commitment, in nothing else.

Source: design note SECAGG, "Binding and persistence" and stage 0; decision 0010, findings 3, 15 and 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedsec.codec import digest
from fedsec.errors import ConfigError
from fedsec.secagg.cohorts import CohortLimits, shamir_threshold
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.secagg.labels import (
    DIGEST_BYTES,
    HONEST_MINIMUM,
    IDENTITY_KEY_BYTES,
    MAX_ATTEMPTS,
    MAX_COHORT,
    MAX_COHORTS,
    MAX_CONTENT_BYTES,
    MAX_ID_BYTES,
    MAX_NORM_SLACK,
    MAX_SKETCH_ROWS,
    MAX_WEIGHT,
    PROTOCOL_VERSION,
    ROWS_PER_WORD,
    SEED_BYTES,
    Label,
)
from fedsec.secagg.wire import Fixed, Float, Parted, Record, Text, UInt


@dataclass(frozen=True, kw_only=True)
class RoundConfig(Record):
    """One cohort's round.

    Attributes:
        federation: name of the federation, as in its certificates.
        cohort: which cohort, from 0.
        num_cohorts: cohorts of the roster.
        run_id: fedsec's id of the run; survives a resume.
        server_round: from 1.
        attempt: from 1 to ``MAX_ATTEMPTS``.
        model_hash: digest of the model that comes with MASKED_INPUT.
        terms_hash: digest of the plan and its noise: what the client trains by.
        roster_hash: digest of the CA's signed list of clients.
        num_clients: N, members of the cohort.
        num_corrupt: c.
        minimum_accepted: a_min.
        threshold: t; must be what N and c give.
        dimension: d, entries of an update.
        scale: ring steps per unit of the update.
        norm_bound: L, in ring steps.
        num_rows: k, rows of the sketch.
        norm_slack: u of the norm gate.
        weight_limit: largest weight that a member may declare.
        rule: name of the rule that reads the sketches.
        nonce_commitment: hash of the server's secret nonce.
        time_s: when certificates are judged, seconds since 1970, UTC.

    Raises:
        ConfigError: a number is out of range, or does not follow from the others.
    """

    TYPE = 2
    FIELDS = (
        ("federation", Text(MAX_ID_BYTES)),
        ("cohort", UInt(2)),
        ("num_cohorts", UInt(2)),
        ("run_id", Text(MAX_ID_BYTES)),
        ("server_round", UInt(4)),
        ("attempt", UInt(1)),
        ("model_hash", Fixed(DIGEST_BYTES)),
        ("terms_hash", Fixed(DIGEST_BYTES)),
        ("roster_hash", Fixed(DIGEST_BYTES)),
        ("num_clients", UInt(2)),
        ("num_corrupt", UInt(2)),
        ("minimum_accepted", UInt(2)),
        ("threshold", UInt(2)),
        ("dimension", UInt(4)),
        ("scale", Float()),
        ("norm_bound", UInt(4)),
        ("num_rows", UInt(2)),
        ("norm_slack", Float()),
        ("weight_limit", UInt(4)),
        ("rule", Text(64)),
        ("nonce_commitment", Fixed(DIGEST_BYTES)),
        ("time_s", UInt(8)),
    )
    federation: str
    cohort: int
    num_cohorts: int
    run_id: str
    server_round: int
    attempt: int
    model_hash: bytes
    terms_hash: bytes
    roster_hash: bytes
    num_clients: int
    num_corrupt: int
    minimum_accepted: int
    threshold: int
    dimension: int
    scale: float
    norm_bound: int
    num_rows: int
    norm_slack: float
    weight_limit: int
    rule: str
    nonce_commitment: bytes
    time_s: int

    def __post_init__(self) -> None:
        try:
            self.encode()
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"CONFIG has a value without an encoding: {error}") from None
        if not (1 <= self.num_cohorts <= MAX_COHORTS and 0 <= self.cohort < self.num_cohorts):
            raise ConfigError(f"cohort {self.cohort} of {self.num_cohorts}", field="secagg.cohort_size")
        if not (self.server_round >= 1 and 1 <= self.attempt <= MAX_ATTEMPTS):
            raise ConfigError(f"round {self.server_round}, attempt {self.attempt}: out of range")
        _ = self.limits, self.fixed_point  # both check themselves
        if self.threshold != shamir_threshold(self.num_clients, self.num_corrupt):
            raise ConfigError(f"threshold {self.threshold} does not follow from N = {self.num_clients} and c = {self.num_corrupt}")
        if not (ROWS_PER_WORD <= self.num_rows <= MAX_SKETCH_ROWS and self.num_rows % ROWS_PER_WORD == 0):
            raise ConfigError(f"{self.num_rows} sketch rows", field="secagg.sketch_rows", mend=f"a multiple of 8 up to {MAX_SKETCH_ROWS}")
        if self.num_clients * (4 * self.num_rows + 6) > MAX_CONTENT_BYTES - 1024:
            raise ConfigError(
                f"edge values of {self.num_clients} members with {self.num_rows} rows are longer than a message",
                field="secagg.sketch_rows",
                mend="use fewer rows or smaller cohorts",
            )
        if not 1 < self.norm_slack < MAX_NORM_SLACK:
            raise ConfigError(f"norm slack {self.norm_slack}", field="secagg.norm_slack", mend=f"over 1, under {MAX_NORM_SLACK}")
        if not 1 <= self.weight_limit <= MAX_WEIGHT:
            raise ConfigError(f"weight limit {self.weight_limit} is not in 1..{MAX_WEIGHT}", field="secagg.weight_limit")

    @property
    def limits(self) -> CohortLimits:
        """N, c and a_min, checked against one another."""
        return CohortLimits(num_clients=self.num_clients, num_corrupt=self.num_corrupt, minimum_accepted=self.minimum_accepted)

    @property
    def fixed_point(self) -> FixedPoint:
        """The encoding of updates; its making is the check that nothing can wrap."""
        return FixedPoint(scale=self.scale, norm_bound=self.norm_bound, num_clients=self.num_clients, dimension=self.dimension)

    def context(self) -> bytes:
        """ctx: 32 bytes that bind every key and every signature of the round."""
        return digest(Label.CONTEXT, PROTOCOL_VERSION.encode(), self.encode())

    def retry_digest(self) -> bytes:
        """Equal for all attempts of one round."""
        return digest(Label.RETRY, replace(self, attempt=1, nonce_commitment=bytes(DIGEST_BYTES)).encode())


def nonce_commitment(nonce: bytes) -> bytes:
    """What CONFIG shows of the server's nonce.

    Raises:
        ValueError: not 32 bytes.
    """
    if len(nonce) != SEED_BYTES:
        raise ValueError(f"a nonce has {SEED_BYTES} bytes, not {len(nonce)}")
    return digest(Label.NONCE, nonce)


@dataclass(frozen=True, kw_only=True)
class Member(Parted):
    """A member of the cohort as the CA's list names it.

    Attributes:
        client_id: its name.
        public_key: its identity key, see ``fedsec.signing``.
    """

    FIELDS = (("client_id", Text(MAX_ID_BYTES)), ("public_key", Fixed(IDENTITY_KEY_BYTES)))
    client_id: str
    public_key: bytes


@dataclass(frozen=True, kw_only=True)
class LocalPolicy:
    """What a client insists on, whatever CONFIG says.

    Attributes:
        minimum_cohort: least N.
        num_corrupt: least c: how many members it believes may work with the server.
        honest_minimum: least ``a_min - c``: honest clients in a sum.
        maximum_rows: most sketch rows of one update over all attempts of a round.
        row_share: most sketch rows of one update, as a share of its entries: many rows rebuild an update that no noise covers.
        sketches_allowed: whether a sketch may leave at all; without DP it does not hide the update from a server that chooses the model.

    Raises:
        ConfigError: a limit that protects nobody.
    """

    minimum_cohort: int = 4
    num_corrupt: int = 1
    honest_minimum: int = HONEST_MINIMUM
    maximum_rows: int = MAX_ATTEMPTS * 256
    row_share: float = 1.0
    sketches_allowed: bool = True

    def __post_init__(self) -> None:
        for name, least in (("minimum_cohort", 4), ("num_corrupt", 1), ("honest_minimum", HONEST_MINIMUM), ("maximum_rows", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= MAX_COHORT * MAX_SKETCH_ROWS:
                raise ConfigError(f"{value!r} is not a number from {least}", field=f"policy.{name}")
        if type(self.row_share) is not float or not 0 < self.row_share <= 1:
            raise ConfigError(f"{self.row_share!r} is not a share", field="policy.row_share")
        if type(self.sketches_allowed) is not bool:
            raise ConfigError("is not true or false", field="policy.sketches_allowed")

    def check(self, config: RoundConfig) -> None:
        """Refuse a round that protects less than this client insists on.

        Raises:
            ConfigError: names the limit.
        """
        for name, offered, least in (
            ("num_clients", config.num_clients, self.minimum_cohort),
            ("num_corrupt", config.num_corrupt, self.num_corrupt),
            ("minimum_accepted - num_corrupt", config.minimum_accepted - config.num_corrupt, self.honest_minimum),
        ):
            if offered < least:
                raise ConfigError(f"{name} is {offered}, this client's least is {least}", field="secagg")
        if not self.sketches_allowed:
            raise ConfigError("this client releases no sketches of updates without differential privacy", field="secagg")
        if config.attempt * config.num_rows > min(self.maximum_rows, self.row_share * config.dimension):
            raise ConfigError(
                f"{config.attempt * config.num_rows} sketch rows of one update of {config.dimension} entries are more than this client releases",
                field="secagg.sketch_rows",
            )


def check_members(config: RoundConfig, members: Sequence[Member]) -> None:
    """Refuse a list of members that is not the cohort of CONFIG.

    Raises:
        ConfigError: another number, or a name or a key twice.
    """
    if len(members) != config.num_clients:
        raise ConfigError(f"the roster has {len(members)} members in this cohort, CONFIG says {config.num_clients}")
    for values in ([member.client_id for member in members], [member.public_key for member in members]):
        if len(set(values)) != len(values):
            raise ConfigError("a client or an identity key stands in the cohort twice")
