"""``ca.toml``: what an operator sets for a CA; everything has a default, an unknown key is refused."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.files import atomic_write_text
from fedsec.identity.names import check_name
from fedsec.identity.roster import MAX_MEMBERS
from fedsec.identity.tokens import check_address

FILE = "ca.toml"
MAX_ROSTER_DAYS, MAX_CRL_HOURS = 7, 72

_TEXT = """# Settings of this certificate authority; see docs/certificates.md.
address = "{address}"        # host:port of `fedsec ca serve` as devices reach it; stands in tokens
server = "{server}"          # the server that the list of clients names
cohort_size = {cohort_size}  # largest number of clients in a group of secure aggregation
roster_days = {roster_days}  # period of a list of clients, at most 7; `fedsec ca serve` makes the next one when half of it is over
crl_hours = {crl_hours}      # period of a revocation list, 1 to 72; the next one is made when a quarter of it is over
auto_roster = {auto_roster}  # make a new list of clients whenever they change; else only `fedsec ca roster` does
"""


@dataclass(frozen=True, kw_only=True)
class CaSettings:
    """What an operator sets.

    Attributes:
        address: ``host:port`` of the enrolment service as devices reach it; empty: not said in tokens.
        server: name of the server that rosters name.
        cohort_size: largest number of members of a cohort.
        roster_days: period of a roster, days; at most 7. Hiding newer ones keeps a client that left in its group for so long.
        crl_hours: period of a revocation list, hours; at most 72. Hiding newer ones keeps a revoked peer going for so long.
        auto_roster: make a new roster whenever the clients change.

    Raises:
        ConfigError: a value out of range.
    """

    address: str = ""
    server: str = "main"
    cohort_size: int = 64
    roster_days: int = 7
    crl_hours: int = 24
    auto_roster: bool = True

    @property
    def roster_lifetime(self) -> timedelta:
        """Period of a new roster."""
        return timedelta(days=self.roster_days)

    @property
    def crl_lifetime(self) -> timedelta:
        """Period of a new revocation list."""
        return timedelta(hours=self.crl_hours)

    def __post_init__(self) -> None:
        for name, kind in (
            ("address", str),
            ("server", str),
            ("cohort_size", int),
            ("roster_days", int),
            ("crl_hours", int),
            ("auto_roster", bool),
        ):
            if type(getattr(self, name)) is not kind:
                raise ConfigError(f"not {kind.__name__}", field=name, file=FILE)
        if not 1 <= self.cohort_size <= MAX_MEMBERS:
            raise ConfigError(f"{self.cohort_size} is not from 1 to {MAX_MEMBERS}", field="cohort_size", file=FILE)
        if not 1 <= self.roster_days <= MAX_ROSTER_DAYS:
            raise ConfigError(f"{self.roster_days} is not from 1 to {MAX_ROSTER_DAYS}", field="roster_days", file=FILE)
        if not 1 <= self.crl_hours <= MAX_CRL_HOURS:
            raise ConfigError(f"{self.crl_hours} is not from 1 to {MAX_CRL_HOURS}", field="crl_hours", file=FILE)
        try:
            check_name("server name", self.server)
            if self.address:
                check_address(self.address)
        except (CertificateError, ValueError) as error:
            raise ConfigError(str(error), file=FILE) from None


def load_ca_settings(folder: Path) -> CaSettings:
    """Read a CA's settings.

    Raises:
        ConfigError: an unknown key or a value that cannot be.
        StorageError: the file cannot be read.
    """
    path = folder / FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", file=str(path)) from None
    if unknown := values.keys() - CaSettings.__dataclass_fields__.keys():
        known = ", ".join(CaSettings.__dataclass_fields__)
        raise ConfigError("unknown key", field=min(unknown)[:80], mend=f"known: {known}", file=str(path))
    return CaSettings(**values)


def save_ca_settings(folder: Path, settings: CaSettings) -> None:
    """Write a CA's settings, with what each means; raises StorageError."""
    flag = "true" if settings.auto_roster else "false"
    text = _TEXT.format(**{**vars(settings), "auto_roster": flag})
    atomic_write_text(folder / FILE, text)
