"""What gradient inversion made of the updates of a plan, as plain data: lines of figures, and the pictures of the first seed.

1. A figure is one victim's: PSNR and SSIM against its own picture, and whether the attack found its class. A line holds those of all victims and seeds.
2. Beside every line stands the blind guess of who knows as much beforehand: the mean public picture, which needs no attack, or that of the class where
   the attack is told the class. A difference is taken victim by victim.
3. Pictures are bytes, one a pixel, in base64.
"""

from __future__ import annotations

import base64
import binascii
import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedsec.errors import DecodeError
from fedsec.jsonfields import FLAG, INTEGER, NUMBER, TEXT, Codec, Table, build, dump, list_of, optional

INVERSION_FORMAT = "fedsec/inversion/v1"

MEAN, CLASS_MEAN, CLASS_ROWS, LIKELIEST_OF_CLASS = "mean picture", "mean picture, class known", "class rows", "likeliest, class known"
TOLD = (CLASS_MEAN, CLASS_ROWS, LIKELIEST_OF_CLASS)
"""Attacks that are told the victim's class."""

Sees = Literal["nothing", "update", "sum"]
"""What the attacker has: public pictures only; a client's update; the sum of all clients' updates."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class InversionLine:
    """One attack on what one kind of server sees.

    Attributes:
        sees: what the attacker has.
        epsilon: of the plan; infinite: no clipping, no noise.
        attack: name.
        psnr: decibels, one for each seed and victim.
        ssim: at most 1, the same.
        label_right: whether the attack found the class; None where it does not guess, or is told.
        pictures: of the first seed's victims.
    """

    sees: Sees
    epsilon: float
    attack: str
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    label_right: tuple[bool, ...] | None
    pictures: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.sees not in get_args(Sees):
            raise ValueError(f"nobody sees {str(self.sees)[:40]!r}")
        labels = len(self.psnr) if self.label_right is None else len(self.label_right)
        if not self.psnr or {len(self.ssim), labels} != {len(self.psnr)} or not all(map(math.isfinite, (*self.psnr, *self.ssim))):
            raise ValueError("a line has one finite figure of each kind for each victim, and at least one victim")
        if not self.epsilon > 0.0:
            raise ValueError(f"epsilon is over 0, not {self.epsilon!r}")

    @property
    def mean(self) -> float:
        """PSNR, decibels."""
        return statistics.fmean(self.psnr)

    @property
    def label_share(self) -> float | None:
        """Share of the victims whose class was found."""
        return None if self.label_right is None else sum(self.label_right) / len(self.label_right)


@dataclass(frozen=True, kw_only=True)
class InversionReport:
    """All attacks on one plan.

    Attributes:
        height: of a picture, pixels.
        width: the same.
        clients: whose updates are summed, one record each.
        classes: of the task.
        seeds: each with victims of its own.
        window: of SSIM, pixels.
        originals: pictures of the first seed's victims.
        lines: the blind guess first.
    """

    height: int
    width: int
    clients: int
    classes: int
    seeds: tuple[int, ...]
    window: int
    originals: tuple[str, ...]
    lines: tuple[InversionLine, ...]

    def __post_init__(self) -> None:
        if not self.lines or self.lines[0].sees != "nothing" or not self.originals or min(self.height, self.width) < 1:
            raise ValueError("a report has pictures, and the blind guess first")
        if len({len(line.psnr) for line in self.lines}) != 1 or any(len(line.pictures) != len(self.originals) for line in self.lines):
            raise ValueError("all lines are about the same victims")
        for picture in (*self.originals, *(one for line in self.lines for one in line.pictures)):
            self.pixels(picture)

    @property
    def blind(self) -> InversionLine:
        """The mean public picture."""
        return self.lines[0]

    def baseline(self, line: InversionLine) -> InversionLine:
        """The blind guess of an attacker who is told as much as this one; reports of before have that of the class not, and the mean stands in for it."""
        told = (one for one in self.lines if line.attack in TOLD and one.sees == "nothing" and one.attack == CLASS_MEAN)
        return next(told, self.blind)

    def gain(self, line: InversionLine) -> tuple[float, ...]:
        """Decibels over the blind guess of the same knowledge, victim by victim."""
        return tuple(ours - theirs for ours, theirs in zip(line.psnr, self.baseline(line).psnr, strict=True))

    def mean_gain(self, line: InversionLine) -> float:
        """The mean of these, decibels."""
        return statistics.fmean(self.gain(line))

    def strongest(self) -> list[InversionLine]:
        """For each view and epsilon the attack that gains most: chosen afterwards, in the attacker's favour. Each blind guess is a view of its own."""
        best: dict[tuple[str, float, str], tuple[float, InversionLine]] = {}
        for line in self.lines:
            view = (line.sees, line.epsilon, line.attack if line.sees == "nothing" else "")
            gained = self.mean_gain(line)
            if view not in best or gained > best[view][0]:
                best[view] = (gained, line)
        return [line for _, line in best.values()]

    def pixels(self, picture: str) -> Pixels:
        """uint8 [height, width].

        Raises:
            ValueError: it is no picture of this size.
        """
        try:
            data = base64.b64decode(picture, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a picture is damaged: {error}") from None
        if len(data) != self.height * self.width:
            raise ValueError(f"a picture has {len(data)} pixels and not {self.height} x {self.width}")
        return np.frombuffer(data, dtype=np.uint8).reshape(self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {"format": INVERSION_FORMAT, **dump(_REPORT, self)}

    @classmethod
    def from_json(cls, value: Any, what: str = "inversion") -> InversionReport:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        if not isinstance(value, dict) or value.get("format") != INVERSION_FORMAT:
            raise DecodeError(f"{what} is not of the format {INVERSION_FORMAT!r}")
        return build(cls, _REPORT, {key: item for key, item in value.items() if key != "format"}, what)


def spell_picture(picture: npt.NDArray[np.floating]) -> str:
    """Pixels, cut to 0..1, as bytes in base64."""
    rounded = np.rint(np.clip(np.nan_to_num(picture), 0.0, 1.0) * 255.0).astype(np.uint8)
    return base64.b64encode(rounded.tobytes()).decode("ascii")


_LINE: Table = {
    "sees": TEXT,
    "epsilon": NUMBER,
    "attack": TEXT,
    "psnr": list_of(NUMBER),
    "ssim": list_of(NUMBER),
    "label_right": optional(list_of(FLAG)),
    "pictures": list_of(TEXT),
}
_REPORT: Table = {
    "height": INTEGER,
    "width": INTEGER,
    "clients": INTEGER,
    "classes": INTEGER,
    "seeds": list_of(INTEGER),
    "window": INTEGER,
    "originals": list_of(TEXT),
    "lines": list_of(Codec(lambda line: dump(_LINE, line), lambda value, what: build(InversionLine, _LINE, value, what))),
}
