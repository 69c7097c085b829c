"""`Vigil`: the event loop does not sleep while the answer of a fast worker is about to come."""

from __future__ import annotations

import asyncio
import os

from ts.protocol.wakefulness import ProcessorLoad
from ts_frontend.core.clock import monotonic
from ts_frontend.workers.worker import Worker


class Vigil:
    """One for a server. While it is kept, the loop polls in place of waiting, and serves whatever
    comes as ever.

    longest_s: it ends after so many seconds, and is not kept for workers that take longer.
    load:      None: as if a processor were always free.
    """

    def __init__(self, longest_s: float, load: ProcessorLoad | None) -> None:
        self.longest_s = longest_s
        self._load = load
        self._worker: Worker | None = None  # whose answer is waited for
        self._ends_s = 0.0

    @classmethod
    def of_this_machine(cls, longest_s: float) -> Vigil | None:
        """None where it is not wanted, the load cannot be seen, or processor time is rationed."""
        load = ProcessorLoad.open() if longest_s else None
        return None if load is None else cls(longest_s, load)

    def keep(self, worker: Worker) -> None:
        """`worker` has just been given a batch: stay awake for its answer, if that pays."""
        if worker.batch_s >= self.longest_s or not (self._load is None or self._load.find_free()):
            return
        self._ends_s = monotonic() + self.longest_s
        if self._worker is None:
            asyncio.get_running_loop().call_soon(self._look)
        self._worker = worker

    def _look(self) -> None:
        worker = self._worker
        # With a second batch on board the loop has more to do than to wait.
        if worker is not None and worker.in_flight == 1 and monotonic() < self._ends_s:
            os.sched_yield()  # whoever wants to run on this processor goes first
            asyncio.get_running_loop().call_soon(self._look)
        else:
            self._worker = None
