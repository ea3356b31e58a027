"""Members that lie, in rounds of rounds.py: single lies for the stories of test_attacks_*.py, and random ones for the soak.

A liar first does what an honest member does, and then says something else under its own signature. Its state is moved along, so that it can stay
in the round after the lie. Every function here works on a ``Federation`` whose server is in the phase of the lie::

    fed.run(Phase.SHARE_KEYS); hostile.answer_all(fed)     # everybody has answered, nothing is delivered
    hostile.deal(fed, 1, change)                           # member 1 says something else
    hostile.deliver_all(fed); fed.advance(); fed.run()

``soak(seed, ...)`` is one random round with up to c colluding liars and an honest server, and says what became of it; it raises ``Broken`` if
an honest member is named, a wrong sum is used, an honest member or the honest server is thrown off its path, or a failed opening
with all answers names nobody. ``experiments/secagg_soak`` runs many of them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedsec.errors import PeerError, RoundAborted
from fedsec.merkle import merkle_root
from fedsec.secagg import shamir
from fedsec.secagg.blame import BlameOutcome, BlameServer, name_bad_dealers, name_share_liars
from fedsec.secagg.dealing import _associated, box_keys, leaf_hashes
from fedsec.secagg.evidence import Named, verify_evidence
from fedsec.secagg.evidence_record import Evidence
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import (
    Advert,
    BlameValues,
    Consent,
    Dealing,
    DealtLeaf,
    DealtLeaves,
    EdgeSeed,
    EdgeValue,
    Envelope,
    Input,
    OpenEdgeRequest,
    Shares,
    SketchOpening,
    SketchStatement,
)
from fedsec.secagg.opening import OpeningFailed, Secrets, combine_secrets, open_round
from fedsec.secagg.shamir import PRIME
from fedsec.secagg.sketch import SketchMatrix
from fedsec.secagg.views import input_digest, share_hash, sketch_commitment, vector_hash


def _load_rounds() -> Any:
    name = "fedsec_tests_secagg_rounds"  # as in conftest.py
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("rounds.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


rounds = _load_rounds()
Federation = rounds.Federation

SCALE_UP = 1 << 32


class Broken(AssertionError):  # noqa: N818 - said of the machines, not of a call
    """Something happened that the design says cannot."""


# --- everybody ------------------------------------------------------------------------------------------------------------------


def answer_all(fed: Any, *, absent: Collection[int] = ()) -> None:
    """All that are asked answer, honestly; nothing is delivered."""
    for index in fed.server.asked():
        if index not in absent:
            fed.answer(index)


def deliver_all(fed: Any, *, absent: Collection[int] = ()) -> dict[int, PeerError]:
    """Deliver what was answered; what the server refused, by sender."""
    phase, refused = fed.server.phase, {}
    for index, message in sorted(fed.messages[phase].items()):
        if index not in absent:
            try:
                fed.deliver(index, message)
            except PeerError as error:
                refused[index] = error
    return refused


def said(fed: Any, phase: Phase, index: int, kind: type) -> tuple[Any, bytes]:
    """A member's statement of a phase, and what was attached."""
    envelope = Envelope.decode(fed.messages[phase][index])
    return kind.decode(envelope.content), envelope.attachment


def matrix_of(fed: Any) -> SketchMatrix:
    """R of the round."""
    return SketchMatrix(seed=fed.server.matrix_seed, num_rows=fed.config.num_rows, dimension=fed.config.dimension)


# --- single lies ----------------------------------------------------------------------------------------------------------------


def advertise(fed: Any, liar: int, **changes: Any) -> None:
    """Another advert: ``mask_key``, ``box_key``, ``seed_commitment`` or ``weight``."""
    advert, _ = said(fed, Phase.ADVERTISE_KEYS, liar, Advert)
    advert = replace(advert, **changes)
    fed.states[liar] = replace(fed.states[liar], advert=advert)
    fed.messages[Phase.ADVERTISE_KEYS][liar] = fed.sign(liar, advert)


