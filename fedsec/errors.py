"""Every error that fedsec raises on purpose, in one tree.

::

    FedsecError
    ├── ConfigError(ValueError)       unsound or contradictory settings; names the field and the mend
    ├── DataError                     a data file, partition or source that cannot be used
    ├── DecodeError                   bytes are not a canonical message
    ├── StorageError                  a local file or store is damaged, locked, or from another run
    ├── VerificationError             something was not proven
    │   ├── CertificateError
    │   ├── SignatureError
    │   ├── AdmissionError
    │   └── LogProofError
    ├── ProtocolError
    │   ├── LocalProtocolError        our own bug: a step was called out of order
    │   ├── PeerError                 one peer misbehaved: exclude it, go on
    │   └── RoundAborted              nothing of this round is released
    ├── PrivacyBudgetExceeded         the spend would pass the cap; nothing was released
    └── AuditError                    an audit could not see what it must see
        └── PrivacyClaimRefuted       an attack showed that a claimed epsilon is false

Rules: plain ``ValueError``/``TypeError`` is for misuse of pure functions. Third-party exceptions are wrapped once, at the
boundary where they appear. No message ever holds a secret.
"""

from __future__ import annotations


class FedsecError(Exception):
    """Base of every error that fedsec raises on purpose.

    Attributes:
        code: stable identifier for scripts, for example ``config``.
        exit_code: what the command line exits with.
    """

    code: str = "error"
    exit_code: int = 1


class ConfigError(FedsecError, ValueError):
    """A setting is unsound or contradicts another.

    Args:
        problem: what is wrong, in one sentence.
        field: ``section.key`` at fault, when there is one.
        mend: what to do about it, in one sentence.
        file: the file that holds the setting, when there is one.
    """

    code = "config"
    exit_code = 2

    def __init__(self, problem: str, *, field: str | None = None, mend: str | None = None, file: str | None = None) -> None:
        self.problem = problem
        self.field = field
        self.mend = mend
        self.file = file
        where = ": ".join(part for part in (file, field) if part)
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text} ({mend})" if mend else text)


class DataError(FedsecError):
    """A data file, partition or data source cannot be used."""

    code = "data"


class DecodeError(FedsecError):
    """Bytes are not a canonical message of the expected kind."""

    code = "decode"


class StorageError(FedsecError):
    """A local file or store is damaged, rolled back, locked, or belongs to another run."""

    code = "storage"


class VerificationError(FedsecError):
    """Something was not proven."""

    code = "verification"


class CertificateError(VerificationError):
    """A certificate or chain does not prove the identity it claims."""

    code = "certificate"


class SignatureError(VerificationError):
    """A signature does not verify."""

    code = "signature"


class AdmissionError(VerificationError):
    """Code is not approved to run here."""

    code = "admission"


class LogProofError(VerificationError):
    """A transparency-log proof does not hold."""

    code = "log-proof"


class ProtocolError(FedsecError):
    """A protocol rule was broken."""

    code = "protocol"


class LocalProtocolError(ProtocolError):
    """A step was called out of order by our own code."""

    code = "local-protocol"


class PeerError(ProtocolError):
    """One peer broke a rule: it is excluded and the round goes on.

    Args:
        client_id: who.
        phase: the protocol phase, or the step of the round, in which it happened.
        reason: what was wrong, in one sentence.
    """

    code = "peer"

    def __init__(self, client_id: str, phase: str, reason: str) -> None:
        self.client_id = client_id
        self.phase = phase
        self.reason = reason
        super().__init__(f"{client_id} in {phase}: {reason}")


class RoundAborted(ProtocolError):  # noqa: N818 - the design's name for it
    """The round ends without a result: nothing of it is released or used."""

    code = "round-aborted"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class PrivacyBudgetExceeded(FedsecError):  # noqa: N818 - the design's name for it
    """The planned spend would pass the cap; nothing was released.

    Args:
        spent: epsilon after the planned spend, dimensionless.
        limit: the cap it would pass.
        delta: the delta that both are stated at.
        before: epsilon spent so far, if known.
    """

    code = "privacy-budget"
    exit_code = 3

    def __init__(self, spent: float, limit: float, *, delta: float | None = None, before: float | None = None) -> None:
        self.spent = spent
        self.limit = limit
        self.delta = delta
        self.before = before
        so_far = f" (spent so far: {before:.4g})" if before is not None else ""
        at = f" at delta={delta:g}" if delta is not None else ""
        super().__init__(
            f"privacy budget: epsilon would reach {spent:.4g}{at}, over the cap of {limit:.4g}{so_far}; "
            "run fewer rounds, add noise, or agree on a higher cap"
        )


class AuditError(FedsecError):
    """An audit is blind or cannot be made: its silence would say nothing."""

    code = "audit"


class PrivacyClaimRefuted(AuditError):  # noqa: N818 - it says what happened, and that is no slip of the caller's
    """An attack succeeded more often than the claimed epsilon allows.

    Args:
        lower_bound: epsilon that was shown, at ``delta``.
        claimed: epsilon that was claimed, at the same delta.
        delta: of both.
        attack: which one.
    """

    code = "privacy-refuted"
    exit_code = 4

    def __init__(self, lower_bound: float, claimed: float, *, delta: float, attack: str) -> None:
        self.lower_bound = lower_bound
        self.claimed = claimed
        self.delta = delta
        super().__init__(
            f"privacy claim refuted ({attack}): epsilon is at least {lower_bound:.3g} at delta={delta:g}, {claimed:.3g} was claimed; "
            "do not release this model, and look for noise, clipping or accounting that is not what the plan says"
        )
