"""Load with a ledger: what was sent, and what became of each request.

A `Ledger` gives every request an id; the request carries it, the models of these tests answer with
it, so an answer shows whose it is. `Load` drives a mix of `Ask`s over a bounded number of
connections, at a bounded rate; each connection asks, waits for the answer and asks again, as a
client library does. What may happen to a request is a `Fate`; which fates a test accepts is the
test's business, what no test accepts is noted as a problem: an answer for somebody else, bytes that
nobody asked for, no answer at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

MAX_PROBLEMS = 50
CONNECT_PAUSE_S = 0.02
MAX_HEAD_BYTES = 64 * 1024


class Fate(enum.Enum):
    ANSWERED = "answered"
    CUT = "cut"  # the answer began and broke off
    LOST = "lost"  # the connection ended before a byte of the answer
    SILENT = "silent"  # nothing came while the client was willing to wait
    LEFT = "left"  # the client went away, as it meant to


class Ledger:
    """Every request exactly once, by id."""

    def __init__(self, name: str = "r") -> None:
        self.sent = 0
        self.fates: Counter[Fate] = Counter()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.not_connected = 0
        self.problems: list[str] = []
        self.problem_count = 0
        self.broken: list[str] = []  # the first of those whose connection broke
        self.slowest_s = 0.0
        self._open: dict[str, tuple[str, float]] = {}
        self._name = name
        self._numbers = itertools.count()

    def open(self, kind: str) -> str:
        """The id of a request that is about to be sent."""
        mark = f"{self._name}-{next(self._numbers):08d}"
        self.sent += 1
        self._open[mark] = (kind, time.monotonic())
        return mark

    def close(self, mark: str, fate: Fate, status: int = 0, detail: str = "") -> None:
        entry = self._open.pop(mark, None)
        if entry is None:
            self.accuse(f"{mark} ended twice, the second time {fate.value} {status}")
            return
        kind, began_s = entry
        self.fates[fate] += 1
        if fate is Fate.ANSWERED:
            self.statuses[kind, status] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        elif fate is Fate.SILENT:
            self.accuse(f"{mark} ({kind}) has got no answer")
        elif fate is not Fate.LEFT and len(self.broken) < MAX_PROBLEMS:
            self.broken.append(f"{mark} ({kind}) {fate.value} after {detail}")

    def accuse(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def count(self, status: int) -> int:
        return sum(number for (_, seen), number in self.statuses.items() if seen == status)

    def imbalance(self, *accepted: Fate) -> list[str]:
        """What is wrong with the books; empty if every request was answered or met a fate of
        `accepted`.
        """
        wrong = list(self.problems)
        if self._open:
            wrong.append(f"{len(self._open)} without an end, e.g. {next(iter(self._open))}")
        ended = sum(self.fates.values())
        if ended + len(self._open) != self.sent:
            wrong.append(f"{self.sent} sent, {ended} ended, {len(self._open)} open")
        for fate, number in self.fates.items():
            if fate is not Fate.ANSWERED and fate not in accepted:
                wrong.append(f"{number} {fate.value}, e.g. {self.broken[:3]}")
        return wrong

    def __str__(self) -> str:
        fates = ", ".join(f"{number} {fate.value}" for fate, number in self.fates.items())
        statuses = Counter[int]()
        for (_, status), number in self.statuses.items():
            statuses[status] += number
        return f"{self.sent} sent; {fates}; statuses {dict(sorted(statuses.items()))}"


class Answer:
    """One answer, as far as it came. is_whole: up to its end."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.ended_by: BaseException | None = None  # what kept it from being whole
        self.has_begun = False
        self.is_whole = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def closes(self) -> bool:
        return self.headers.get(b"connection", b"").lower() == b"close"


