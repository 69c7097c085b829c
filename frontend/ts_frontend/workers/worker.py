"""`Worker`: the frontend's side of one worker process, from its start to its end.

One task (`run`) owns the life: start, load, serve, and after a death wait and start again, along
the table of `core.worker_state`. Serving itself needs no task: the pool hands over a batch
(`run_batch`), the connection calls back with the reply, and the worker asks the pool for more. That
keeps a request at a handful of plain function calls.

A deadline hangs over everything the process owes us (its start, its load, each reply). It is one
number, `_due_s`, watched by one timer that is moved only when it fires, so a busy worker sets no
timer per batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ts.protocol.log_lines import split_level
from ts.protocol.messages import (
    LoadModel,
    LoadReply,
    Prediction,
    PredictReply,
    encode_load,
    encode_predict,
)
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ModelError, ServingError, WorkerDied, WorkerStartFailed
from ts_frontend.core.inference import Header, ResponseChunk
from ts_frontend.core.job import Command, Job, JobState
from ts_frontend.core.model import Model
from ts_frontend.core.worker_state import WorkerEvent, WorkerState, next_state
from ts_frontend.workers.connections.base import ConnectionOwner, WorkerConnection
from ts_frontend.workers.environment import WorkerLaunch
from ts_frontend.workers.process import WorkerProcess

logger = logging.getLogger(__name__)
model_logger = logging.getLogger("MODEL_LOG")

# TorchServe's table; it enters at index 1, so the first retry comes after one second.
BACKOFF_SECONDS = (0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597)
CONNECT_PAUSE_S = 0.02
# A SIGKILL that we did not send is the kernel's out-of-memory killer.
OUT_OF_MEMORY_CODES = frozenset({137, -9})
STREAM_MARKER = b"ts_stream_next"

# Work for a busy worker may be sent ahead, so that a fast handler waits for no round trip. It may
# add up to this much time, and this many batches: what is sent cannot be given to another worker.
AHEAD_S = 0.001
MAX_AHEAD = 16
BATCH_TIME_WEIGHT = 0.2  # of the newest batch in the smoothed batch time

Connect = Callable[[str, ConnectionOwner, int], Awaitable[WorkerConnection]]
"""Address, owner, largest accepted field in bytes -> connection; raises OSError."""


class WorkerMeters(Protocol):
    """What a worker reports of itself; milliseconds."""

    def loaded(self, worker_name: str, load_ms: float) -> None: ...

    def batch(self, queue_ms: float, worker_thread_ms: float) -> None:
        """How long the last job of a batch waited, and what handing the batch over took."""
        ...

    def died(self, model: Model, cause: str) -> None: ...

    def worker_line(self, line: str) -> bool:
        """Take a line that the worker printed; True if it was a metric and needs no log line."""
        ...


class WorkerOwner(Protocol):
    """The pool, as its workers see it."""

    def worker_is_free(self, worker: Worker) -> None: ...

    def worker_is_gone(self, worker: Worker) -> None:
        """It takes nothing more for now (died, stopping)."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """What a worker's life is timed by, in seconds; tests have no time for the defaults.

    backoff_s: from a death to the next start, entered at index 1.
    listen_s:  from the spawn to "Torch worker started."; TorchServe waits as long.
    connect_s: from that line to a connection, since some runtimes print it before they listen.
    exit_s:    from the end of a connection to the exit of its process.
    """

    backoff_s: Sequence[float] = BACKOFF_SECONDS
    listen_s: float = 120
    connect_s: float = 1
    exit_s: float = 1


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where one worker lives: its id (TorchServe's "port"), and its GPUs."""

    port: int
    gpu: int | None
    gpus: tuple[int, ...] = ()
    width: int = 1  # how many consecutive ports it takes


def push_prediction(job: Job, prediction: Prediction) -> bool:
    """Give `job` one piece of its answer; True if the worker marked it as the last one."""
    is_last = True
    headers: list[Header] = prediction.headers
    for name, value in headers:
        if name == STREAM_MARKER and value == b"true":
            is_last = False
    if job.state is JobState.RUNNING:
        if is_last and job.meters is not None and job.command is Command.PREDICT:
            latency_s = monotonic() - job.arrived_s
            job.meters.latency_us.value += latency_s * 1e6
            job.meters.latency_seconds.observe(latency_s)
        job.push(
            ResponseChunk(
                prediction.status,
                prediction.reason,
                prediction.content_type,
                headers,
                prediction.body,
                is_last,
            )
        )
    return is_last


