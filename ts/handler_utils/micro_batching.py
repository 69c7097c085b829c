"""Run a batch as a pipeline of micro batches.

A handler assigns `self.handle = MicroBatching(self)`. Each batch is then cut into micro batches
that travel through three stages (preprocess, inference, postprocess). Every stage has threads of
its own, so that one micro batch is preprocessed while another is on the accelerator.

    caller -> queue -> preprocess threads -> queue -> inference threads -> queue -> postprocess
    threads -> the batch's own queue -> caller

An exception in a stage travels on with its micro batch and is raised in the caller; the threads
stay.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HANDLER_METHODS = ["preprocess", "inference", "postprocess"]


@dataclass
class WorkerThread:
    """A thread of a stage and the event that asks it to end."""

    event: threading.Event
    thread: threading.Thread


@dataclass
class _MicroBatch:
    index: int  # position in the batch
    payload: Any
    finished: queue.SimpleQueue[_MicroBatch]  # where the caller waits
    error: BaseException | None = None


class _StageQueue(queue.Queue):
    """A queue whose readers can be told to stop waiting."""

    def get_unless(self, stop: threading.Event) -> Any:
        """The next item, or None once `stop` is set and `wake_readers` was called."""
        with self.not_empty:
            while not self._qsize() and not stop.is_set():
                self.not_empty.wait()
            return None if stop.is_set() else self._get()

    def wake_readers(self) -> None:
        """Make the waiting readers look at their events."""
        with self.not_empty:
            self.not_empty.notify_all()


def execute_call(
    in_queue: _StageQueue,
    out_queue: _StageQueue | None,
    handle: Callable[[Any], Any],
    thread_local_data: threading.local,
    event: threading.Event,
) -> None:
    """Run one stage until `event` is set: take a micro batch, call `handle`, pass it on.

    out_queue: None for the last stage, which gives the micro batch back to its caller.
    """
    while True:
        micro_batch = in_queue.get_unless(event)
        if micro_batch is None:
            return
        thread_local_data.micro_batch_idx = micro_batch.index
        try:
            micro_batch.payload = handle(micro_batch.payload)
        except BaseException as error:  # the caller re-raises it, whatever it is
            micro_batch.error = error
        if out_queue is None or micro_batch.error is not None:
            micro_batch.finished.put(micro_batch)
        else:
            out_queue.put(micro_batch)


class MicroBatching:
    """A replacement for a handler's `handle` that pipelines micro batches.

    micro_batch_size: rows per micro batch; may be changed between batches.
    parallelism: threads per stage, `{"preprocess": 2}`; a stage that is left out has one.
    """

    def __init__(
        self,
        parent_handler: Any,
        micro_batch_size: int = 1,
        parallelism: dict[str, int] | None = None,
    ) -> None:
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self.thread_groups: dict[str, list[WorkerThread]] = {name: [] for name in HANDLER_METHODS}
        self._queues = [_StageQueue() for _ in HANDLER_METHODS]
        self._thread_local_data = threading.local()
        self._parallelism: dict[str, int] = dict.fromkeys(HANDLER_METHODS, 0)
        self.parallelism = {**dict.fromkeys(HANDLER_METHODS, 1), **(parallelism or {})}

    def __repr__(self) -> str:
        return f"<MicroBatching size={self.micro_batch_size} threads={self._parallelism}>"

    @property
    def parallelism(self) -> dict[str, int]:
        """Threads per stage, a copy. Assigning starts and stops threads; 0 stops a stage."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: dict[str, int]) -> None:
        for stage, count in parallelism.items():
            if stage not in HANDLER_METHODS:
                raise ValueError(f"unknown stage {stage!r}; the stages are {HANDLER_METHODS}")
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{stage} needs a number of threads from 0 up, not {count!r}")
        for stage, count in parallelism.items():
            self._parallelism[stage] = count
            self._resize(stage, count)

    def _resize(self, stage: str, count: int) -> None:
        group = self.thread_groups[stage]
        position = HANDLER_METHODS.index(stage)
        while len(group) < count:
            group.append(self._start_thread(stage, position))
        surplus, group[count:] = group[count:], []
        for worker in surplus:
            worker.event.set()
        self._queues[position].wake_readers()
        for worker in surplus:
            worker.thread.join()

    def _start_thread(self, stage: str, position: int) -> WorkerThread:
        is_last = position + 1 == len(HANDLER_METHODS)
        event = threading.Event()
        thread = threading.Thread(
            target=execute_call,
            args=(
                self._queues[position],
                None if is_last else self._queues[position + 1],
                # Looked up per call: handlers replace their methods after this is built.
                lambda payload: getattr(self.handler, stage)(payload),
                self._thread_local_data,
                event,
            ),
            name=f"micro-batching-{stage}",
            daemon=True,
        )
        thread.start()
        return WorkerThread(event, thread)

    def shutdown(self) -> None:
        """End all threads, after the micro batches they are working on."""
        self.parallelism = dict.fromkeys(HANDLER_METHODS, 0)

    def get_micro_batch_idx(self) -> int:
        """The position in the batch of the micro batch that the calling thread works on."""
        return self._thread_local_data.micro_batch_idx

    def handle(self, data: list[Any]) -> list[Any]:
        """The answers to all rows, in their order.

        Raises what a stage raised for the earliest micro batch that failed, once all have ended.
        """
        idle = [stage for stage, count in self._parallelism.items() if not count]
        if idle:
            raise RuntimeError(f"no threads for {', '.join(idle)}; set `parallelism`")
        size = max(1, self.micro_batch_size)
        finished: queue.SimpleQueue[_MicroBatch] = queue.SimpleQueue()
        starts = range(0, len(data), size)
        for index, start in enumerate(starts):
            self._queues[0].put(_MicroBatch(index, data[start : start + size], finished))
        micro_batches = sorted((finished.get() for _ in starts), key=lambda batch: batch.index)
        for micro_batch in micro_batches:
            if micro_batch.error is not None:
                raise micro_batch.error
        return [answer for micro_batch in micro_batches for answer in micro_batch.payload]

    def __call__(self, data: list[Any], context: Any) -> list[Any]:
        """What `BaseHandler.handle` does, with the batch going through the pipeline."""
        start_s = time.perf_counter()
        handler = self.handler
        handler.context = context
        if os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = handler._infer_with_profiler(data=data)
        elif handler._is_describe():
            output = [handler.describe_handle()]
        elif handler._is_explain():
            output = handler.explain_handle(handler.preprocess(data), data)
        else:
            output = self.handle(data)
        handler_ms = round((time.perf_counter() - start_s) * 1000, 2)
        context.metrics.add_time("HandlerTime", handler_ms, None, "ms")
        return output
