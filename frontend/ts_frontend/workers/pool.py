"""`WorkerPool`: the workers of one model version, as many as wanted, and the work given to them.

Free workers wait in `_idle`; whenever a job comes or a worker becomes free, `feed` pairs the two by
what the queue's policy says. Both sides are plain calls, so between a request's arrival and its
bytes on the worker's socket nothing waits for the event loop's next turn.

What a worker could not finish comes back here: see `reruns`. What wears out is replaced: see
`recycling`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ts_frontend.core.batching import WaitUntil
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import (
    InvalidArgument,
    ModelError,
    NoWorker,
    ServingError,
    WorkerDied,
)
from ts_frontend.core.job import Job
from ts_frontend.core.model import Model, ParallelType
from ts_frontend.core.worker_state import READY
from ts_frontend.workers.autoscaler import Autoscaler
from ts_frontend.workers.batch_worker import BatchWorker
from ts_frontend.workers.concurrent_worker import ConcurrentWorker
from ts_frontend.workers.continuous_worker import ContinuousWorker
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import PortAllocator, WorkerLaunch
from ts_frontend.workers.failure import WorkerFailure
from ts_frontend.workers.owner import WorkerMeters
from ts_frontend.workers.recycling import Recycler
from ts_frontend.workers.reruns import Reruns
from ts_frontend.workers.session import Connect, WorkerPlace, WorkerTimes
from ts_frontend.workers.vigil import Vigil
from ts_frontend.workers.watch import WorkerWatch
from ts_frontend.workers.worker import Worker

logger = logging.getLogger(__name__)


# The batch after the one that a worker runs may be sent ahead to it where batches take up to so
# long: another worker cannot run it then, which is late by so much at most.
NEXT_S = 0.05
NEXT_ALONE_S = 1.0  # where there is no other


class WorkerPool:
    def __init__(
        self,
        model: Model,
        launch: WorkerLaunch,
        connect: Connect,
        ports: PortAllocator,
        parallel_ports: PortAllocator,
        devices: DeviceAllocator,
        meters: WorkerMeters,
        times: WorkerTimes = WorkerTimes(),  # noqa: B008 - frozen
        watch: WorkerWatch | None = None,
        autoscaling: WorkerWatch | None = None,
        vigil: Vigil | None = None,
    ) -> None:
        """watch: has this pool look after its workers now and then (`check`).
        autoscaling: has their number follow the load, between min_workers and max_workers.
        vigil: keeps the event loop awake for their answers.
        """
        self.model = model
        self.min_workers = 0
        self.max_workers = 0
        self.workers: list[Worker] = []
        self.is_dormant = False  # nobody is there, and a request is enough to change that
        self.worked_at_s = 0.0  # when a worker was last given something, on the monotonic clock
        self.start_failure = ""  # why the last attempt to have workers was given up
        self._launch = launch
        self._connect = connect
        self._ports = ports
        self._parallel_ports = parallel_ports
        self._devices = devices
        self._meters = meters
        self._times = times
        self._watch = watch
        self._vigil = vigil
        self._reruns = Reruns(model, meters)
        self._recycler = Recycler(self)
        self._beside: list[Worker] = []  # the replacement that loads, until it is one of `workers`
        self._retiring: set[Worker] = set()  # take no more, and finish what they run
        self._idle: deque[Worker] = deque()
        self._takes_turns = model.config.async_communication
        self._last_fed: Worker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        model.queue.on_put = self.feed
        if watch is not None:
            watch.add(self)
        self._autoscaling = autoscaling
        self._autoscaler = Autoscaler(self)
        if autoscaling is not None:
            autoscaling.add(self._autoscaler)

    @property
    def can_serve(self) -> bool:
        """Whether a request may wait here: some worker serves or may yet come back."""
        for worker in self.workers:  # on every request a generator costs double
            if worker.is_healthy:
                return True
        return self.is_dormant

    @property
    def has_idle_worker(self) -> bool:
        return bool(self._idle) or self.is_dormant

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or runs here."""
        return len(self.model.queue) > 0 or any(worker.is_busy for worker in self.workers)

    @property
    def unhealthy_reason(self) -> str:
        """Why nobody can serve who should; "" where somebody can."""
        if self.can_serve:
            return ""
        failures = [worker.last_failure for worker in self.workers if worker.last_failure]
        return failures[0] if failures else self.start_failure

    @property
    def failure_cause(self) -> str:
        """The same as a word for clients, who are told no more of it."""
        failures = [worker.failure for worker in self.workers if worker.failure is not None]
        return failures[0].cause_word if failures and not self.can_serve else ""

    @property
    def ready_count(self) -> int:
        """How many workers share the work now."""
        return sum(worker.state is READY for worker in self.workers)

    async def is_answering(self, timeout_s: float) -> bool:
        """Whether a ping goes to one of the workers and back, within `timeout_s`."""
        asked = {asyncio.create_task(worker.is_answering(timeout_s)) for worker in self.workers}
        waiting = asked
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result() for task in done):
                    return True
        finally:
            for task in asked:
                task.cancel()
        return False

    @property
    def pids(self) -> list[int]:
        """Of all processes that this pool has, also of those that are on their way out."""
        workers = {*self.workers, *self._beside, *self._retiring}
        return [worker.pid for worker in workers if worker.pid > 0]

    @property
    def is_letting_go(self) -> bool:
        """Whether workers are on their way out."""
        return bool(self._retiring)

    @property
    def healthy_count(self) -> int:
        return sum(worker.is_healthy for worker in self.workers)

    # Work.

    def feed(self) -> None:
        """Give waiting jobs to free workers, as the batching policy says."""
        queue = self.model.queue
        if self._reruns.groups:
            self._feed_reruns()
        while self._idle:
            now_s = monotonic()
            batch = queue.next_batch(now_s)
            if batch is None:
                return
            if isinstance(batch, WaitUntil):
                self._feed_at(batch.time_s, now_s)
                return
            last = self._last_fed
            if last is not None and last.is_awake:
                self._hand_over(batch, last, now_s)
                continue
            worker = self._last_fed = self._next_idle()
            self._hand_over(batch, worker, now_s)
            if worker.is_busy and not worker.is_full:
                self._idle.append(worker)
        if len(queue) >= queue.policy.size:
            self._feed_ahead()

    def _next_idle(self) -> Worker:
        """The one that worked last, since its caches are warm; those that run many requests at once
        take turns.
        """
        return self._idle.popleft() if self._takes_turns else self._idle.pop()

    def top_up(self, worker: Worker, room: int) -> None:
        """Up to `room` of those who wait join the batch that `worker` has under way."""
        now_s = monotonic()
        if batch := self.model.queue.take(room, now_s):
            self._hand_over(batch, worker, now_s)

    def _feed_reruns(self) -> None:
        """What has waited longest and may be a worker's death goes first, each group by itself."""
        for worker in list(self._idle):
            if not worker.takes_suspect:
                continue
            batch = self._reruns.take(monotonic())
            if batch is None:
                return
            self._idle.remove(worker)
            worker.run_batch(batch)
            if not worker.is_full:
                self._idle.append(worker)

    def _feed_ahead(self) -> None:
        """Nobody is idle: send full batches ahead to fast workers, the least loaded first.

        Those that are not so fast get one each while there is one for everybody, so that none sits
        with a worker while another could run it. Where it may yet matter who goes next, or how long
        it will take, they get none.
        """
        queue = self.model.queue
        while len(queue) >= queue.policy.size:
            takers = [worker for worker in self.workers if worker.takes_more]
            if not takers and queue.is_plain:
                if len(queue) < queue.policy.size * len(self.workers):
                    return
                longest_s = NEXT_S if len(self.workers) > 1 else NEXT_ALONE_S
                takers = [worker for worker in self.workers if worker.takes_next(longest_s)]
            if not takers:
                return
            now_s = monotonic()
            batch = queue.next_batch(now_s)
            if not isinstance(batch, list):
                return
            self._hand_over(batch, min(takers, key=_in_flight), now_s)

    def _hand_over(self, batch: list[Job], worker: Worker, now_s: float) -> None:
        self.worked_at_s = now_s
        queue_ms = 0.0
        for job in batch:
            waited_s = now_s - job.arrived_s
            queue_ms = waited_s * 1000
            if job.meters is not None:
                job.meters.queue_us.value += waited_s * 1e6
        worker.run_batch(batch)
        if self._vigil is not None and worker.in_flight == 1:
            self._vigil.keep(worker)
        self._meters.batch(queue_ms, (monotonic() - now_s) * 1000)

    def _feed_at(self, time_s: float, now_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(
                max(0.0, time_s - now_s), self._timer_fired
            )

    def _timer_fired(self) -> None:
        self._timer = None
        self.feed()

    def worker_is_free(self, worker: Worker) -> None:
        """A batch has ended; the worker is idle unless others were sent ahead."""
        if worker.state is READY:
            if not worker.is_full:
                self._idle.append(worker)
            self.feed()

    def worker_is_gone(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        if not self.can_serve:
            self._refuse_waiting()

    def batch_lost(
        self, jobs: Sequence[Job], error: WorkerDied, failure: WorkerFailure | None
    ) -> None:
        """A worker ended with `jobs` on board, by the server's own wish if `failure` is None."""
        self._reruns.after_death(jobs, error, failure)
        self._settle_reruns()

    def batch_failed(self, jobs: Sequence[Job], error: ModelError) -> None:
        self._reruns.after_failure(jobs, error)
        self._settle_reruns()

    def _settle_reruns(self) -> None:
        if not self._reruns.groups:
            return
        if self.can_serve:
            self.feed()
        else:
            self._reruns.fail_all()

    def _refuse_waiting(self) -> None:
        """Nobody is left who could ever answer: say so, instead of letting clients wait."""
        self._reruns.fail_all()
        self.model.queue.fail_all(NoWorker.to_predict(self.model.id.name, None, self.failure_cause))

    # Size.

    def scale(self, min_workers: int, max_workers: int, grace_s: float) -> list[Worker]:
        """Start or stop workers until there are between min and max; returns the new ones.

        Workers that go first finish what they run, for at most `grace_s` seconds. A worker that has
        given up is replaced: asking for workers again is the way to try again.
        """
        was_dormant, self.is_dormant = self.is_dormant, False
        self.start_failure = ""
        self.model.queue.on_put = self.feed
        self._stop([worker for worker in self.workers if not worker.is_healthy], 0)
        surplus = len(self.workers) - max_workers
        if surplus > 0:
            self._stop(self.workers[-surplus:], grace_s)
        started: list[Worker] = []
        try:
            while len(self.workers) < min_workers:
                started.append(self._add_worker())
        except ServingError:  # no port for one of them: all or nothing
            self._stop(started, 0)
            raise
        finally:
            if was_dormant and not self.can_serve:  # no worker that goes tells those who waited
                self._refuse_waiting()
        self.min_workers = min_workers
        self.max_workers = max_workers
        return started

    def sleep(self, on_request: Callable[[], None]) -> None:
        """Let all workers go when they have finished what they run; requests wait here from now
        on, and each that comes calls `on_request`, until `scale` brings workers back.
        """
        self.is_dormant = True
        self.model.queue.on_put = on_request
        for worker in list(self.workers):
            self.workers.remove(worker)
            self._retire(worker)

    async def wait_gone(self) -> None:
        """Until the processes of all workers that have been let go have ended."""
        while self._retiring:
            tasks = {self._tasks[worker] for worker in self._retiring if worker in self._tasks}
            if not tasks:
                return
            await asyncio.wait(tasks)

    def grow(self, count: int) -> list[Worker]:
        """Start up to `count` workers more, at most max_workers in all."""
        count = min(count, self.max_workers - len(self.workers))
        started: list[Worker] = []
        with contextlib.suppress(InvalidArgument):  # no port is left
            while len(started) < count:
                started.append(self._add_worker())
        return started

    def shrink(self, count: int) -> int:
        """Let up to `count` workers go that have nothing to do; returns how many went."""
        idle = [worker for worker in self.workers if worker in self._idle and not worker.is_busy]
        surplus = idle[max(0, len(idle) - count) :]
        for worker in surplus:
            self.workers.remove(worker)
            self._retire(worker)
        return len(surplus)

    def _add_worker(self) -> Worker:
        worker = self._start_worker(self._place())
        self.workers.append(worker)
        return worker

    def _start_worker(self, place: WorkerPlace) -> Worker:
        worker: Worker = self._kind(
            self.model,
            place,
            self._launch,
            self._connect,
            self,
            self._meters,
            self._times,
        )
        task = asyncio.create_task(worker.run(), name=worker.name)
        self._tasks[worker] = task
        task.add_done_callback(lambda done: self._ended(worker, done))
        return worker

    @property
    def _kind(self) -> type[Worker]:
        if self.model.config.continuous_batching:
            return ContinuousWorker
        return ConcurrentWorker if self.model.config.async_communication else BatchWorker

    @property
    def _is_parallel(self) -> bool:
        config = self.model.config
        return config.parallel_type is not ParallelType.NONE and config.parallel_level > 0

    @property
    def _allocator(self) -> PortAllocator:
        return self._parallel_ports if self._is_parallel else self._ports

    def _place(self) -> WorkerPlace:
        config = self.model.config
        key = str(self.model.id)
        if self._is_parallel:
            level = config.parallel_level
            gpus = self._devices.next_slice(key, level, config.device_type, config.device_ids)
            port = self._parallel_ports.take(level)
            return WorkerPlace(port, gpus[0] if gpus else None, tuple(gpus), level)
        gpu = self._devices.next_gpu(key, config.device_type, config.device_ids)
        return WorkerPlace(self._ports.take(), gpu)

    def _ended(self, worker: Worker, task: asyncio.Task[None]) -> None:
        self._tasks.pop(worker, None)
        self._retiring.discard(worker)
        self._allocator.give_back(worker.place.port, worker.place.width)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The task of %r failed.", worker, exc_info=error)

    # Care.

    def check(self) -> None:
        """Look after the workers: is each alive, has one served enough?"""
        for worker in self.workers:
            worker.check()
        self._recycler.check()

    def add_beside(self, place: WorkerPlace) -> Worker:
        """Start one worker more, on the GPUs of the one at `place`. It serves once it has loaded.

        Raises InvalidArgument when there is no port for it.
        """
        port = self._allocator.take(place.width)
        worker = self._start_worker(replace(place, port=port))
        self._beside.append(worker)
        return worker

    def exchange(self, worker: Worker, replacement: Worker) -> None:
        """Put what `add_beside` started in the place of `worker`, which finishes what it runs."""
        if replacement in self._beside:
            self._beside.remove(replacement)
        if worker in self.workers:
            self.workers[self.workers.index(worker)] = replacement
            self._retire(worker)
        else:  # it was taken out in the meantime
            self._retire(replacement)

    def drop_beside(self) -> None:
        """What `add_beside` started is of no use."""
        while self._beside:
            self._stop_soon(self._beside.pop(), 0)

    def _retire(self, worker: Worker) -> None:
        self._retiring.add(worker)
        self._stop_soon(worker, None)

    def _stop(self, workers: Iterable[Worker], grace_s: float) -> None:
        for worker in list(workers):
            self.workers.remove(worker)
            self._stop_soon(worker, grace_s)

    def _stop_soon(self, worker: Worker, grace_s: float | None) -> None:
        task = asyncio.create_task(worker.stop(grace_s), name=f"stop {worker.name}")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def wait_loaded(self, workers: Iterable[Worker]) -> ServingError | None:
        """None when all of `workers` have loaded the model, else the first error that one met."""
        waiting = {worker.first_load for worker in workers}
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                if (error := future.result()) is not None:
                    return error
        return None

    def remove(self, workers: Iterable[Worker], reason: str = "") -> None:
        """Take these out, at once: they could not be started, for that reason."""
        self.start_failure = reason
        self._stop([worker for worker in workers if worker in self.workers], 0)

    async def close(self, grace_s: float) -> None:
        """Stop every worker and wait for the end of each; whatever still waits is answered."""
        self.min_workers = self.max_workers = 0
        self.is_dormant = False
        if self._watch is not None:
            self._watch.discard(self)
        if self._autoscaling is not None:
            self._autoscaling.discard(self._autoscaler)
        self._stop(self.workers, grace_s)
        for worker in (*self._beside, *self._retiring):
            self._stop_soon(worker, grace_s)
        while self._stopping or self._tasks:
            await asyncio.wait({*self._stopping, *self._tasks.values()})
        if self._recycler.task is not None:
            await asyncio.wait({self._recycler.task})
        self._refuse_waiting()
        if self._timer is not None:
            self._timer.cancel()
        self.model.queue.on_put = None
        self._devices.forget(str(self.model.id))

    def __repr__(self) -> str:
        wanted = f"{self.min_workers}..{self.max_workers}"
        return f"<WorkerPool {self.model.id} {len(self.workers)} of {wanted}>"


def _in_flight(worker: Worker) -> int:
    return worker.in_flight


PoolFactory = Callable[[Model], WorkerPool]