class Worker:
    def __init__(
        self,
        model: Model,
        place: WorkerPlace,
        launch: WorkerLaunch,
        connect: Connect,
        owner: WorkerOwner,
        meters: WorkerMeters,
        times: WorkerTimes,
    ) -> None:
        # For life.
        self.model = model
        self.place = place
        self.name = f"W-{place.port}-{model.id}"
        self.started_at = time.time()
        self._launch = launch
        self._connect = connect
        self._owner = owner
        self._meters = meters
        self._times = times
        self._stop_requested = asyncio.Event()
        self.state = WorkerState.STARTING
        self.last_failure = ""
        self.restarts = 0
        self._timeouts = 0  # in a row, without an answer between them
        # Set once: None when the model is loaded, the error when the first attempt failed or it was
        # stopped before.
        self.first_load: asyncio.Future[ServingError | None] = (
            asyncio.get_running_loop().create_future()
        )
        # Per process.
        self.process: WorkerProcess | None = None
        self._connection: WorkerConnection | None = None
        self._loading: asyncio.Future[LoadReply] | None = None
        self._lost: asyncio.Future[str] | None = None
        # Per batch.
        self._batches: deque[list[Job]] = deque()
        self._began_s = 0.0  # when the oldest batch became the oldest
        self._batch_s = AHEAD_S  # how long a batch takes, smoothed; at first nothing is sent ahead
        self._drained = asyncio.Event()
        self._drained.set()
        self._due_s: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        # Nobody measures it yet.
        self.gpu_usage = "failed to obtained gpu usage"  # TorchServe's own words
        self._recovery_started_s: float | None = None

    @property
    def pid(self) -> int:
        return -1 if self.process is None else self.process.reported_pid

    @property
    def is_busy(self) -> bool:
        return bool(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether it waits for replies before it takes another batch in its turn."""
        return bool(self._batches)

    @property
    def in_flight(self) -> int:
        """Batches that were sent and not answered."""
        return len(self._batches)

    @property
    def takes_more(self) -> bool:
        """Whether a batch may be sent ahead while it works on others."""
        in_flight = len(self._batches)
        return (
            self.state is WorkerState.READY
            and self._connection is not None  # else lost in this very turn
            and in_flight < MAX_AHEAD
            and (in_flight + 1) * self._batch_s < AHEAD_S
        )

    @property
    def is_healthy(self) -> bool:
        """As `/ping` counts it: serving, or on its way there within the retry window."""
        return self.state not in (WorkerState.DEAD, WorkerState.STOPPING, WorkerState.STOPPED)

    # The life.

    async def run(self) -> None:
        """Serve until `stop`, or until it is clear that the worker cannot live."""
        attempt = 0
        backoff_s = self._times.backoff_s
        try:
            while not self._stop_requested.is_set():
                try:
                    await self._start()
                    attempt = 0
                    await self._serve()
                except ServingError as error:
                    self._failed(error)
                finally:
                    await self._end_process()
                if self.state is WorkerState.STOPPING:
                    break
                attempt = min(attempt + 1, len(backoff_s) - 1)
                if not await self._wait_for_retry(backoff_s[attempt]):
                    break
            if self.state is WorkerState.DEAD:
                await self._stop_requested.wait()
        except BaseException:
            self._fail_batches(WorkerDied())
            raise
        finally:
            self._forget_watch()
            if self.state is not WorkerState.STOPPING:
                self.advance(WorkerEvent.STOP)
            self.advance(WorkerEvent.ENDED)
            self._owner.worker_is_gone(self)
            self._settle(
                WorkerStartFailed("The worker was stopped before it had loaded the model.")
            )

    async def stop(self, grace_s: float) -> None:
        """Take no more work, finish what runs for at most `grace_s` seconds, then end."""
        if self.state in (WorkerState.STOPPING, WorkerState.STOPPED):
            return
        if self.state in (WorkerState.STARTING, WorkerState.LOADING) and self.process is not None:
            self.process.kill()
        self.advance(WorkerEvent.STOP)
        self._owner.worker_is_gone(self)
        if self.is_busy and grace_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._drained.wait()
        self._stop_requested.set()
        self._lose("stopped")

    def advance(self, event: WorkerEvent) -> None:
        """Move along the table; every change of state passes here."""
        state = next_state(self.state, event)
        logger.debug("%s %s -> %s (%s)", self.name, self.state.value, state.value, event.value)
        self.state = state

    async def _start(self) -> None:
        """Process, connection, model. Raises WorkerStartFailed."""
        began_s = monotonic()
        config = self.model.config
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._loading = loop.create_future()
        command = self._launch.command(self.model, self.place.port)
        environment = self._launch.worker_environment(self.model, self.place.gpus)
        try:
            self.process = await WorkerProcess.start(
                command, environment, self.model.path, self._line
            )
        except OSError as error:
            raise self._start_failure(f"cannot start {command[0]}: {error.strerror}") from error
        if self.state is WorkerState.STOPPING:  # since the spawn began
            self.process.kill()
        listen_s = self._times.listen_s
        try:
            async with asyncio.timeout(listen_s):
                is_listening = await self.process.wait_listening()
        except TimeoutError:
            raise self._start_failure(f"did not listen within {listen_s:g} s") from None
        if not is_listening:
            await self._await_exit()
            raise self._start_failure("Backend stream closed.")
        await self._connect_and_load(config.startup_timeout_s)
        if self.state is not WorkerState.STOPPING:
            self.advance(WorkerEvent.LOADED)
        self._meters.loaded(self.name, (monotonic() - began_s) * 1000)
        if self._recovery_started_s is not None:
            self._recovery_started_s = None
            self._log("Auto recovery succeeded, reset recoveryStartTS")
        self._settle(None)

    async def _connect_and_load(self, timeout_s: float) -> None:
        try:
            connection = await self._open_connection()
        except OSError as error:
            await self._await_exit()
            reason = error.strerror or str(error)
            raise self._start_failure(f"cannot connect to the worker: {reason}") from error
        self._connection = connection
        if self.state is not WorkerState.STOPPING:
            self.advance(WorkerEvent.LISTENING)
        model = self.model
        connection.send(
            [
                encode_load(
                    LoadModel(
                        model_name=model.id.name,
                        model_dir=model.path,
                        batch_size=model.config.batch_size,
                        handler=model.handler or model.path,
                        gpu_id=self.place.gpu,
                        envelope=model.envelope,
                        limit_max_image_pixels=self._launch.limit_max_image_pixels,
                    )
                )
            ]
        )
        assert self._loading is not None  # noqa: S101 - set by _start
        assert self._lost is not None  # noqa: S101
        outcomes: set[asyncio.Future[Any]] = {self._loading, self._lost}
        done, _ = await asyncio.wait(
            outcomes, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            self._log("Backend worker did not respond in given time")
            raise self._start_failure(
                f"did not load the model within {timeout_s:g} s (startupTimeout)"
            )
        if not self._loading.done():
            await self._await_exit()
            raise self._start_failure("ended while loading the model")
        reply = self._loading.result()
        if reply.code != 200:
            raise self._start_failure(reply.message, code=reply.code)

    async def _open_connection(self) -> WorkerConnection:
        """Raises OSError if nobody has listened for `connect_s` or the process has ended."""
        address = self._launch.address(self.place.port)
        give_up_s = monotonic() + self._times.connect_s
        while True:
            try:
                return await self._connect(address, self, self._launch.max_field_bytes)
            except (ConnectionRefusedError, FileNotFoundError):
                has_ended = self.process is None or self.process.return_code is not None
                if has_ended or monotonic() >= give_up_s:
                    raise
            await asyncio.sleep(CONNECT_PAUSE_S)

    async def _serve(self) -> None:
        """Until the worker is lost. Raises WorkerDied, unless it was stopped."""
        assert self._lost is not None  # noqa: S101 - set by _start
        self._drained.set()
        self._owner.worker_is_free(self)
        reason = await self._lost
        if self._stop_requested.is_set():
            return
        await self._await_exit()
        raise self._death(reason)

    async def _await_exit(self) -> None:
        """Give a dying process the moment it needs for its last words and exit code to be known."""
        if self.process is not None:
            if not self.process.was_killed_by_us:
                await self.process.wait_ended(self._times.exit_s)
            await self.process.aclose()

    def _is_out_of_memory(self) -> bool:
        process = self.process
        return (
            process is not None
            and not process.was_killed_by_us
            and process.return_code in OUT_OF_MEMORY_CODES
        )

    def _describe_exit(self, reason: str) -> str:
        code = None if self.process is None else self.process.return_code
        if code is None or (self.process is not None and self.process.was_killed_by_us):
            return reason
        if code < 0:
            return f"{reason} (ended by signal {-code})"
        return f"{reason} (exit code {code})"

    def _start_failure(self, reason: str, code: int | None = None) -> WorkerStartFailed:
        name, version = self.model.id
        return WorkerStartFailed(
            f"Failed to start workers for model {name} version: {version}",
            cause=self._describe_exit(reason),
            out_of_memory=code in (507, 413) or self._is_out_of_memory(),
            was_refused=code is not None,
        )

    def _death(self, reason: str) -> WorkerDied:
        self.last_failure = self._describe_exit(reason)
        return WorkerDied(out_of_memory=self._is_out_of_memory())

    def _failed(self, error: ServingError) -> None:
        """The process is of no use any more: tell everybody who waits, then think about a retry."""
        if isinstance(error, WorkerStartFailed):
            self.last_failure = error.cause
        if self.state is WorkerState.STOPPING:
            self._fail_batches(error if isinstance(error, WorkerDied) else WorkerDied())
            return
        self.advance(WorkerEvent.FAILED)
        self._owner.worker_is_gone(self)
        last_words = (
            "" if self.process is None else "\n".join(f"    {x}" for x in self.process.last_lines)
        )
        self._log(f"worker died: {self.last_failure}; it last said:\n{last_words}", logging.WARNING)
        self._meters.died(self.model, self.last_failure)
        self._fail_batches(error if isinstance(error, WorkerDied) else WorkerDied())
        self._settle(error)

    async def _wait_for_retry(self, delay_s: float) -> bool:
        """True when it is time to start again; False when stopped or the retry window is over."""
        now_s = monotonic()
        if self._recovery_started_s is None:
            self._recovery_started_s = now_s
            self._log(f"Auto recovery start timestamp: {int(time.time() * 1000)}")
        else:
            self._log("Auto recovery failed again")
        if now_s - self._recovery_started_s >= self.model.config.max_retry_timeout_s:
            self._log(
                "No more retries: the retry window (maxRetryTimeoutInSec) is over.", logging.ERROR
            )
            self.advance(WorkerEvent.GIVE_UP)
            self._owner.worker_is_gone(self)
            return False
        self._log(f"Retry worker: {self.place.port} in {delay_s} seconds.")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stop_requested.wait()
        if self._stop_requested.is_set() or self.state is WorkerState.STOPPING:
            return False
        self.advance(WorkerEvent.RETRY)
        self.restarts += 1
        return True

    async def _end_process(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._due_s = None
        if self.process is not None:
            process, self.process = self.process, None
            try:
                if self._stop_requested.is_set():
                    # It has read the end of the stream and may run its exit hooks.
                    await process.wait_ended(self._times.exit_s)
            finally:
                await process.aclose()
                self._launch.clear_address(self.place.port, self.place.width)
        self._fail_batches(WorkerDied())

    def _settle(self, outcome: ServingError | None) -> None:
        if not self.first_load.done():
            self.first_load.set_result(outcome)

    # The work.

    def run_batch(self, batch: list[Job]) -> None:
        """Send `batch` to the process. The caller has asked for it because this worker is free."""
        connection = self._connection
        if connection is None:  # lost in this very turn
            self.model.queue.put_back(batch)
            return
        for job in batch:
            job.holder = self
        self._batches.append(batch)
        buffers = encode_predict([job.request for job in batch])
        if len(self._batches) == 1:
            self._drained.clear()
            self._began_s = batch[0].taken_s
            connection.send(buffers)
            self._expect_reply()
        else:
            connection.send_soon(buffers)

    def _expect_reply(self) -> None:
        self._due_s = monotonic() + self.model.config.response_timeout_s
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(
                self.model.config.response_timeout_s, self._check_due
            )

    def _check_due(self) -> None:
        self._watch = None
        if self._due_s is None:
            return
        left_s = self._due_s - monotonic()
        if left_s > 0:
            self._watch = asyncio.get_running_loop().call_later(left_s, self._check_due)
            return
        timeout_s = self.model.config.response_timeout_s
        self._log(f"Backend worker did not respond in given time: {timeout_s:g} s", logging.ERROR)
        self._timeouts += 1
        self._log(f"Number or consecutive unsuccessful inference {self._timeouts}")  # TorchServe's
        if self.process is not None:
            self.process.kill()
        self._lose("no reply within responseTimeout")

    def _forget_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def on_load_reply(self, reply: LoadReply) -> None:
        if self._loading is not None and not self._loading.done():
            self._loading.set_result(reply)

    def on_predict_reply(self, reply: PredictReply) -> None:
        """One reply: an answer, or a part of it, for every job of the oldest batch."""
        if not self._batches:
            self._lose("a reply that nobody asked for")
            return
        batch = self._batches[0]
        if reply.code != 200:
            # The status that a handler's own failure has is the worker's to choose.
            error = ModelError(reply.code, reply.message)
            for job in batch:
                job.fail(error)
        else:
            predictions = reply.predictions
            if len(predictions) != len(batch):
                self._lose(f"{len(predictions)} answers for {len(batch)} requests")
                return
            if self._deliver(batch, predictions):
                self._expect_reply()
                return
        self._finish(batch)

    def _deliver(self, batch: list[Job], predictions: list[Prediction]) -> bool:
        """Give each prediction to its job; True if the worker said that more will follow."""
        has_more = False
        for job, prediction in zip(batch, predictions, strict=True):
            if prediction.id != job.request.id:
                # Never deliver what might be somebody else's answer.
                self._lose("an answer with another request's id")
                return True
            if not push_prediction(job, prediction):
                has_more = True
        return has_more

    def _finish(self, batch: list[Job]) -> None:
        self._batches.popleft()
        self._timeouts = 0
        now_s = monotonic()
        self._batch_s += (now_s - self._began_s - self._batch_s) * BATCH_TIME_WEIGHT
        self._began_s = now_s
        for job in batch:
            # A stream whose end marker got lost in an odd handler still gets its end.
            if job.state is JobState.RUNNING:
                job.push(ResponseChunk(200, b"", b"", (), b"", True))
        if self._batches:
            self._expect_reply()
        else:
            self._due_s = None
            self._drained.set()
        if self.state is WorkerState.READY:
            self._owner.worker_is_free(self)

    def abandoned(self, job: Job) -> None:
        """A client of the running batch left or ran out of time: its answer will be dropped."""

    def on_connection_lost(self, reason: str) -> None:
        self._connection = None
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)
        if self._connection is not None and reason != "stopped":
            self._connection.close()
            self._connection = None

    def _fail_batches(self, error: ServingError) -> None:
        """Answer the batch that was running; what was only sent ahead goes back to the queue."""
        batches, self._batches = self._batches, deque()
        if batches:
            for job in batches.popleft():
                job.fail(error)
            self.model.queue.put_back(job for batch in batches for job in batch)
        self._drained.set()

    # What it prints.

    def _line(self, stream: str, line: str) -> None:
        if self._meters.worker_line(line):
            return
        level, text = split_level(line)
        if level is None:
            level = logging.INFO if stream == "stdout" else logging.WARNING
        model_logger.log(level, "%s", text, extra={"thread_name": f"{self.name}-{stream}"})

    def _log(self, text: str, level: int = logging.INFO) -> None:
        logger.log(level, "%s", text, extra={"thread_name": self.name})

    def __repr__(self) -> str:
        return (
            f"<Worker {self.model.id.name}/{self.model.id.version} #{self.place.port} "
            f"{self.state.name} pid={self.pid} batches={self.in_flight}>"
        )
