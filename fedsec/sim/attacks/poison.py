"""What attackers do to their own records before they train honestly on them: flipped labels, and records with a trigger.

1. Records are changed, never added: a colluder holds as many as before, and its declared batch size stays true.
2. The trigger is the same for everybody and follows from the shape of a record alone, so that the test of the attack needs nothing from the
   attackers. Of a distributed backdoor each colluder knows a part of it, and the test shows all parts.
3. ``attack_records`` gives test records and the labels that the attackers want: a model's accuracy on them is the attack's success rate.

Source: label flip: Tolpegin et al. 2020 (arXiv 2007.08432); trigger: BadNets, Gu et al. 2017 (arXiv 1708.06733); in parts: DBA, Xie et al., ICLR 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.errors import ConfigError
from fedsec.plan.sections import AttackSection
from fedsec.sim.attacks.catalogue import CATALOGUE
from fedsec.vectors import FloatArray

IntArray = npt.NDArray[np.int64]

PIXEL = 1.0
"""Value of the trigger in an image: pixels lie in 0..1."""

FEATURE = 3.0
"""Value of the trigger in other records: deviations of a standardised feature."""

_BACKDOOR_TARGET = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """Fixed values in fixed places of a record.

    Attributes:
        places: int64, indices into the flattened record, distinct.
        value: what stands there.
    """

    places: IntArray
    value: float

    @classmethod
    def for_shape(cls, shape: tuple[int, ...]) -> Trigger:
        """The whole trigger for records of this shape.

        Images ([..., height, width], or a vector whose length is a square of at least 4): a square in the lower right corner, a seventh of the
        height, at least 2 x 2 pixels, in every channel. Other vectors: the last features, a sixteenth of them and at least one.

        >>> Trigger.for_shape((64,)).places.tolist(), Trigger.for_shape((13,)).places.tolist()
        ([54, 55, 62, 63], [12])
        """
        size = math.prod(shape)
        side = math.isqrt(size)
        if len(shape) == 1 and (side * side != size or side < 4):
            return cls(places=np.arange(size - max(1, size // 16), size, dtype=np.int64), value=FEATURE)
        image = shape if len(shape) > 1 else (side, side)
        height, width = max(2, image[-2] // 7), max(2, image[-1] // 7)
        places = np.arange(size, dtype=np.int64).reshape(image)[..., -height:, -width:]
        return cls(places=places.reshape(-1), value=PIXEL)

    def part(self, place: int, count: int) -> Trigger:
        """What colluder ``place`` of ``count`` knows: every count-th place; with more colluders than places some know the same one."""
        count = min(count, len(self.places))
        return Trigger(places=self.places[place % count :: count], value=self.value)

    def stamp(self, x: FloatArray) -> FloatArray:
        """Copies of records [n, *shape] with the trigger in them."""
        stamped = np.array(x, dtype=np.float32, order="C")
        stamped.reshape(len(x), math.prod(x.shape[1:]))[:, self.places] = self.value
        return stamped


def poison_records(
    settings: AttackSection,
    x: FloatArray,
    y: IntArray,
    *,
    num_classes: int,
    place: int,
    num_attackers: int,
    generator: np.random.Generator,
) -> tuple[FloatArray, IntArray]:
    """The records that an attacker trains on.

    Args:
        settings: the plan's attack section; ``strength``: share of the records concerned that are changed (catalogue).
        x: float32 [n, *shape]; not changed.
        y: int64 [n]; not changed.
        num_classes: L.
        place: of this attacker among the colluders, from 0.
        num_attackers: all colluders.
        generator: draws which records.

    Returns:
        The arrays themselves for attacks that leave records alone, else changed copies.

    Raises:
        ConfigError: a class that the task does not have.
    """
    if not CATALOGUE[settings.name].poisons_records:
        return x, y
    wanted = _wanted(settings, y, num_classes)
    concerned = _concerned(settings, y)
    chosen = concerned[generator.random(len(concerned)) < _share(settings)]
    labels = y.copy()
    labels[chosen] = wanted[chosen]
    if settings.name == "label-flip":
        return x, labels
    trigger = Trigger.for_shape(x.shape[1:])
    if settings.name == "dba":
        trigger = trigger.part(place, num_attackers)
    records = x.copy()
    records[chosen] = trigger.stamp(x[chosen])
    return records, labels


def attack_records(settings: AttackSection, x: FloatArray, y: IntArray, *, num_classes: int) -> tuple[FloatArray, IntArray]:
    """Test records as the attackers want them classified, where that differs from the truth; with the whole trigger, if there is one.

    Raises:
        ConfigError: a class that the task does not have.
        ValueError: the attack wants nothing of the kind.
    """
    if not CATALOGUE[settings.name].poisons_records:
        raise ValueError(f"{settings.name} has no class that it wants to see")
    wanted = _wanted(settings, y, num_classes)
    concerned = _concerned(settings, y)
    concerned = concerned[wanted[concerned] != y[concerned]]
    records = x[concerned]
    return (records if settings.name == "label-flip" else Trigger.for_shape(x.shape[1:]).stamp(records)), wanted[concerned]


def _share(settings: AttackSection) -> float:
    """Share of the records concerned that are changed. Attacks that scale use their number for the scale, and the share of a plain backdoor."""
    if settings.name in ("model-replacement", "constrain-and-scale"):
        return CATALOGUE["backdoor"].default or 0.0
    default = CATALOGUE[settings.name].default or 0.0
    return default if settings.strength is None else settings.strength


def _concerned(settings: AttackSection, y: IntArray) -> IntArray:
    everything = np.ones(len(y), dtype=bool) if settings.source_class is None else y == settings.source_class
    return np.flatnonzero(everything).astype(np.int64)


def _wanted(settings: AttackSection, y: IntArray, num_classes: int) -> IntArray:
    """The label that the attackers want for each record."""
    for field in ("source_class", "target_class"):
        given = getattr(settings, field)
        if given is not None and given >= num_classes:
            raise ConfigError(f"class {given} of {num_classes}", field=f"attack.{field}", mend=f"use 0 to {num_classes - 1}")
    target = settings.target_class
    if target is None and settings.name == "label-flip":
        return num_classes - 1 - y
    return np.full_like(y, _BACKDOOR_TARGET if target is None else target)
