"""``ca.toml``: what an operator sets for a CA; everything has a default, an unknown key is refused."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.files import atomic_write_text
from fedsec.identity.names import check_name
from fedsec.identity.roster import MAX_MEMBERS
from fedsec.identity.tokens import check_address

FILE = "ca.toml"

_TEXT = """# Settings of this certificate authority; see docs/certificates.md.
address = "{address}"        # host:port of `fedsec ca serve` as devices reach it; stands in tokens
server = "{server}"          # the server that the list of clients names
cohort_size = {cohort_size}  # largest number of clients in a group of secure aggregation
auto_roster = {auto_roster}  # make a new list of clients whenever they change; else only `fedsec ca roster` does
"""


@dataclass(frozen=True, kw_only=True)
class CaSettings:
    """What an operator sets.

    Attributes:
        address: ``host:port`` of the enrolment service as devices reach it; empty: not said in tokens.
        server: name of the server that rosters name.
        cohort_size: largest number of members of a cohort.
        auto_roster: make a new roster whenever the clients change.

    Raises:
        ConfigError: a value out of range.
    """

    address: str = ""
    server: str = "main"
    cohort_size: int = 64
    auto_roster: bool = True

    def __post_init__(self) -> None:
        for name, kind in (("address", str), ("server", str), ("cohort_size", int), ("auto_roster", bool)):
            if type(getattr(self, name)) is not kind:
                raise ConfigError(f"not {kind.__name__}", field=name, file=FILE)
        if not 1 <= self.cohort_size <= MAX_MEMBERS:
            raise ConfigError(f"{self.cohort_size} is not from 1 to {MAX_MEMBERS}", field="cohort_size", file=FILE)
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
    text = _TEXT.format(address=settings.address, server=settings.server, cohort_size=settings.cohort_size, auto_roster=flag)
    atomic_write_text(folder / FILE, text)
