"""An HTTP load client on asyncio: for streams, of which it times the first chunk, and for machines
without wrk.

As a program it reads a Job as JSON from stdin. Slower than wrk, so servers faster than a few
thousand requests per second show less than they can; it knows more about each answer, though, and
compares it with the right one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.outcome import Outcome, latencies
from benchmarks.spread import percentile

_HEAD_END = b"\r\n\r\n"


class BadAnswer(Exception):
    pass


@dataclass(frozen=True)
class Job:
    """body_file: of the request; answer_file: of the right answer's body, "" if not compared."""

    host: str
    port: int
    method: str
    path: str
    headers: dict[str, str]
    body_file: str
    answer_file: str
    connections: int
    seconds: float

    def request(self) -> bytes:
        body = Path(self.body_file).read_bytes()
        headers = {
            "Host": f"{self.host}:{self.port}",
            **self.headers,
            "Content-Length": str(len(body)),
        }
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
        return "\r\n".join(lines).encode() + _HEAD_END + body


class AnswerReader:
    """One HTTP answer after another, out of any pieces. `feed` is true when one is complete."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._buffer = bytearray()
        self.status = 0
        self.body = bytearray()
        self.chunks = 0
        self.is_closing = False
        self._left: int | None = None  # bytes of the body to come; None before the head is read
        self._is_chunked = False

    def begin_next(self) -> None:
        self._begin()

    def feed(self, data: bytes) -> bool:
        """Raises BadAnswer."""
        self._buffer += data
        if self._left is None and not self._read_head():
            return False
        return self._read_chunks() if self._is_chunked else self._read_plain()

    def _read_head(self) -> bool:
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return False
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + len(_HEAD_END)]
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise BadAnswer(f"not an HTTP answer: {first[:60]!r}")
        self.status = int(words[1])
        headers = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        self._is_chunked = headers.get(b"transfer-encoding") == b"chunked"
        self.is_closing = headers.get(b"connection") == b"close"
        self._left = int(headers.get(b"content-length", b"0"))
        return True

    def _read_plain(self) -> bool:
        if self._left is None or len(self._buffer) < self._left:
            return False
        self.body = self._buffer
        self.chunks = 1
        return True

    def _read_chunks(self) -> bool:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            try:
                size = int(self._buffer[:end].split(b";")[0], 16)
            except ValueError:
                raise BadAnswer(f"not a chunk: {bytes(self._buffer[:20])!r}") from None
            if len(self._buffer) < end + 2 + size + 2:
                return False
            if size == 0:
                return True
            self.body += self._buffer[end + 2 : end + 2 + size]
            self.chunks += 1
            del self._buffer[: end + 2 + size + 2]
        return False


class Load:
    """`run` keeps every connection busy until the time is over, then waits for what is out."""

    PATIENCE_S = 30.0

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request = job.request()
        self.answer = Path(job.answer_file).read_bytes() if job.answer_file else None
        self.errors: Counter[str] = Counter()
        self.total_ms: list[float] = []
        self.first_chunk_ms: list[float] = []
        self.chunks = 0
        self.deadline = 0.0

    async def run(self) -> Outcome:
        began = time.perf_counter()
        self.deadline = began + self.job.seconds
        tasks = [asyncio.create_task(self._keep_asking()) for _ in range(self.job.connections)]
        _, late = await asyncio.wait(tasks, timeout=self.job.seconds + self.PATIENCE_S)
        elapsed_s = time.perf_counter() - began
        for task in late:
            task.cancel()
            self.errors["timeout"] += 1
        await asyncio.gather(*tasks, return_exceptions=True)
        requests = len(self.total_ms)
        self.first_chunk_ms.sort()
        return Outcome(
            "asyncio",
            requests,
            elapsed_s,
            dict(self.errors),
            first_chunk_p50_ms=percentile(self.first_chunk_ms, 0.5),
            first_chunk_p99_ms=percentile(self.first_chunk_ms, 0.99),
            chunks=self.chunks,
            **latencies(self.total_ms),
        )

    async def _keep_asking(self) -> None:
        loop = asyncio.get_running_loop()
        while time.perf_counter() < self.deadline:
            ended: asyncio.Future[None] = loop.create_future()
            try:
                transport, _ = await loop.create_connection(
                    lambda ended=ended: Connection(self, ended),  # type: ignore[misc]
                    self.job.host,
                    self.job.port,
                )
            except OSError:
                self.errors["connect"] += 1
                await asyncio.sleep(0.05)  # else a dead server would be asked in a tight loop
                continue
            try:
                await ended
            finally:
                transport.abort()

    def note(self, reader: AnswerReader, sent: float, first: float) -> None:
        if not 200 <= reader.status < 300:
            self.errors["status"] += 1
        elif self.answer is not None and reader.body != self.answer:
            self.errors["body"] += 1
        else:
            self.total_ms.append((time.perf_counter() - sent) * 1000)
            self.first_chunk_ms.append((first - sent) * 1000)
            self.chunks += reader.chunks


class Connection(asyncio.Protocol):
    """Asks again as soon as it was answered. ended: done when this connection asks no more."""

    def __init__(self, load: Load, ended: asyncio.Future[None]) -> None:
        self._load = load
        self._ended = ended
        self._reader = AnswerReader()
        self._sent = 0.0
        self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._ask()

    def data_received(self, data: bytes) -> None:
        try:
            is_complete = self._reader.feed(data)
        except BadAnswer:
            self._load.errors["read"] += 1
            self._end()
            return
        if not self._first and (is_complete or self._reader.chunks):
            self._first = time.perf_counter()
        if not is_complete:
            return
        self._load.note(self._reader, self._sent, self._first)
        if self._reader.is_closing or time.perf_counter() >= self._load.deadline:
            self._end()
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._load.errors["read"] += 1
            self._end()

    def _ask(self) -> None:
        self._reader.begin_next()
        self._first = 0.0
        self._sent = time.perf_counter()
        self._transport.write(self._load.request)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        print(runner.run(Load(Job(**json.load(sys.stdin))).run()).line())
