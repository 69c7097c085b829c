"""`Worker`: the frontend's side of one worker process, from its start to its end.

One task (`run`) owns the life: start, load, serve, and after a death wait and start again, along
the table of `core.worker_state`. What it works on is its subclasses' business (`BatchWorker`,
`ConcurrentWorker`); serving needs no task: the pool hands over a batch (`run_batch`), the
connection calls back with the reply, and the worker asks the pool for more. That keeps a request
at a handful of plain function calls.

A deadline hangs over everything the process owes us (its start, its load, each reply: `ReplyDue`);
what it need not answer is seen by `check`, which the pool calls now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time

from ts.protocol.log_lines import split_level
from ts.protocol.messages import PING, PredictReply, encode_cancel, is_pong
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import SelfTestFailed, ServingError, WorkerDied, WorkerStartFailed
from ts_frontend.core.job import Job, JobState
from ts_frontend.core.model import Model
from ts_frontend.core.worker_state import WorkerEvent, WorkerState, next_state
from ts_frontend.workers.connections.base import WorkerConnection
from ts_frontend.workers.environment import WorkerLaunch
from ts_frontend.workers.failure import FailureKind, WorkerFailure
from ts_frontend.workers.owner import WorkerMeters, WorkerOwner
from ts_frontend.workers.process import is_stopped
from ts_frontend.workers.reply_due import ReplyDue
from ts_frontend.workers.session import (
    Connect,
    SessionFailed,
    WorkerPlace,
    WorkerSession,
    WorkerTimes,
)

logger = logging.getLogger(__name__)
model_logger = logging.getLogger("MODEL_LOG")

# Checks in a row that find a process stopped, or its ping overdue, before it is given up: one may
# fall into a pause that ends by itself.
BAD_CHECKS = 2

# One that ends sooner than this after its load, with no request to blame, would end so again: each
# time it waits longer for the next start.
STABLE_S = 10.0

# Loads in a row that fail for a reason that lasts, before it is believed: a file may still be on
# its way over the network.
LASTING_ATTEMPTS = 2


_GONE = (WorkerState.DEAD, WorkerState.STOPPING, WorkerState.STOPPED)


class Worker:
    """A subclass says what is on board (`is_busy` and the like), takes batches and hears replies.

    failure:  why the last process ended, None if none has.
    requests: handed to the present process.
    """

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
        self.failure: WorkerFailure | None = None
        self.restarts = 0
        self._lasting_failures = 0  # in a row
        self._timeouts = 0  # in a row, without an answer between them
        # Set once: None when the model is loaded, the error when the first attempt failed or it was
        # stopped before.
        self.first_load: asyncio.Future[ServingError | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._recovery_started_s: float | None = None
        # Per process.
        self._session = self._new_session()
        self.requests = 0
        self._bad_checks = 0  # in a row
        self._ping_s: float | None = None  # when it was sent that is not answered
        self._pong: asyncio.Future[None] | None = None  # for those who wait for the answer
        # Per batch.
        self._drained = asyncio.Event()
        self._drained.set()
        self._due = ReplyDue(self._overdue)
        self._cancel_timer: asyncio.TimerHandle | None = None
        # Nobody measures it yet.
        self.gpu_usage = "failed to obtained gpu usage"  # TorchServe's own words
        self._begin_idle()

    def _begin_idle(self) -> None:
        """Set what this kind of worker keeps of its work; called once, by the constructor."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self._session.pid

    @property
    def age_s(self) -> float:
        """How long the present process has been serving."""
        return monotonic() - self._session.loaded_s

    @property
    def last_failure(self) -> str:
        return "" if self.failure is None else str(self.failure)

    @property
    def is_busy(self) -> bool:
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """What was sent and not answered."""
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        """Whether it waits for replies before it takes another batch in its turn."""
        raise NotImplementedError

    @property
    def takes_more(self) -> bool:
        """Whether a batch may be sent ahead while it works on others."""
        raise NotImplementedError

    def takes_next(self, longest_s: float) -> bool:
        """Whether the batch after the one it works on may be sent ahead, if many more wait and
        batches take up to so long.
        """
        return False

    @property
    def batch_s(self) -> float:
        """How long a batch takes, smoothed."""
        return math.inf

    @property
    def is_awake(self) -> bool:
        """Whether it works, and so fast that a batch is better sent to it than to an idle one."""
        return False

    @property
    def takes_suspect(self) -> bool:
        """Whether it may run a request that was on board when another worker died."""
        raise NotImplementedError

    @property
    def is_healthy(self) -> bool:
        """As `/ping` counts it: serving, or on its way there within the retry window."""
        return self.state not in _GONE

    def run_batch(self, batch: list[Job]) -> None:
        """Send `batch` to the process. The caller has asked for it because this worker is free."""
        raise NotImplementedError

    def on_predict_reply(self, reply: PredictReply) -> None:
        raise NotImplementedError

    def _give_up_work(self, error: WorkerDied, failure: WorkerFailure | None) -> None:
        """Hand what is on board back to the owner, which answers it or has it run again."""
        raise NotImplementedError

    def _is_worked_for_nobody(self) -> bool:
        """Whether it runs something, and no client waits for any of it."""
        raise NotImplementedError

    # The life.

    async def run(self) -> None:
        """Serve until `stop`, or until it is clear that the worker cannot live."""
        attempt = 0
        backoff_s = self._times.backoff_s
        try:
            while not self._stop_requested.is_set():
                try:
                    await self._start()
                    await self._serve()
                except SessionFailed as error:
                    self._failed(error.failure)
                finally:
                    await self._end_session()
                if self.state is WorkerState.STOPPING:
                    break
                if self._session.loaded_s and (self.requests or self.age_s >= STABLE_S):
                    attempt = 0
                attempt = min(attempt + 1, len(backoff_s) - 1)
                # Where nothing was wrong with it, nothing is to be waited for.
                was_healthy = self.failure and self.failure.kind is FailureKind.CANCEL_IGNORED
                if not await self._wait_for_retry(0 if was_healthy else backoff_s[attempt]):
                    break
                self._session = self._new_session()
            if self.state is WorkerState.DEAD:
                await self._stop_requested.wait()
        except BaseException:
            self._give_up_work(WorkerDied(), None)
            raise
        finally:
            self._due.close()
            self._forget_cancels()
            if self.state is not WorkerState.STOPPING:
                self.advance(WorkerEvent.STOP)
            self.advance(WorkerEvent.ENDED)
            self._owner.worker_is_gone(self)
            self._settle(
                WorkerStartFailed(
                    "Failed to start workers for model {} version: {}".format(*self.model.id),
                    cause="stopped, by a scale or an unregister, before it had loaded the model",
                    was_stopped=True,
                )
            )

    async def stop(self, grace_s: float | None) -> None:
        """Take no more work, finish what runs for at most `grace_s` seconds, then end.

        grace_s: None for as long as it takes (each reply has its own time). Of several stops the
        first whose grace is over counts.
        """
        if self.state is WorkerState.STOPPED or self._stop_requested.is_set():
            return
        if self.state is not WorkerState.STOPPING:
            if self.state in (WorkerState.STARTING, WorkerState.LOADING):
                self._session.kill()
            self.advance(WorkerEvent.STOP)
            self._owner.worker_is_gone(self)
        if self.is_busy and grace_s != 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._drained.wait()
        self._stop_requested.set()
        self._session.end()

    def advance(self, event: WorkerEvent) -> None:
        """Move along the table; every change of state passes here."""
        state = next_state(self.state, event)
        logger.debug("%s %s -> %s (%s)", self.name, self.state.value, state.value, event.value)
        self.state = state

    def _new_session(self) -> WorkerSession:
        return WorkerSession(
            self.model,
            self.place,
            self._launch,
            self._connect,
            self._times,
            on_predict_reply=self.on_predict_reply,
            on_listening=self._listening,
            on_line=self._line,
        )

    async def _start(self) -> None:
        """Raises SessionFailed."""
        began_s = monotonic()
        self.requests = 0
        self._bad_checks = 0
        await self._session.start()
        if self.state is not WorkerState.STOPPING:
            self.advance(WorkerEvent.LOADED)
        self._meters.loaded(self.name, (monotonic() - began_s) * 1000)
        if self._recovery_started_s is not None:
            self._recovery_started_s = None
            self._log("Auto recovery succeeded, reset recoveryStartTS")
        self._settle(None)

    def _listening(self) -> None:
        if self.state is not WorkerState.STOPPING:
            self.advance(WorkerEvent.LISTENING)

    async def _serve(self) -> None:
        """Until the worker was stopped; raises SessionFailed when it is lost."""
        self._drained.set()
        self._owner.worker_is_free(self)
        await self._session.wait_lost()

    def _failed(self, failure: WorkerFailure) -> None:
        """The process is of no use any more: tell everybody who waits, then think about a retry."""
        self.failure = failure
        self._lasting_failures = self._lasting_failures + 1 if failure.is_lasting else 0
        died = WorkerDied(out_of_memory=failure.is_out_of_memory)
        died.reason = f"worker_{failure.kind.value}"
        if self.state is WorkerState.STOPPING:
            self._give_up_work(died, failure)
            return
        if failure.kind is FailureKind.LOAD_TIMEOUT:
            self._log("Backend worker did not respond in given time")
        self.advance(WorkerEvent.FAILED)
        self._owner.worker_is_gone(self)
        last_words = "\n".join(f"    {line}" for line in failure.last_lines)
        self._log(f"worker died: {failure}; it last said:\n{last_words}", logging.WARNING)
        self._meters.died(self.model, failure.label)
        self._give_up_work(died, failure)
        name, version = self.model.id
        if failure.kind is FailureKind.SELF_TEST:
            self._settle(SelfTestFailed.of(name, version, failure.reason))
            return
        start_failed = WorkerStartFailed(
            f"Failed to start workers for model {name} version: {version}",
            cause=str(failure),
            out_of_memory=failure.is_out_of_memory,
            was_refused=failure.kind is FailureKind.LOAD_REFUSED,
        )
        start_failed.reason = f"worker_{failure.kind.value}"
        self._settle(start_failed)

    async def _wait_for_retry(self, delay_s: float) -> bool:
        """True when it is time to start again; False when stopped or the retry window is over."""
        now_s = monotonic()
        if self._recovery_started_s is None:
            self._recovery_started_s = now_s
            self._log(f"Auto recovery start timestamp: {int(time.time() * 1000)}")
        else:
            self._log("Auto recovery failed again")
        if self._launch.is_by_hand:
            return self._begin_retry()
        if self._lasting_failures >= LASTING_ATTEMPTS:
            self._log(
                f"No more retries: it would fail the same way again ({self.last_failure}). "
                "Scale the model to try again.",
                logging.ERROR,
            )
            self.advance(WorkerEvent.GIVE_UP)
            self._owner.worker_is_gone(self)
            return False
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
        return self._begin_retry()

    def _begin_retry(self) -> bool:
        if self._stop_requested.is_set() or self.state is WorkerState.STOPPING:
            return False
        self.advance(WorkerEvent.RETRY)
        self.restarts += 1
        return True

    async def _end_session(self) -> None:
        self._due.forget()
        self._forget_ping()
        self._forget_cancels()
        # It has read the end of the stream and may run its exit hooks.
        await self._session.aclose(may_run_exit_hooks=self._stop_requested.is_set())
        self._give_up_work(WorkerDied(), None)

    def _settle(self, outcome: ServingError | None) -> None:
        if not self.first_load.done():
            self.first_load.set_result(outcome)

    # Is it alive?

    def check(self) -> None:
        """Look at the process, and ask an idle one for a sign of life. Called now and then.

        A busy one owes its reply by responseTimeout; a process that somebody has stopped is seen
        here sooner. One in a debugger's hands is not "stopped".
        """
        session = self._session
        if self.state is not WorkerState.READY or session.connection is None:
            return
        if is_stopped(session.pid):
            self._bad_check("the process was stopped (SIGSTOP)")
        elif self._ping_s is None:
            self._bad_checks = 0
            if session.has_controls and not self.is_busy:
                self._send_ping(session.connection)
        elif (waited_s := monotonic() - self._ping_s) >= self.model.config.care.ping_timeout_s:
            self._bad_check(f"no answer to a ping for {waited_s:.3g} s")

    async def is_answering(self, timeout_s: float) -> bool:
        """Whether a ping goes to the process and back now, within `timeout_s`.

        One that is busy cannot be asked: it counts until its reply is overdue. So does one of
        TorchServe's, which knows no pings, as long as its process is not stopped.
        """
        session = self._session
        if self.state is not WorkerState.READY or session.connection is None:
            return False
        if is_stopped(session.pid):
            return False
        if not session.has_controls or (self.is_busy and self._ping_s is None):
            return True
        if self._ping_s is None:
            self._send_ping(session.connection)
        if self._pong is None:
            self._pong = asyncio.get_running_loop().create_future()
        pong = self._pong
        await asyncio.wait({pong}, timeout=timeout_s)
        # It ends with the session, too.
        return pong.done() and self._session is session and self.state is WorkerState.READY

    def _send_ping(self, connection: WorkerConnection) -> None:
        self._ping_s = monotonic()
        connection.send([PING])

    def _forget_ping(self) -> None:
        self._ping_s = None
        pong, self._pong = self._pong, None
        if pong is not None and not pong.done():
            pong.set_result(None)

    def _bad_check(self, reason: str) -> None:
        self._bad_checks += 1
        if self._bad_checks >= BAD_CHECKS:
            self._end_process(FailureKind.UNRESPONSIVE, reason)

    def _heard(self, reply: PredictReply) -> bool:
        """Whether `reply`, which answers no batch, is the answer to our ping."""
        if not is_pong(reply) or self._ping_s is None:
            return False
        self._forget_ping()
        self._bad_checks = 0
        return True

    def _overdue(self) -> None:
        if self._launch.is_by_hand:
            return
        timeout_s = self.model.config.response_timeout_s
        self._log(f"Backend worker did not respond in given time: {timeout_s:g} s", logging.ERROR)
        self._timeouts += 1
        self._log(f"Number or consecutive unsuccessful inference {self._timeouts}")  # TorchServe's
        self._end_process(FailureKind.NO_REPLY, "no reply within responseTimeout")

    def _end_process(self, kind: FailureKind, reason: str) -> None:
        self._session.kill()
        self._session.lose(kind, reason)

    # Who leaves.

    def abandoned(self, job: Job) -> None:
        """A client of what runs left or ran out of time: its answer will be dropped.

        A worker of ours is told, so that it need not finish. One that goes on working for nobody
        is replaced after cancelGraceInSec, where that is set.
        """
        session = self._session
        if session.has_controls and session.connection is not None:
            session.connection.send([encode_cancel(job.request.id)])
        self._begin_grace_if_unwanted()

    def _begin_grace_if_unwanted(self) -> None:
        grace_s = self.model.config.care.cancel_grace_s
        if grace_s and self._cancel_timer is None and self._is_worked_for_nobody():
            self._cancel_timer = asyncio.get_running_loop().call_later(
                grace_s, self._cancel_was_ignored, grace_s
            )

    def _cancel_was_ignored(self, grace_s: float) -> None:
        self._cancel_timer = None
        if self._is_worked_for_nobody():
            reason = f"ran on for {grace_s:g} s after its clients had left (cancelGraceInSec)"
            self._end_process(FailureKind.CANCEL_IGNORED, reason)

    def _forget_cancels(self) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer.cancel()
            self._cancel_timer = None

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


def is_wanted(job: Job) -> bool:
    """Whether its client still waits for (more of) the answer."""
    return job.state < JobState.FINISHED
