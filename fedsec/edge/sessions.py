"""Sessions of the edge and their counters: which call was seen already. Pure: no clock, no randomness, no network.

1. A session belongs to one key. Whoever else names it is told that it does not exist.
2. A counter is accepted once. Calls run side by side, so they may arrive out of order: within a window of 1024 behind the highest.
   Below the window everything is refused; so is a counter more than 1024 ahead, which no agent of ours sends.
3. A key has at most four sessions; a fifth ends the oldest. Memory is bounded by the number of clients.
4. Sessions live in memory only: a gateway that starts again knows none, and no captured call outlives it.

Source: RFC 4303, section 3.4.3 (the sliding window).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedsec.edge.signing import SessionKeys

WINDOW = 1024
"""How far a counter may be behind the highest one seen, or ahead of it."""

MAX_SESSIONS_PER_KEY = 4

_MASK = (1 << WINDOW) - 1


class ReplayWindow:
    """The counters of one session.

    >>> window = ReplayWindow()
    >>> [window.accept(counter) for counter in (1, 3, 2, 3)]
    [True, True, True, False]
    """

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit i: highest - i was seen; 0 counts as seen

    def may_come(self, counter: int) -> bool:
        """Whether the counter would be accepted; changes nothing."""
        if counter < 1 or counter > self._highest + WINDOW:
            return False
        behind = self._highest - counter
        return behind < 0 or (behind < WINDOW and not self._seen >> behind & 1)

    def accept(self, counter: int) -> bool:
        """Take note of a counter; False if it was seen, is too old or too far ahead."""
        if not self.may_come(counter):
            return False
        ahead = counter - self._highest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & _MASK
            self._highest = counter
        else:
            self._seen |= 1 << -ahead
        return True


@dataclass(eq=False)
class Session:
    """One session.

    Attributes:
        session_id: 16 bytes.
        public_key: whose, 33 bytes.
        keys: what its calls and answers are proven with.
        window: its counters.
    """

    session_id: bytes
    public_key: bytes
    keys: SessionKeys = field(repr=False)
    window: ReplayWindow = field(default_factory=ReplayWindow)


class Sessions:
    """All sessions of a gateway."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, Session] = {}
        self._by_key: dict[bytes, list[Session]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def keys(self) -> set[bytes]:
        """Keys that have sessions."""
        return set(self._by_key)

    def open(self, public_key: bytes, session_id: bytes, keys: SessionKeys) -> Session:
        """A new session; the key's oldest ends if it has too many.

        Args:
            public_key: whose.
            session_id: fresh random bytes.
            keys: derived for it.

        Raises:
            ValueError: there is such a session.
        """
        if session_id in self._by_id:
            raise ValueError("a session id was drawn twice")
        session = Session(session_id, public_key, keys)
        own = self._by_key.setdefault(public_key, [])
        own.append(session)
        self._by_id[session_id] = session
        while len(own) > MAX_SESSIONS_PER_KEY:
            del self._by_id[own.pop(0).session_id]
        return session

    def find(self, public_key: bytes, session_id: bytes) -> Session | None:
        """The key's session of that id, or None: unknown and another key's are one."""
        session = self._by_id.get(session_id)
        return session if session is not None and session.public_key == public_key else None

    def end(self, public_key: bytes) -> int:
        """End all sessions of a key; says how many there were."""
        own = self._by_key.pop(public_key, [])
        for session in own:
            del self._by_id[session.session_id]
        return len(own)