def deal(fed: Any, liar: int, change: Callable[[DealtLeaf], DealtLeaf | None]) -> None:
    """Another dealing: ``change`` says what becomes of each leaf (None: as it was); the liar signs the root over what comes out."""
    _, attachment = said(fed, Phase.SHARE_KEYS, liar, Dealing)
    leaves = tuple(change(leaf) or leaf for leaf in DealtLeaves.decode(attachment).leaves)
    root = merkle_root(leaf_hashes(leaves))
    tags = {advert.sender: leaf.tag for advert, leaf in zip(fed.states[liar].adverts, leaves, strict=True)}
    pairs = tuple(replace(pair, tag=tags[pair.peer]) for pair in fed.states[liar].pairs)  # it sticks to what it signed
    fed.states[liar] = replace(fed.states[liar], root=root, pairs=pairs)
    statement = Dealing(context=fed.config.context(), sender=liar, root=root)
    fed.messages[Phase.SHARE_KEYS][liar] = fed.sign(liar, statement, attachment=DealtLeaves(leaves=leaves).encode())


def seal(fed: Any, liar: int, receiver: int, seed_share: bytes, key_share: bytes) -> bytes:
    """A sound box with any two shares."""
    before = fed.before[Phase.SHARE_KEYS][liar]
    adverts = {advert.sender: advert for advert in fed.states[liar].adverts}
    keys = box_keys(PrivateKey(before.box_key).exchange(adverts[receiver].box_key), adverts[liar], adverts[receiver])
    return AESGCM(keys.seal).encrypt(bytes(12), seed_share + key_share, _associated(fed.config.context(), liar, receiver))


def deal_secrets(fed: Any, liar: int, seed: bytes, key: bytes, *, one_polynomial: bool = False) -> None:
    """Deal shares of any two secrets, with boxes and hashes that fit; ``one_polynomial``: with the same randomness for both."""
    order, threshold, context = [advert.sender for advert in fed.states[liar].adverts], fed.config.threshold, fed.config.context()
    points = [index + 1 for index in order]
    size = shamir.randomness_bytes(threshold)
    seeds, keys = (
        dict(zip(order, shamir.split(secret, threshold=threshold, points=points, randomness=fed.draw(what, liar, size)), strict=True))
        for secret, what in ((seed, "lie"), (key, "lie" if one_polynomial else "other lie"))
    )

    def change(leaf: DealtLeaf) -> DealtLeaf:
        holder = leaf.receiver
        return replace(
            leaf,
            box=b"" if holder == liar else seal(fed, liar, holder, seeds[holder], keys[holder]),
            seed_share_hash=share_hash(context, liar, holder, of_key=False, share=seeds[holder]),
            key_share_hash=share_hash(context, liar, holder, of_key=True, share=keys[holder]),
        )

    deal(fed, liar, change)
    own = replace(fed.states[liar].own, seed_share=seeds[liar], key_share=keys[liar])
    fed.states[liar] = replace(fed.states[liar], own=own)


def upload(fed: Any, liar: int, *, add: npt.ArrayLike = 0, **changes: Any) -> None:
    """Another upload: ``add`` (integers [d]) on top of the masked vector; ``disputed`` or ``base_view`` of the statement."""
    statement, attachment = said(fed, Phase.MASKED_INPUT, liar, Input)
    vector = np.frombuffer(attachment, dtype="<u4").astype(np.uint32)
    vector = vector + (np.zeros(len(vector), np.int64) + np.asarray(add, dtype=np.int64)).astype(np.uint32)
    changes.setdefault("vector_hash", vector_hash(statement.context, liar, vector))
    statement = replace(statement, **changes)
    fed.states[liar] = replace(fed.states[liar], input_digest=input_digest(statement.encode()))
    fed.messages[Phase.MASKED_INPUT][liar] = fed.sign(liar, statement, attachment=vector.astype("<u4").tobytes())


