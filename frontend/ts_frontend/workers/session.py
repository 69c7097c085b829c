"""`WorkerSession`: one process of a worker, from its spawn to its exit, and its connection.

A worker has one session after another; a session is used once. `start` brings it to the loaded
model, `wait_lost` lasts as long as it serves, `aclose` ends it. Whatever goes wrong comes out as
`SessionFailed` with the `WorkerFailure` that says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ts.protocol.controls import has_controls
from ts.protocol.messages import LoadModel, LoadReply, PredictReply, encode_load
from ts_frontend.core.clock import monotonic
from ts_frontend.core.model import Model, ParallelType
from ts_frontend.workers.connections.base import ConnectionOwner, WorkerConnection
from ts_frontend.workers.connections.ranks import RankConnections
from ts_frontend.workers.connections.shared_memory import SharedMemoryLane
from ts_frontend.workers.environment import WorkerLaunch
from ts_frontend.workers.failure import FailureKind, WorkerFailure, last_exception, oom_kills
from ts_frontend.workers.process import LineSink, WorkerProcess
from ts_frontend.workers.self_test import Complaint, SelfTester

logger = logging.getLogger(__name__)

# TorchServe's table; it enters at index 1, so the first retry comes after one second.
BACKOFF_SECONDS = (0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597)
CONNECT_PAUSE_S = 0.02

Connect = Callable[[str, ConnectionOwner, int], Awaitable[WorkerConnection]]
"""Address, owner, largest accepted field in bytes -> connection; raises OSError."""


@dataclass(frozen=True)
class WorkerTimes:
    """What a worker's life is timed by, in seconds; tests have no time for the defaults.

    backoff_s: from a death to the next start, entered at index 1.
    listen_s:  from the spawn to "Torch worker started."; TorchServe waits as long.
    connect_s: from that line to a connection, since some runtimes print it before they listen.
    exit_s:    from the loss of a connection to the exit of its process, whose status tells why.
               Long, since on a full machine exit hooks take their time; a worker of ours that is
               held up ends itself sooner.
    goodbye_s: from our end of a connection to the exit of its process: one that hangs is killed.
    """

    backoff_s: Sequence[float] = BACKOFF_SECONDS
    listen_s: float = 120
    connect_s: float = 1
    exit_s: float = 5
    goodbye_s: float = 1


@dataclass(frozen=True)
class WorkerPlace:
    """Where one worker lives: its id (TorchServe's "port"), and its GPUs."""

    port: int
    gpu: int | None
    gpus: tuple[int, ...] = ()
    width: int = 1  # how many consecutive ports it takes


class SessionFailed(Exception):
    """The process cannot be used, or can no longer be."""

    def __init__(self, failure: WorkerFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class WorkerSession:
    """connection: None before it is open and from the moment it is known to be lost.
    has_controls:   the worker is ours: it may be sent cancels and pings.
    loaded_s:       when it had loaded the model, on the monotonic clock.
    on_predict_reply, on_listening: the worker's; the first is called straight by the connection.
    """

    def __init__(
        self,
        model: Model,
        place: WorkerPlace,
        launch: WorkerLaunch,
        connect: Connect,
        times: WorkerTimes,
        *,
        on_predict_reply: Callable[[PredictReply], None],
        on_listening: Callable[[], None],
        on_line: LineSink,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.process: WorkerProcess | None = None
        self.connection: WorkerConnection | None = None
        self.has_controls = False
        self.loaded_s = 0.0
        self.on_predict_reply = on_predict_reply
        self._on_listening = on_listening
        self._on_line = on_line
        self._model = model
        self._place = place
        self._launch = launch
        self._connect = connect
        self._times = times
        self._loading: asyncio.Future[LoadReply] = loop.create_future()
        self._lost: asyncio.Future[tuple[FailureKind, str] | None] = loop.create_future()
        self._is_unwanted = False
        self._oom_kills: int | None = None
        self._lane: SharedMemoryLane | None = None

    @property
    def _has_temp_dir(self) -> bool:
        return self._model.config.containment.has_own_temp_dir

    @property
    def pid(self) -> int:
        return -1 if self.process is None else self.process.reported_pid

    async def start(self) -> None:
        """Process, connection, model. Raises SessionFailed."""
        if self._launch.is_by_hand:
            line = self._launch.shell_line(self._model, self._place.port, self._place.gpus)
            logger.info("Start this worker by hand: %s", line)
        else:
            await self._start_process()
        await self._open_connection()
        await self._load()
        await self._test_itself()
        self.loaded_s = monotonic()

    async def _start_process(self) -> None:
        """Until it listens. Raises SessionFailed."""
        self._oom_kills = oom_kills()
        command = self._launch.command(self._model, self._place.port)
        environment = self._launch.worker_environment(self._model, self._place.gpus)
        lane = self._lane = self._launch.open_lane(self._model)
        descriptors = []
        if lane is not None:
            environment.update(lane.variables)
            descriptors.append(lane.descriptor)
        try:
            if self._has_temp_dir:
                environment.update(self._launch.open_temp_dir(self._place.port))
            start = self._launch.starter(self._model)
            self.process = await start(
                command, environment, self._model.path, self._on_line, descriptors
            )
        except OSError as error:
            reason = f"cannot start {command[0]}: {error.strerror}"
            raise self._failed(FailureKind.NOT_STARTED, reason) from error
        finally:
            if lane is not None:
                lane.started()
        if self._is_unwanted:  # since the spawn began
            self.process.kill()
        listen_s = self._times.listen_s
        try:
            async with asyncio.timeout(listen_s):
                is_listening = await self.process.wait_listening()
        except TimeoutError:
            reason = f"did not listen within {listen_s:g} s"
            raise self._failed(FailureKind.NOT_STARTED, reason) from None
        if not is_listening:
            await self._await_exit()
            raise self._failed(FailureKind.NOT_STARTED, "Backend stream closed.")

    async def wait_lost(self) -> None:
        """Return when the session was ended on purpose; raises SessionFailed for all else."""
        lost = await self._lost
        if lost is not None:
            await self._await_exit()
            raise self._failed(*lost)

    def lose(self, kind: FailureKind, reason: str) -> None:
        """The process is of no use any more; what it still says is not heard."""
        if not self._lost.done():
            self._lost.set_result((kind, reason))
        self._close_connection()

    def end(self) -> None:
        """Have `wait_lost` return. The worker reads the end of the stream when it is closed."""
        if not self._lost.done():
            self._lost.set_result(None)

    def kill(self) -> None:
        """End the process now, or as soon as it is spawned."""
        self._is_unwanted = True
        if self.process is not None:
            self.process.kill()

    async def aclose(self, *, may_run_exit_hooks: bool) -> None:
        """Leave nothing behind: no connection, process or socket."""
        self._close_connection()
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        if self.process is None:
            return
        process, self.process = self.process, None
        try:
            if may_run_exit_hooks:
                await process.wait_ended(self._times.goodbye_s)
        finally:
            await process.aclose()
            self._launch.clear_address(self._place.port, self._place.width)
            if self._has_temp_dir:
                await asyncio.to_thread(self._launch.remove_temp_dir, self._place.port)

    # The connection's owner.

    def on_load_reply(self, reply: LoadReply) -> None:
        if not self._loading.done():
            self._loading.set_result(reply)

    def on_connection_lost(self, reason: str, is_bad_reply: bool) -> None:
        self.connection = None
        self.lose(FailureKind.BAD_REPLY if is_bad_reply else FailureKind.DISCONNECTED, reason)

    def _close_connection(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # The parts of a start.

    async def _open_connection(self) -> None:
        try:
            self.connection = await self._try_to_connect()
        except OSError as error:
            await self._await_exit()
            reason = f"cannot connect to the worker: {error.strerror or error}"
            raise self._failed(FailureKind.NOT_STARTED, reason) from error
        self._on_listening()

    async def _try_to_connect(self) -> WorkerConnection:
        """Raises OSError if nobody has listened for `connect_s` or the process has ended."""
        count = self._launch.ranks(self._model)
        if count == 1:
            give_up_s = monotonic() + self._times.connect_s
            return await self._try_to_connect_to(self._place.port, self, give_up_s)
        # The first to listen has said so; the others are on their way.
        give_up_s = monotonic() + self._times.listen_s
        is_pipeline = self._model.config.parallel_type is ParallelType.PIPELINE
        ranks = RankConnections(self, count, is_pipeline=is_pipeline)
        try:
            for rank in range(count):
                port, owner = self._place.port + rank, ranks.owner_of(rank)
                ranks.add(await self._try_to_connect_to(port, owner, give_up_s))
        except BaseException:
            ranks.close()
            raise
        return ranks

    async def _try_to_connect_to(
        self, port: int, owner: ConnectionOwner, give_up_s: float
    ) -> WorkerConnection:
        address = self._launch.address(port)
        while True:
            try:
                return await self._connect(address, owner, self._launch.max_field_bytes)
            except (ConnectionRefusedError, FileNotFoundError):
                if self._launch.is_by_hand:
                    is_hopeless = self._is_unwanted
                else:
                    has_ended = self.process is None or self.process.return_code is not None
                    is_hopeless = has_ended or monotonic() >= give_up_s
                if is_hopeless:
                    raise
            await asyncio.sleep(CONNECT_PAUSE_S)

    async def _load(self) -> None:
        model = self._model
        load = LoadModel(
            model_name=model.id.name,
            model_dir=model.path,
            batch_size=model.config.batch_size,
            handler=model.handler or model.path,
            gpu_id=self._place.gpu,
            envelope=model.envelope,
            limit_max_image_pixels=self._launch.limit_max_image_pixels,
        )
        if self.connection is not None:
            self.connection.send([encode_load(load)])
        outcomes: set[asyncio.Future[Any]] = {self._loading, self._lost}
        timeout_s = None if self._launch.is_by_hand else model.config.startup_timeout_s
        done, _ = await asyncio.wait(
            outcomes, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            reason = f"did not load the model within {timeout_s:g} s (startupTimeout)"
            raise self._failed(FailureKind.LOAD_TIMEOUT, reason)
        if not self._loading.done():
            await self._await_exit()
            raise self._failed(FailureKind.DISCONNECTED, "ended while loading the model")
        reply = self._loading.result()
        if reply.code != 200:
            await self._await_exit()  # it has told its log why
            raise self._failed(FailureKind.LOAD_REFUSED, reply.message, reply.code)
        self.has_controls = has_controls(reply.message)
        if self._lane is not None and self.connection is not None and self._lane.is_understood():
            self.connection.use_lane(self._lane)

    async def _test_itself(self) -> None:
        """Let the worker answer what its archive asks first. Raises SessionFailed."""
        if self._model.self_test is None or self.connection is None:
            return
        tester = SelfTester(self._model.self_test, self._model.config.response_timeout_s)
        hears, self.on_predict_reply = self.on_predict_reply, tester.on_predict_reply
        testing = asyncio.create_task(tester.run(self.connection), name="self-test")
        outcomes: set[asyncio.Future[Any]] = {testing, self._lost}
        try:
            await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
            if testing.done():
                testing.result()
            elif (lost := self._lost.result()) is not None:
                await self._await_exit()
                raise self._failed(lost[0], f"{lost[1]}, in its self-test")
        except Complaint as complaint:
            raise self._failed(FailureKind.SELF_TEST, f"self-test failed: {complaint}") from None
        finally:
            testing.cancel()
            self.on_predict_reply = hears

    # Why.

    async def _await_exit(self) -> None:
        """Give a dying process the moment it needs for its last words and exit code to be known."""
        if self.process is not None:
            if not self.process.was_killed_by_us:
                await self.process.wait_ended(self._times.exit_s)
            await self.process.aclose()

    def _failed(self, kind: FailureKind, reason: str, code: int | None = None) -> SessionFailed:
        process = self.process
        status = None
        lines: tuple[str, ...] = ()
        if process is not None:
            lines = tuple(process.last_lines)
            if not process.was_killed_by_us:
                status = process.return_code
        exit_code = status if status is not None and status >= 0 else None
        signal = -status if status is not None and status < 0 else None
        if code is None and kind in (FailureKind.NOT_STARTED, FailureKind.DISCONNECTED):
            if signal == 9 and self._has_memory_run_out():
                kind = FailureKind.OUT_OF_MEMORY
            elif signal is not None:
                kind = FailureKind.SIGNAL
            elif exit_code is not None:
                kind = FailureKind.EXIT
        exception = last_exception(lines) if kind in _RAISED else ""
        is_at_load = not self.loaded_s
        return SessionFailed(
            WorkerFailure(kind, reason, exit_code, signal, code, exception, lines, is_at_load)
        )

    def _has_memory_run_out(self) -> bool:
        now = oom_kills()
        return now is not None and self._oom_kills is not None and now > self._oom_kills


# Kinds of failure that an exception of the handler may explain.
_RAISED = (FailureKind.EXIT, FailureKind.LOAD_REFUSED)
