"""Constants and domain labels of secure aggregation, all in one place: what must be equal at both ends of the wire.

1. Every hash and every derived key stands under one :class:`Label`; a value made for one purpose never serves another.
2. What is here changes bytes or guarantees. Chunk sizes and other knobs of speed are private to their modules.
3. A change of anything here is a new protocol version.
"""

from __future__ import annotations

from enum import StrEnum

PROTOCOL_VERSION = "fedsec/secagg/v1"
"""First part of every context hash."""

RING_BITS = 32
"""Masked vectors are added modulo ``2**RING_BITS``."""

CONTEXT_BYTES = 32
"""Length of the SHA-256 that binds federation, cohort, run, round, attempt, model, settings and roster."""

SECRET_BYTES = 32
"""Length of a Shamir secret and of a share: one field element, little-endian."""

SEED_BYTES = 32
"""Length of self-mask seeds, pairwise seeds and the seed of the sketch matrix."""

PUBLIC_KEY_BYTES = 32
"""Length of an X25519 public key."""

STREAM_KEY_BYTES = 16
"""Masks and the sketch matrix are AES-128 in counter mode."""

MAX_DIMENSION = 1 << 26
"""Most parameters of a model (256 MiB a vector); the rounding and overflow proofs assume no more."""

MAX_COHORT = 1 << 10
"""Most members of a cohort: a complete graph of more would cost every client over a thousand masks."""

MAX_SKETCH_ROWS = 1 << 12
"""Most rows of the sketch matrix."""

ROWS_PER_WORD = 8
"""Rows of the sketch matrix come in groups of this many: 16 bits of key stream a coordinate."""

MAX_COHORTS = 1 << 12
"""Most cohorts of a group: their input roots are listed one by one to every client."""

MAX_CONTENT_BYTES = 1 << 21
"""Longest signed content: the edge values of BLAME in the largest cohort."""

MAX_REMOVED = (1 << 16) - 1
"""Most edges of a cohort that may be removed."""

MAX_ATTEMPTS = 2
"""Attempts of one round: the second uses the stored input of the first."""

MAX_WEIGHT = 1 << 20
"""Largest weight (declared batch size) that any plan may allow."""

MAX_ID_BYTES = 128
"""Longest client id, run id or federation name, in UTF-8."""

DIGEST_BYTES = 32
"""SHA-256 and BLAKE2b-256."""

SIGNATURE_BYTES = 64
"""P-256, see ``fedsec.signing``."""

IDENTITY_KEY_BYTES = 33
"""A compressed point of P-256, see ``fedsec.signing``."""

BOX_BYTES = 2 * 32 + 16
"""Two shares under AES-128-GCM."""

HONEST_MINIMUM = 2
"""Least number of honest clients in an opened sum: a sum over one is that client's update."""

TAIL_BITS = 40
"""A cohort holds more corrupt clients than assumed with probability at most ``2**-TAIL_BITS``."""

MAX_NORM_SLACK = 4
"""The norm gate's slack u is below this: past it the gate would admit twice the norm that the protocol allows."""


class Label(StrEnum):
    """What a hash or a derived key is for: one label, one purpose."""

    COHORT = "fedsec/secagg/v1/cohort"
    PAIR_SEED = "fedsec/secagg/v1/pair-seed"
    PAIR_MASK_KEY = "fedsec/secagg/v1/pair-mask-key"
    SELF_MASK_KEY = "fedsec/secagg/v1/self-mask-key"
    EDGE_TAG = "fedsec/secagg/v1/edge-tag"
    SEED_COMMITMENT = "fedsec/secagg/v1/seed-commitment"
    SKETCH_SEED = "fedsec/secagg/v1/sketch-seed"
    SKETCH_KEY = "fedsec/secagg/v1/sketch-key"
    CONTEXT = "fedsec/secagg/v1/context"
    RETRY = "fedsec/secagg/v1/retry"
    NONCE = "fedsec/secagg/v1/nonce"
    BOX_KEY = "fedsec/secagg/v1/box-key"
    SHARE = "fedsec/secagg/v1/share"
    ADVERTS = "fedsec/secagg/v1/adverts"
    DEALINGS = "fedsec/secagg/v1/dealings"
    INPUT = "fedsec/secagg/v1/input"
    INPUTS = "fedsec/secagg/v1/inputs"
    GROUP = "fedsec/secagg/v1/group"
    SKETCH = "fedsec/secagg/v1/sketch"
    BASE_VIEW = "fedsec/secagg/v1/base-view"
    VIEW = "fedsec/secagg/v1/view"
    AGREEMENT = "fedsec/secagg/v1/agreement"
    VECTOR = "fedsec-vector-v1"
    """Personalisation of BLAKE2b, which hashes uploads: at most 16 bytes."""


class SignLabel(StrEnum):
    """What a signature of an identity key is for: one label a type of statement."""

    CONFIG = "fedsec/secagg/v1/sign-config"
    ADVERT = "fedsec/secagg/v1/sign-advert"
    DEALING = "fedsec/secagg/v1/sign-dealing"
    INPUT = "fedsec/secagg/v1/sign-input"
    SKETCH = "fedsec/secagg/v1/sign-sketch"
    CONSENT = "fedsec/secagg/v1/sign-consent"
    SHARES = "fedsec/secagg/v1/sign-shares"
    BLAME = "fedsec/secagg/v1/sign-blame"
    EDGE = "fedsec/secagg/v1/sign-edge"


class Phase(StrEnum):
    """The stages of a round, named after Bonawitz et al. 2017."""

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    SKETCH = "sketch"
    CONSISTENCY_CHECK = "consistency_check"
    UNMASK = "unmask"
    BLAME = "blame"
    BLAME_OPEN = "blame_open"
    DONE = "done"
    ABORTED = "aborted"