def sketch(fed: Any, liar: int, *, add: npt.ArrayLike) -> None:
    """Another sketch: ``add`` (integers [k]) on top, reduced to int32 as a cheater would."""
    statement, attachment = said(fed, Phase.SKETCH, liar, SketchStatement)
    opening = SketchOpening.decode(attachment)
    values = np.frombuffer(opening.sketch, dtype="<i4").astype(np.int64) + np.asarray(add, dtype=np.int64)
    raw = values.astype(np.uint32).astype("<i4").tobytes()
    statement = replace(statement, commitment=sketch_commitment(statement.context, liar, opening.salt, raw))
    fed.states[liar] = replace(fed.states[liar], commitment=statement.commitment)
    fed.messages[Phase.SKETCH][liar] = fed.sign(liar, statement, attachment=SketchOpening(salt=opening.salt, sketch=raw).encode())


def release(fed: Any, liar: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Other shares: ``change`` gets and gives one for each member of U2, in order."""
    statement, _ = said(fed, Phase.UNMASK, liar, Shares)
    fed.messages[Phase.UNMASK][liar] = fed.sign(liar, replace(statement, shares=tuple(change(list(statement.shares)))))


def both_shares(fed: Any, holder: int, owner: int) -> tuple[bytes, bytes]:
    """Seed share and key share of one dealer at one holder."""
    state = fed.before[Phase.SKETCH][holder]
    held = next(shares for shares in state.holdings.held if shares.dealer == owner)
    return held.seed_share, held.key_share


# --- after UNMASK ---------------------------------------------------------------------------------------------------------------

Say = Callable[[int, BlameValues], "BlameValues | None"]


def honest_values(fed: Any, index: int, request: bytes) -> bytes:
    """What an honest member answers to BLAME."""
    message: bytes = fed.states[index].blame_values(request, signer=fed.signers[index])
    return message


def add_to_edge(values: BlameValues, peer: int, add: npt.ArrayLike) -> BlameValues:
    """Other values for the edge to ``peer``."""

    def changed(edge: EdgeValue) -> EdgeValue:
        words = np.frombuffer(edge.values, dtype="<u4").astype(np.int64) + np.asarray(add, dtype=np.int64)
        return replace(edge, values=words.astype(np.uint32).astype("<u4").tobytes())

    return replace(values, edges=tuple(changed(edge) if edge.peer == peer else edge for edge in values.edges))


def blame(
    fed: Any, secrets: Secrets, *, say: Say | None = None, silent: Collection[int] = (), shut: Collection[int] = ()
) -> tuple[BlameServer, BlameOutcome]:
    """BLAME to its end.

    Args:
        fed: after UNMASK.
        secrets: as opened.
        say: what a member says instead of its true values (None: nothing).
        silent: members that do not answer.
        shut: members that open no edge.
    """
    server = BlameServer(server=fed.server, secrets=secrets)
    for index, (request,) in server.requests().items():
        if index in silent:
            continue
        message = honest_values(fed, index, request)
        if say is not None:
            values = BlameValues.decode(Envelope.decode(message).content)
            changed = say(index, values)
            if changed is None:
                continue
            message = fed.sign(index, changed) if changed != values else message
        server.receive(index, message)
    server.close_values()
    for index, requests in server.requests().items():
        for request in requests:
            if index in shut or index in silent:
                continue
            try:
                fed.states[index], message = fed.states[index].open_edge(request, signer=fed.signers[index], verify=fed.verify)
            except PeerError:
                continue  # the other end's value is one's own: nothing to open
            server.receive(index, message)
    return server, server.outcome()


def secrets_of(fed: Any) -> Secrets:
    """All secrets, of a round without bad dealers."""
    secrets, bad = combine_secrets(fed.server)
    assert not bad
    return secrets


def check_named(fed: Any, named: Sequence[Named], liars: Collection[int]) -> None:
    """Whoever is named is a liar, and its evidence convinces a stranger who reads it from bytes."""
    for one in named:
        read = Evidence.decode(one.evidence.encode())
        again = verify_evidence(read, fed.members)
        if (again.index, again.client_id) != (one.index, one.client_id) or one.index not in liars:
            raise Broken(f"honest member {one.index} is named: {one.reason}")


# --- random liars ---------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of one random round.

    Attributes:
        end: ``opened``, ``aborted``, ``bad dealing``, ``named``, ``unresolved``, ``disputed`` or ``wrapped``.
        num_clients: N.
        liars: the colluders.
        lies: what they did, one word each.
        named: who was named.
        refused: messages of liars that the server refused.
    """

    end: str
    num_clients: int
    liars: tuple[int, ...]
    lies: Counter[str] = field(default_factory=Counter)
    named: tuple[int, ...] = ()
    refused: int = 0


class _Soak:
    """One random round; see :func:`soak`."""

    def __init__(self, seed: int, *, num_rows: int, dimension: int) -> None:
        self.draw = np.random.default_rng([0x5EC, seed])
        num_clients = int(self.draw.integers(5, 9))
        num_corrupt = int(self.draw.integers(1, 3)) if num_clients >= 7 else 1
        self.fed = Federation(
            num_clients=num_clients, num_corrupt=num_corrupt, dimension=dimension, num_rows=num_rows, name=f"soak/{seed}"
        )  # fmt: skip
        count = num_corrupt if self.draw.random() < 0.8 else int(self.draw.integers(0, num_corrupt + 1))
        self.liars = tuple(sorted(int(liar) for liar in self.draw.choice(num_clients, size=count, replace=False)))
        honest = [index for index in range(num_clients) if index not in self.liars]
        spare = self.fed.config.limits.tolerated_dropouts
        lost = self.draw.choice(honest, size=min(int(self.draw.integers(0, spare + 2)), 2), replace=False)
        phases = [*rounds.ORDER[:-1], Phase.BLAME, Phase.BLAME_OPEN]
        self.leaves_in = {int(index): phases[int(self.draw.integers(len(phases)))] for index in lost}
        self.temper = {liar: float(self.draw.choice([0.4, 1.0, 2.0])) for liar in self.liars}
        self.out = Outcome(end="", num_clients=num_clients, liars=self.liars)
        zeros = np.zeros(dimension, dtype=np.int64)
        self.extra = {liar: zeros.copy() for liar in self.liars}  # what is in the upload beside its encoded update
        self.shown = {liar: zeros.copy() for liar in self.liars}  # what of it the sketch shows
        self.error = {liar: np.zeros(num_rows, dtype=np.int64) for liar in self.liars}  # what the sketch shows beside that
        self.gone: set[int] = set()

    # --- a coin and a menu ---

    def _lies(self, liar: int) -> bool:
        # A lie in the first phases ends the liar's part in the round: rarer.
        chance = {Phase.ADVERTISE_KEYS: 0.05, Phase.SHARE_KEYS: 0.15, Phase.MASKED_INPUT: 0.4, Phase.SKETCH: 0.4}
        return liar not in self.gone and self.draw.random() < self.temper[liar] * chance.get(self.fed.server.phase, 0.15)

    def _one_of(self, *names: str) -> str:
        name = names[int(self.draw.integers(len(names)))]
        self.out.lies[name] += 1
        return name

    def _bytes(self, size: int) -> bytes:
        return self.draw.bytes(size)

    def _some(self, members: Sequence[int]) -> set[int]:
        count = int(self.draw.integers(1, len(members) + 1))
        return {int(member) for member in self.draw.choice(members, size=count, replace=False)}

    # --- the round ---

    def run(self) -> Outcome:
        fed = self.fed
        try:
            for phase, lie in (
                (Phase.ADVERTISE_KEYS, self._lie_in_advert),
                (Phase.SHARE_KEYS, self._lie_in_dealing),
                (Phase.MASKED_INPUT, self._lie_in_upload),
                (Phase.SKETCH, self._lie_in_sketch),
                (Phase.CONSISTENCY_CHECK, self._lie_in_consent),
                (Phase.UNMASK, self._lie_in_shares),
            ):
                self._step(phase, lie)
            secrets, bad = combine_secrets(fed.server)
        except RoundAborted:
            self.out.end = "aborted"
            self._name(name_share_liars(fed.server) if fed.server.phase is Phase.DONE else ())
            return self.out
        self._name((*name_share_liars(fed.server), *name_bad_dealers(fed.server, bad)))
        if bad:
            self.out.end = "bad dealing"
            return self.out
        try:
            opened = open_round(fed.server, secrets)
        except OpeningFailed:
            self._blame(secrets)
            return self.out
        self.out.end = "opened"
        self._check_sum(opened)
        return self.out

    def _step(self, phase: Phase, lie: Callable[[int], None]) -> None:
        fed = self.fed
        if fed.server.phase is not phase:
            raise Broken(f"the server is in {fed.server.phase}, not in {phase}")
        self.gone |= {index for index, last in self.leaves_in.items() if last is phase}
        self._answer_all()
        for liar in self.liars:
            if liar in fed.messages[phase] and self._lies(liar):
                lie(liar)
        self._deliver_all(phase)
        self._advance(phase)

    def _answer_all(self) -> None:
        for index in self.fed.server.asked():
            if index in self.gone:
                continue
            try:
                self.fed.answer(index)
            except PeerError as error:
                if index not in self.liars:
                    raise Broken(f"honest member {index} refused an honest server: {error}") from None
                self.gone.add(index)

    def _deliver_all(self, phase: Phase) -> None:
        fed = self.fed
        for index in [int(index) for index in self.draw.permutation(sorted(fed.messages[phase]))]:
            try:
                fed.deliver(index, fed.messages[phase][index])
            except PeerError as error:
                if index not in self.liars:
                    raise Broken(f"the server refused honest member {index}: {error}") from None
                self.out.refused += 1
                self.gone.add(index)

    def _advance(self, phase: Phase) -> None:
        fed = self.fed
        accept = None
        if phase is Phase.SKETCH:
            passed = sorted(fed.server.screen())
            if self.draw.random() < 0.5 and len(passed) > fed.config.minimum_accepted:  # a rule that rejects somebody
                accept = [index for index in passed if index != int(self.draw.choice(passed))]
        fed.advance(accept=accept)

    def _say_nothing(self, phase: Phase, liar: int) -> None:
        del self.fed.messages[phase][liar]
        self.gone.add(liar)

    # --- lies, phase by phase ---

    def _lie_in_advert(self, liar: int) -> None:
        fed, phase = self.fed, Phase.ADVERTISE_KEYS
        others = [index for index in fed.messages[phase] if index != liar]
        match self._one_of("silent-advert", "inverse-key", "copied-key", "wrong-commitment", "small-order", "copied-advert"):
            case "silent-advert":
                self._say_nothing(phase, liar)
            case "inverse-key":
                peer, _ = said(fed, phase, int(self.draw.choice(others)), Advert)
                inverse = pow(int.from_bytes(peer.mask_key, "little"), -1, PRIME)
                advertise(fed, liar, mask_key=inverse.to_bytes(32, "little"))
            case "copied-key":
                peer, _ = said(fed, phase, int(self.draw.choice(others)), Advert)
                advertise(fed, liar, mask_key=peer.mask_key)
                # A network attacker cannot be faster than the honest owner; a server that is honest takes the first.
                fed.messages[phase] = {**{index: fed.messages[phase][index] for index in others}, liar: fed.messages[phase][liar]}
                self._deliver_first(others)
            case "wrong-commitment":
                advertise(fed, liar, seed_commitment=self._bytes(32))
            case "small-order":
                advertise(fed, liar, box_key=bytes(32))
            case "copied-advert":
                fed.messages[phase][liar] = fed.messages[phase][int(self.draw.choice(others))]

    def _deliver_first(self, others: Sequence[int]) -> None:
        """The honest adverts arrive before a copy of one of them."""
        fed = self.fed
        for index in others:
            if index not in self.liars:
                fed.deliver(index, fed.messages[Phase.ADVERTISE_KEYS].pop(index))

    def _lie_in_dealing(self, liar: int) -> None:
        fed, phase = self.fed, Phase.SHARE_KEYS
        others = [advert.sender for advert in fed.states[liar].adverts if advert.sender != liar]
        chosen, noise = self._some(others), self._bytes(96)
        secret = shamir.field_secret(self._bytes(32))
        before = fed.before[phase][liar]
        match self._one_of(
            "silent-dealing", "tags", "boxes", "hashes", "other-seed", "other-key", "one-for-both", "own-share", "few-boxes"
        ):
            case "silent-dealing":
                self._say_nothing(phase, liar)
            case "tags":
                deal(fed, liar, lambda leaf: replace(leaf, tag=noise[:32]) if leaf.receiver in chosen else None)
            case "boxes":
                deal(fed, liar, lambda leaf: replace(leaf, box=noise[:80]) if leaf.receiver in chosen else None)
            case "few-boxes":
                one = min(chosen)
                deal(fed, liar, lambda leaf: replace(leaf, box=b"") if leaf.receiver == one else None)
            case "hashes":
                deal(fed, liar, lambda leaf: replace(leaf, seed_share_hash=noise[:32]) if leaf.receiver in chosen else None)
            case "other-seed":
                deal_secrets(fed, liar, secret, before.mask_key)
            case "other-key":
                deal_secrets(fed, liar, before.seed, secret)
            case "one-for-both":
                deal_secrets(fed, liar, before.mask_key, before.mask_key, one_polynomial=True)
            case "own-share":
                fed.states[liar] = replace(fed.states[liar], own=replace(fed.states[liar].own, seed_share=secret))

    def _lie_in_upload(self, liar: int) -> None:
        fed, phase = self.fed, Phase.MASKED_INPUT
        dimension = fed.config.dimension
        add = np.zeros(dimension, dtype=np.int64)
        places = self.draw.choice(dimension, size=2, replace=False)
        partner = next((other for other in self.liars if other != liar and other in fed.messages[phase]), None)
        lie = self._one_of("silent-upload", "one-entry", "half-ring", "full-ring", "wrong-mask", "small", "pair", "dispute", "other-view")
        match lie:
            case "one-entry":
                add[places[0]] = int(self.draw.integers(1, 1 << 31))
            case "half-ring":
                add[places] = 1 << 31
            case "wrong-mask":
                add = self.draw.integers(-(1 << 31), 1 << 31, size=dimension)
            case "small":
                add = self.draw.integers(-100, 101, size=dimension)
            case "pair":
                add = self.draw.integers(-(1 << 20), 1 << 20, size=dimension)
                if partner is not None:
                    upload(fed, partner, add=-add)
                    self.extra[partner] = self.extra[partner] - add
            case _:
                self._lie_beside_the_sum(lie, liar, int(places[0]))
                return
        upload(fed, liar, add=add)
        self.extra[liar] = self.extra[liar] + add

    def _lie_beside_the_sum(self, lie: str, liar: int, place: int) -> None:
        """Lies at the upload that change nothing in the sum."""
        fed = self.fed
        match lie:
            case "silent-upload":
                self._say_nothing(Phase.MASKED_INPUT, liar)
            case "full-ring":  # is nothing modulo 2**32
                upload(fed, liar, add=np.where(np.arange(fed.config.dimension) == place, SCALE_UP, 0))
            case "dispute":
                upload(fed, liar, disputed=tuple(sorted(self._some(sorted(fed.server.dealings.keys() - {liar})))))
            case "other-view":
                upload(fed, liar, base_view=self._bytes(32))

    def _lie_in_sketch(self, liar: int) -> None:
        fed, phase = self.fed, Phase.SKETCH
        rows = fed.config.num_rows
        error = np.zeros(rows, dtype=np.int64)
        partner = next((other for other in self.liars if other != liar and other in fed.messages[phase]), None)
        match self._one_of("silent-sketch", "one-row", "all-rows", "show-lie", "sketch-pair", "other-sketch-view", "huge"):
            case "silent-sketch":
                self._say_nothing(phase, liar)
                return
            case "one-row":
                error[int(self.draw.integers(rows))] = int(self.draw.choice([-1, 1, 1000]))
            case "all-rows":
                error = self.draw.integers(-(1 << 18), 1 << 18, size=rows)
            case "show-lie":  # the true sketch of what was uploaded, modulo 2**32: R·V - 2**32·z
                sketch(fed, liar, add=matrix_of(fed).product(self.extra[liar]))
                self.shown[liar] = self.extra[liar]
                return
            case "sketch-pair":
                error = self.draw.integers(-1000, 1000, size=rows)
                if partner is not None:
                    sketch(fed, partner, add=-error)
                    self.error[partner] = self.error[partner] - error
            case "other-sketch-view":
                statement, attachment = said(fed, phase, liar, SketchStatement)
                fed.messages[phase][liar] = fed.sign(liar, replace(statement, view=self._bytes(32)), attachment=attachment)
                return
            case "huge":
                error[:] = (1 << 31) - 1
        sketch(fed, liar, add=error)
        self.error[liar] = self.error[liar] + error

    def _lie_in_consent(self, liar: int) -> None:
        fed, phase = self.fed, Phase.CONSISTENCY_CHECK
        match self._one_of("silent-consent", "other-consent"):
            case "silent-consent":
                del fed.messages[phase][liar]
            case "other-consent":
                statement, _ = said(fed, phase, liar, Consent)
                fed.messages[phase][liar] = fed.sign(liar, replace(statement, agreement=self._bytes(32)))

    def _lie_in_shares(self, liar: int) -> None:
        fed, phase = self.fed, Phase.UNMASK
        owners = sorted(fed.server.dealings)
        chosen = {owners.index(member) for member in self._some(owners)}
        other = shamir.field_secret(self._bytes(32))
        match self._one_of("silent-shares", "absent-shares", "wrong-shares", "wrong-kind", "swapped-shares", "huge-share"):
            case "silent-shares":
                self._say_nothing(phase, liar)
            case "absent-shares":
                release(fed, liar, lambda shares: [b"" if place in chosen else share for place, share in enumerate(shares)])
            case "wrong-shares":
                release(fed, liar, lambda shares: [other if place in chosen else share for place, share in enumerate(shares)])
            case "wrong-kind":
                held = {shares.dealer: shares for shares in fed.before[Phase.SKETCH][liar].holdings.held}

                def swap(shares: list[bytes]) -> list[bytes]:
                    for place in chosen & {owners.index(dealer) for dealer in held}:
                        both = held[owners[place]]
                        shares[place] = both.key_share if shares[place] == both.seed_share else both.seed_share
                    return shares

                release(fed, liar, swap)
            case "swapped-shares":
                release(fed, liar, lambda shares: shares[1:] + shares[:1])
            case "huge-share":
                release(fed, liar, lambda shares: [b"\xff" * 32, *shares[1:]])

    # --- after UNMASK ---

    def _name(self, named: Sequence[Named]) -> None:
        check_named(self.fed, named, self.liars)
        self.out.named = tuple(sorted({*self.out.named, *(one.index for one in named)}))

    def _check_sum(self, opened: Any) -> None:
        """The sum that is used is that of honest updates and of what the liars' sketches show."""
        inside = [liar for liar in self.liars if liar in opened.accepted]
        if np.any(sum((self.error[liar] for liar in inside), np.zeros(self.fed.config.num_rows, np.int64))):
            raise Broken("a sum was used although the sketches in it are lies that do not cancel")
        shown = sum((self.shown[liar] for liar in inside), np.zeros(self.fed.config.dimension, np.int64))
        if not np.array_equal(opened.total, self.fed.expected(opened.accepted) + shown):
            raise Broken("a wrong sum was used")

    def _blame(self, secrets: Secrets) -> None:
        fed = self.fed
        gone_at_values = self.gone | {index for index, last in self.leaves_in.items() if last is Phase.BLAME}
        gone_at_opening = gone_at_values | {index for index, last in self.leaves_in.items() if last is Phase.BLAME_OPEN}
        plans = {liar: self._one_of("blame-true", "shift", "shift", "edges", "silent-blame", "bad-blame") for liar in self.liars}
        matrix = matrix_of(fed)

        def say(index: int, values: BlameValues) -> BlameValues | None:
            return self._say(plans.get(index, "blame-true"), index, values, gone_at_values, matrix)

        silent = {*gone_at_values, *(liar for liar in self.liars if plans[liar] == "bad-blame")}
        shut = {*gone_at_opening, *(liar for liar in self.liars if self.draw.random() < 0.5)}
        server, outcome = blame(fed, secrets, say=say, silent=silent & set(fed.server.accepted), shut=shut)
        for liar in self.liars:
            if plans[liar] == "bad-blame" or liar not in fed.server.accepted:
                self._send_rubbish(server, liar)
        self._name(outcome.named)
        honest = set(fed.server.accepted) - set(self.liars)
        self._check_blame(server, outcome, answered=honest - gone_at_values, opened=honest - gone_at_opening)
        self.out.end = "named" if outcome.named else "unresolved" if outcome.silent else "disputed"

    def _say(self, plan: str, index: int, values: BlameValues, gone: Collection[int], matrix: SketchMatrix) -> BlameValues | None:
        peers = [edge.peer for edge in values.edges]
        if plan == "silent-blame":
            return None
        if (
            plan == "shift" and peers
        ):  # the own equation becomes true: the lie goes to an edge, of a silent or a colluding peer if there is one
            residue = matrix.product(self.extra[index]) - matrix.product(self.shown[index]) - self.error[index]
            best = [peer for peer in peers if peer in gone] or [peer for peer in peers if peer in self.liars] or peers
            peer = int(self.draw.choice(best))
            return add_to_edge(values, peer, residue if index < peer else -residue)
        if plan == "edges" and peers:
            for peer in self._some(peers):
                values = add_to_edge(values, peer, self.draw.integers(1, 100, size=self.fed.config.num_rows))
        return values

    def _check_blame(self, server: BlameServer, outcome: BlameOutcome, *, answered: Collection[int], opened: Collection[int]) -> None:
        """What BLAME owes to the honest members that answered, and that opened their edges."""
        if set(outcome.silent) & set(answered):
            raise Broken(f"of honest members {sorted(answered)}, who answered, {outcome.silent} are held for silent")
        named = {one.index for one in outcome.named}
        unopened = [pair for pair in server.disputes if not named & set(pair)]
        if any(set(pair) & set(opened) for pair in unopened):
            raise Broken(f"an honest end opened its edge, and nobody of {unopened} is named")
        if not (outcome.silent or unopened or outcome.named or outcome.wrapped):
            raise Broken("all answered, and nothing was found")
        if any(pair not in outcome.unresolved for pair in unopened):
            raise Broken(f"the disputes {unopened} are in no list of the outcome")
        if outcome.wrapped:  # no lie here has rows over 2**31 and passes the gate
            raise Broken("a lie passed the gate and all equations")

    def _send_rubbish(self, server: BlameServer, liar: int) -> None:
        """After the fact, or without being asked."""
        fed = self.fed
        everyone = tuple(EdgeValue(peer=peer, values=self._bytes(4 * fed.config.num_rows)) for peer in fed.server.accepted if peer != liar)
        statement = BlameValues(
            context=fed.config.context(), sender=liar, view=fed.server.view, agreement=fed.server.agreement, edges=everyone
        )
        fresh = BlameServer(server=server.server, secrets=server.secrets)
        try:
            fresh.receive(liar, fed.sign(liar, statement))
        except PeerError:
            self.out.refused += 1
        fresh.close_values()
        seed = EdgeSeed(context=fed.config.context(), sender=liar, view=fed.server.view, peer=0, seed=self._bytes(32))
        try:
            fresh.receive(liar, fed.sign(liar, seed))
        except PeerError:
            self.out.refused += 1
        self._name(fresh.outcome().named)


def soak(seed: int, *, num_rows: int = 16, dimension: int = 40) -> Outcome:
    """One random round with an honest server and up to c colluding liars.

    Raises:
        Broken: see the module.
    """
    return _Soak(seed, num_rows=num_rows, dimension=dimension).run()


def open_request(server: BlameServer, peer: int) -> bytes:
    """A request to open the edge to ``peer``, with what it signed."""
    from fedsec.secagg.messages import SignedPart

    envelope = server.values[peer][1]
    part = SignedPart(content=envelope.content, signature=envelope.signature)
    return OpenEdgeRequest(context=server.server.context, peer_values=part).encode()
