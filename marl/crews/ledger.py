"""Which plan is where: asked for, in a worker's hands, or played and not yet taken. No process, no clock of its own."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from marl.worker import Plan, Rollout

HANDFUL = 2
"""Plans a worker holds: one in hand and one waiting, so that it need not wait for the learner."""


@dataclass
class Order:
    """A plan on its way."""

    ticket: int
    """Place in the order of submitting."""
    plan: Plan
    version: int
    faults: int = 0
    """Workers lost with this plan in hand."""


@dataclass
class Seat:
    """Where one worker after another sits."""

    number: int
    since: float
    """When the start, or the plan in hand, began."""
    placed: bool = True
    """A worker is made or being made here; False: it waits for cores."""
    ready: bool = False
    version: int | None = None
    """The weights it was told last."""
    held: deque[Order] = field(default_factory=deque)
    """The plan in hand first."""
    failed_starts: int = 0
    """In a row."""


class Ledger:
    """Every submitted plan is in exactly one place until it is taken, whatever happens to workers.

    ``ordered``: rollouts are taken in the order of submitting; otherwise in the order of arrival.
    """

    def __init__(self, seats: int, *, ordered: bool) -> None:
        self.ordered = ordered
        self.seats = [Seat(number, 0.0) for number in range(seats)]
        self._orders: dict[int, Order] = {}
        self._queue: list[int] = []
        self._played: dict[int, Rollout] = {}
        self._tickets = 0

    def __len__(self) -> int:
        """Plans submitted and not yet taken."""
        return len(self._orders)

    def submit(self, plan: Plan, version: int) -> None:
        self._orders[self._tickets] = Order(self._tickets, plan, version)
        self._queue.append(self._tickets)  # the largest so far: a heap stays a heap
        self._tickets += 1

    def deal(self, now: float) -> Iterator[tuple[Seat, Order]]:
        """Hand out what can be handed out, oldest plan first, to whoever holds least.

        A worker gets a second plan only if there are enough for those that are still starting.
        """
        while self._queue:
            seat = min((seat for seat in self.seats if seat.ready), key=lambda seat: len(seat.held), default=None)
            starting = sum(seat.placed and not seat.ready for seat in self.seats)
            if seat is None or len(seat.held) == HANDFUL or (seat.held and len(self._queue) <= starting):
                return
            order = self._orders[heapq.heappop(self._queue)]
            if not seat.held:
                seat.since = now
            seat.held.append(order)
            yield seat, order

    def finish(self, seat: Seat, rollout: Rollout, now: float) -> None:
        """The plan in hand was played; the one waiting is in hand now."""
        self._played[seat.held.popleft().ticket] = rollout
        seat.since = now

    def vacate(self, seat: Seat, now: float) -> None:
        """The worker is lost: its plans are given out again, before all younger ones, and a new one starts."""
        for order in seat.held:
            heapq.heappush(self._queue, order.ticket)
        seat.held.clear()
        seat.ready, seat.version, seat.since = False, None, now

    def take(self) -> Rollout | None:
        """The next rollout, if it is there."""
        ticket = next(iter(self._orders if self.ordered else self._played), None)
        if ticket is None or ticket not in self._played:
            return None
        del self._orders[ticket]
        return self._played.pop(ticket)

    def outstanding(self) -> list[tuple[Plan, int]]:
        """Plans not yet taken with the version of their weights, in the order of submitting."""
        return [(order.plan, order.version) for order in self._orders.values()]

    def versions(self) -> set[int]:
        """Weights that plans not yet taken need."""
        return {order.version for order in self._orders.values()}
