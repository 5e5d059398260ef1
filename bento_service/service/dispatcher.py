"""How BentoML's dispatcher, which joins calls into batches, is kept from costing the model its speed.

Its interval, its wait and what follows a batch are attributes of its classes, some of them private, and no settings; bentoml is pinned below 1.5.
"""

from __future__ import annotations

from typing import Any

from bentoml._internal.marshal.dispatcher import CorkDispatcher, Optimizer

_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS, _POLLS_PER_BATCH = 0.001, 0.01, 50
# Calls of one burst come within it; longer it pays nobody, since those that come while a batch runs are joined anyway.
LONGEST_WAIT_SECONDS = 0.004
_LEARNT = "_learnt_wait"


def poll_for(batch_seconds: float) -> None:
    """Let it look for the end of a batch every fiftieth of its length, and no more often than each 1 ms.

    While calls wait it looks each 1 ms, which on 2 cores takes a sixth of the speed from the forward pass (ADR 5).
    """
    CorkDispatcher.TICKET_INTERVAL = min(_LONGEST_POLL_SECONDS, max(_SHORTEST_POLL_SECONDS, batch_seconds / _POLLS_PER_BATCH))


def wait_briefly() -> None:
    """Let it wait for company for 4 ms at most before it gives an idle model a call.

    It would wait for as long as calls have waited of late: after a busy time a lone caller pays half a second for nothing, and
    these waits keep the next ones long (ADR 5).
    """

    def learn(optimizer: Any, seconds: float) -> None:
        setattr(optimizer, _LEARNT, seconds)

    Optimizer.wait = property(lambda optimizer: min(getattr(optimizer, _LEARNT), LONGEST_WAIT_SECONDS), learn)


def begin_at_once() -> None:
    """Let it begin the next batch in the moment in which one ends, with the calls that wait by then.

    It would look for them at its next poll: until then the device has nothing to do, and who hears of the end sends calls that ride in a batch that
    was full (ADR 5).
    """
    work = CorkDispatcher.outbound_call

    async def work_and_go_on(self: Any, calls: Any, training: bool = False) -> None:
        await work(self, calls, training=training)
        while not training and self._queue and self._sema.acquire():
            await work(self, tuple(self._get_inputs()))

    CorkDispatcher.outbound_call = work_and_go_on
