"""Which domain every row is of: Tijdeman's rule for the chairman assignment problem, at a cost per row that grows with log k only.

A domain of share s that was drawn n times lags by due + s e - n at row e (`due` is what it was owed at e = 0). Among the domains that lag by at
least 1/(2k - 2), the rule draws the one with the earliest deadline, and of equal ones the first (R. Tijdeman, "The chairman assignment
problem", Discrete Mathematics 32, 1980; k counts the domains with a positive share).

`Chairman._by_definition` is that rule, in floating point, over all domains; what it says is what counts, to the last bit. The rest avoids it:

- a lag in floating point never falls while e grows, so that the row from which on a domain is eligible is known when it is drawn;
- a deadline less e is the same at every row but for rounding, so that a heap holds the deadlines, each with bounds on what rounding does to
  it. Deadlines that rounding might exchange are computed as the definition does; domains equal in share, due and n stand in the heap as one.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

# Rounding of (1 - slack - (due + s e - n)) / s, by the standard model of floating point: at most 8 u (e + (|due| + n + 1) / s), u = 2^-53; twice that is
# taken, for the rounding of the bounds themselves.
ROUNDING = 16 * 2.0**-53
LAST_ROW = 1 << 53  # whole numbers beyond are no floats
MOST_CANDIDATES = 64
LONGEST = 1e307  # rows: later deadlines may overflow, and have no bounds

_Key = tuple[float, float, int]  # share, due, n: domains of the same key have the same deadline


class Chairman:
    """The domains of the rows after the first `elapsed`.

    Args:
        shares: [k] fractions of the rows.
        due: [k] rows that every domain was owed when e was 0.
        counts: [k] rows that every domain was given so far.
        elapsed: e of the last row given.
    Cost: k to begin, then log k per row; k per row where more than `MOST_CANDIDATES` shares differ by rounding only.
    """

    def __init__(self, shares: NDArray[np.float64], due: NDArray[np.float64], counts: Sequence[int], elapsed: int) -> None:
        self._active = np.flatnonzero(shares > 0)
        self._active_shares, self._active_due = shares[self._active], due[self._active]
        self._shares, self._due, self._counts = array("d", shares), array("d", due), array("q", counts)
        self._slack = 1 / (2 * max(2, len(self._active)) - 2)
        self._elapsed = elapsed
        self._heap: list[float] = []  # the keys of `_bounded`, and of what was in it
        self._bounded: dict[float, tuple[float, _Key]] = {}  # by a lower bound on deadline + e, each another: an upper bound, and whose it is
        self._eligible: dict[_Key, tuple[float, list[int]]] = {}  # the lower bound, and the domains, as a heap
        self._releases: dict[int, list[int]] = {}  # by row; `_release` says which of them still hold
        self._release = array("q", bytes(8 * len(shares)))
        for domain in self._active.tolist():
            self._wait(domain)

    @property
    def counts(self) -> tuple[int, ...]:
        """[k] rows that every domain was given so far."""
        return tuple(self._counts.tolist())

    def take(self, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The next rows: domain [n], and how many rows of that domain came before [n]."""
        domains, draws = [], []
        for _ in range(num_rows):
            domain = self._next()
            domains.append(domain)
            draws.append(self._counts[domain])
            self._counts[domain] += 1
            self._wait(domain)
        return np.array(domains, np.int64), np.array(draws, np.int64)

    def _next(self) -> int:
        self._elapsed = row = self._elapsed + 1
        for domain in self._releases.pop(row, ()):
            if self._release[domain] == row:
                self._admit(domain)
        key = self._earliest()
        if key is not None:
            return self._dismiss(key)
        domain = self._by_definition()
        key = self._shares[domain], self._due[domain], self._counts[domain]
        return self._dismiss(key) if key in self._eligible else domain

    def _by_definition(self) -> int:
        lag = self._active_due + self._active_shares * self._elapsed - np.frombuffer(self._counts, np.int64)[self._active]
        with np.errstate(over="ignore"):  # a share may be as small as a float can be
            deadline = (1 - self._slack - lag) / self._active_shares
        deadline[lag < self._slack] = math.inf
        pick = deadline.argmin()
        return int(self._active[pick if deadline[pick] < math.inf else lag.argmax()])

    def _earliest(self) -> _Key | None:
        """The eligible domains with the earliest deadline; None where only the definition can tell."""
        heap, bounded = self._heap, self._bounded
        while heap and heap[0] not in bounded:
            heappop(heap)
        if not heap:
            return None
        upper, key = bounded[heap[0]]
        margin = 2 * ROUNDING * self._elapsed
        latest = upper + margin
        if latest < math.inf and (len(heap) < 2 or heap[1] > latest) and (len(heap) < 3 or heap[2] > latest):
            return key
        candidates, places = [key], [1, 2]
        for place in places:
            if place < len(heap) and heap[place] <= latest:
                places += (2 * place + 1, 2 * place + 2)
                if len(places) > 2 * MOST_CANDIDATES:
                    return None
                if heap[place] in bounded:
                    upper, key = bounded[heap[place]]
                    candidates.append(key)
                    latest = min(latest, upper + margin)
        deadline, _, earliest = min((self._deadline(key), self._eligible[key][1][0], key) for key in candidates)
        return earliest if deadline < math.inf else None

    def _deadline(self, key: _Key) -> float:
        share, due, n = key
        return (1 - self._slack - (due + share * self._elapsed - n)) / share

    def _admit(self, domain: int) -> None:
        share, due, n = key = self._shares[domain], self._due[domain], self._counts[domain]
        if key in self._eligible:
            heappush(self._eligible[key][1], domain)
            return
        deadline = (1 - self._slack - due + n) / share
        rounding = ROUNDING * (abs(due) + n + 1) / share
        lower, upper = deadline - rounding, deadline + rounding
        if not -LONGEST < lower <= upper < LONGEST:
            lower, upper = -2 * LONGEST, math.inf
        while lower in self._bounded:
            lower = math.nextafter(lower, -math.inf)
        self._bounded[lower] = upper, key
        self._eligible[key] = lower, [domain]
        heappush(self._heap, lower)

    def _dismiss(self, key: _Key) -> int:
        """Take out the first of the domains that are alike; the heap keeps an emptied group's bound until it comes to the top."""
        lower, group = self._eligible[key]
        domain = heappop(group)
        if not group:
            del self._eligible[key], self._bounded[lower]
        return domain

    def _wait(self, domain: int) -> None:
        """Note the row from which on a domain is eligible, or that it will be at the next."""
        share, due, n, slack = self._shares[domain], self._due[domain], self._counts[domain], self._slack
        first = self._elapsed + 1
        self._release[domain] = 0
        if due + share * first - n >= slack:
            self._admit(domain)
            return
        closed_form = (slack + n - due) / share
        row = int(closed_form) + 1 if first < closed_form < LAST_ROW else first
        if due + share * (row - 1) - n >= slack or due + share * row - n < slack:
            if due + share * LAST_ROW - n < slack:
                return
            row = bisect_left(range(LAST_ROW), True, lo=first, key=lambda at: due + share * at - n >= slack)
        self._release[domain] = row
        self._releases.setdefault(row, []).append(domain)
