"""Wrong passwords make whoever sends them wait: from the fourth in a row on, twice as long each time.

While a client waits, its passwords are not looked at, the right one included: otherwise waiting would cost a guesser
nothing. A client is an address, or for IPv6 the network of 64 bits that a home is given.
"""

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# A person who mistypes is not made to wait; a guesser gets 4 passwords, then 1,440 a day.
FREE = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0

# Whoever has waited for so long without a wrong password starts anew.
FORGOTTEN_AFTER_S = 3600.0
MOST_CLIENTS = 10_000


@dataclass(slots=True)
class _Client:
    wrong: int = 0
    last_s: float = 0.0
    waits_until_s: float = 0.0


@dataclass
class Attempts:
    """Who sent wrong passwords lately, and how long each has to wait; `clock` gives seconds that never go back."""

    clock: Callable[[], float] = time.monotonic
    _clients: dict[str, _Client] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_s(self, address: str) -> int:
        """How many whole seconds the client still has to wait; 0 where it may try."""
        with self._lock:
            known = self._clients.get(client_of(address))
            return 0 if known is None else max(0, math.ceil(known.waits_until_s - self.clock()))

    def was_wrong(self, address: str) -> None:
        """Notes a wrong password."""
        now = self.clock()
        with self._lock:
            name = client_of(address)
            known = self._clients.pop(name, None) or _Client()
            # The longest silent comes first and goes first, so that nobody fills the memory by coming from everywhere.
            while self._clients:
                first, longest_silent = next(iter(self._clients.items()))
                if len(self._clients) < MOST_CLIENTS and now - longest_silent.last_s < FORGOTTEN_AFTER_S:
                    break
                del self._clients[first]
            self._clients[name] = known
            known.wrong, known.last_s = known.wrong + 1, now
            if known.wrong > FREE:
                # Never a power that overflows, however long somebody goes on.
                known.waits_until_s = now + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(known.wrong - FREE - 1, 16))

    def was_right(self, address: str) -> None:
        """Forgets the client's wrong passwords."""
        with self._lock:
            self._clients.pop(client_of(address), None)


def client_of(address: str) -> str:
    """What counts as one client."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