class Connection:
    """A client's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answers = 0  # read so far

    @classmethod
    async def open(cls, address: str) -> Connection:
        """address: http://host:port. Raises OSError."""
        place = urlsplit(address)
        return cls(*await asyncio.open_connection(place.hostname, place.port, limit=2**20))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, chunks_wanted: int | None = None) -> Answer:
        """The next answer, as far as it comes: a connection that ends, ends the answer.

        chunks_wanted: stop reading after so many chunks of a stream.
        """
        answer = Answer()
        try:
            while answer.status in (0, 100):
                await self._read_head(answer)
            if answer.headers.get(b"transfer-encoding") == b"chunked":
                await self._read_chunks(answer, chunks_wanted)
            else:
                size = int(answer.headers.get(b"content-length", b"0"))
                answer.chunks.append(await self.reader.readexactly(size))
                answer.is_whole = True
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            answer.ended_by = error
        self.answers += 1
        return answer

    async def _read_head(self, answer: Answer) -> None:
        first = await self.reader.readexactly(1)
        answer.has_begun = True
        head = first + await self.reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        answer.status = int(lines[0].split(b" ")[1])
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            answer.headers[name.lower()] = value.strip()

    async def _read_chunks(self, answer: Answer, chunks_wanted: int | None) -> None:
        while chunks_wanted is None or len(answer.chunks) < chunks_wanted:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            piece = await self.reader.readexactly(size + 2)
            if not size:
                answer.is_whole = True
                return
            answer.chunks.append(piece[:-2])

    def reset(self) -> None:
        """Go away so that the server's system hears of it at once (RST instead of FIN)."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


Body = Callable[[str], bytes]
Check = Callable[[str, Answer], bool]


def mark_alone(mark: str) -> bytes:
    return mark.encode()


def is_echo(mark: str, answer: Answer) -> bool:
    return answer.body.rstrip() == mark.encode()


@dataclass(frozen=True)
class Ask:
    """One kind of request.

    body:    of the mark of a request.
    is_own:  whether a 200 is the right answer for that mark.
    leaves:  what the client does instead of waiting: "" waits; "sending" resets in the middle of
             the body, "waiting" after the request, "reading" after the first chunk of the answer.
    """

    kind: str
    model: str
    body: Body = mark_alone
    is_own: Check = is_echo
    content_type: str = ""
    is_chunked: bool = False
    closes: bool = False
    leaves: str = ""
    weight: int = 10

    def request(self, mark: str) -> bytes:
        body = self.body(mark)
        lines = [f"POST /predictions/{self.model} HTTP/1.1", "Host: load"]
        if self.content_type:
            lines.append(f"Content-Type: {self.content_type}")
        if self.closes:
            lines.append("Connection: close")
        if self.is_chunked:
            lines.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            body += b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def padded(size: int) -> Body:
    return lambda mark: mark.encode().ljust(size)


def as_json(mark: str) -> bytes:
    return json.dumps({"id": mark}).encode()


BOUNDARY = "boundary-of-the-load"


def as_form(mark: str) -> bytes:
    field_head = 'Content-Disposition: form-data; name="data"; filename="mark"'
    return f"--{BOUNDARY}\r\n{field_head}\r\n\r\n{mark}\r\n--{BOUNDARY}--\r\n".encode()


def stream_of(count: int, size: int = 1) -> Body:
    return lambda mark: f"{mark}\n{count} {size}".encode()


def is_marked_stream(mark: str, answer: Answer) -> bool:
    """For models of the kind of `marked_stream`: every chunk is ours, the last one is there."""
    *pieces, last = [piece.rstrip() for piece in answer.chunks]
    own = f"{mark};".encode()
    return last == f"{mark}.".encode() and all(piece == own for piece in pieces)


def echo_asks(model: str) -> list[Ask]:
    """Every way to say the same to a model that answers the id (test/models/ids.py)."""
    form = f"multipart/form-data; boundary={BOUNDARY}"
    return [
        Ask("raw", model),
        Ask("json", model, as_json, content_type="application/json"),
        Ask("form", model, as_form, content_type=form),
        Ask("chunked", model, is_chunked=True),
        Ask("large", model, padded(200_000), weight=2),
        Ask("closing", model, closes=True, weight=3),
    ]


@dataclass
class Load:
    """Asks on `lanes` connections until told to stop.

    rate_per_s: of all lanes together; 0 for as fast as answers come.
    patience_s: how long a client waits for an answer.
    """

    address: str
    asks: Sequence[Ask]
    ledger: Ledger
    lanes: int = 8
    rate_per_s: float = 0.0
    patience_s: float = 30.0
    expected: frozenset[int] = frozenset({200})
    seed: int = 0
    _is_stopping: bool = field(default=False, init=False)
    _next_s: float = field(default=0.0, init=False)

    def stop(self) -> None:
        """Let every lane finish what it has asked."""
        self._is_stopping = True

    async def run(self) -> None:
        """Until `stop`."""
        self._next_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for lane in range(self.lanes):
                group.create_task(self._run_lane(random.Random(self.seed * 1000 + lane)))

    @contextlib.asynccontextmanager
    async def running(self):
        """Under load for as long as the block lasts; it ends when all is answered."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run())
            try:
                yield self
            finally:
                self.stop()

    async def _run_lane(self, chance: random.Random) -> None:
        weights = [ask.weight for ask in self.asks]
        connection: Connection | None = None
        while not self._is_stopping:
            await self._wait_turn()
            if connection is None:
                try:
                    connection = await Connection.open(self.address)
                except OSError:
                    self.ledger.not_connected += 1
                    await asyncio.sleep(CONNECT_PAUSE_S)
                    continue
            (ask,) = chance.choices(self.asks, weights)
            if not await self.ask(connection, ask):
                await connection.close()
                connection = None
        if connection is not None:
            await connection.close()

    async def _wait_turn(self) -> None:
        if not self.rate_per_s:
            return
        self._next_s = max(self._next_s + 1 / self.rate_per_s, time.monotonic() - 1)
        await asyncio.sleep(max(0.0, self._next_s - time.monotonic()))

    async def ask(self, connection: Connection, ask: Ask) -> bool:
        """One request from its id to its fate; False if the connection is used up."""
        mark = self.ledger.open(ask.kind)
        try:
            async with asyncio.timeout(self.patience_s):
                if ask.leaves:
                    await self._leave(connection, ask, mark)
                    return False
                with contextlib.suppress(ConnectionError):  # there may be an answer all the same
                    await connection.send(ask.request(mark))
                answer = await connection.answer()
        except TimeoutError:
            self.ledger.close(mark, Fate.SILENT)
            connection.reset()
            return False
        except BaseException:
            self.ledger.close(mark, Fate.LEFT)
            connection.reset()
            raise
        if answer.is_whole:
            return self._judge(ask, mark, answer)
        fate = Fate.CUT if answer.has_begun else Fate.LOST
        detail = f"{connection.answers - 1} answers of the connection: {answer.ended_by!r}"
        self.ledger.close(mark, fate, detail=detail)
        return False

    def _judge(self, ask: Ask, mark: str, answer: Answer) -> bool:
        self.ledger.close(mark, Fate.ANSWERED, answer.status)
        if answer.status not in self.expected:
            text = answer.body[:200].decode(errors="replace")
            self.ledger.accuse(f"{mark} ({ask.kind}): {answer.status} {text}")
        elif answer.status == 200 and not ask.is_own(mark, answer):
            self.ledger.accuse(f"{mark} ({ask.kind}) got {answer.body[:100]!r}")
        return not answer.closes

    async def _leave(self, connection: Connection, ask: Ask, mark: str) -> None:
        request = ask.request(mark)
        with contextlib.suppress(ConnectionError):
            if ask.leaves == "sending":
                await connection.send(request[: -max(1, len(request) // 4)])
            else:
                await connection.send(request)
                if ask.leaves == "reading":
                    await connection.answer(chunks_wanted=1)
        self.ledger.close(mark, Fate.LEFT)
        connection.reset()
