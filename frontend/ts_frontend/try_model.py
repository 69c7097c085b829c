"""`torchserve --try`: one model, one batch, no server.

The archive is opened and its worker started by the server's own control plane, and the inputs go
through its data plane, so a handler meets here what it will meet later. What is missing is the
doors: no port is opened. All that is written lies in one temporary folder, which is removed.

The answers go to standard output; everything else, the worker's output included, to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import mimetypes
import os
import re
import signal
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from ts_frontend.archive.manifest import MANIFEST_PATH
from ts_frontend.archive.model_store import ModelStore, default_name
from ts_frontend.archive.unpack import ArchiveLimits
from ts_frontend.control_plane import ControlPlane, Defaults, Registration
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ModelError, ServingError, WorkerStartFailed
from ts_frontend.core.inference import (
    EXPLAIN_HEADER,
    PREDICT_HEADER,
    Header,
    InferenceRequest,
    Part,
    ResponseChunk,
)
from ts_frontend.core.model import Model
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.core.sequence_queue import SequenceHeaders
from ts_frontend.data_plane import DataPlane
from ts_frontend.settings import ConfigurationError, Settings, load_settings
from ts_frontend.workers.connections import load_connection
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import PortAllocator, WorkerLaunch
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.process import STARTED_LINE
from ts_frontend.workers.sequence_pool import SequencePool
from ts_frontend.workers.worker import Worker

OK = 0
NOT_LOADED = 1
USAGE = 2  # argparse's own
NOT_ANSWERED = 3

# How long the inputs of one batch may wait for each other; they are there at once.
GATHER_MS = 1000
# What a failing handler has printed comes through a pipe, its answer through a socket.
LAST_LINES_S = 0.05
_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+), in (\S+)')


class CannotTry(Exception):
    """Wrong usage; `str(error)` says what would be right."""


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    name: str
    content_type: str
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What one input of the batch got. error: in place of an answer, "" if there was one.

    first_s, last_s: from the sending of the batch, in seconds.
    """

    status: int
    content_type: str
    headers: Sequence[Header]
    body: bytes
    pieces: int
    first_s: float
    last_s: float
    error: str = ""


class Terminal:
    """What the person sees: answers on `out`, everything else on `notes`."""

    def __init__(self, out: BinaryIO, notes: TextIO) -> None:
        self.out = out
        self._notes = notes

    def say(self, text: str) -> None:
        print(text, file=self._notes, flush=True)

    def show(self, data: bytes) -> None:
        self.out.write(data)
        self.out.flush()


class WorkerOutput(logging.Handler):
    """The worker's lines as they come, and what can be learned from them.

    started_s: when the worker said that it listens, 0 before.
    is_quiet:  show warnings only.
    """

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._folders: tuple[str, ...] = ()
        self.started_s = 0.0
        self.is_quiet = False
        self._own_frame = ""  # the last one of the archive's own code in a traceback
        self._exception = ""
        self._is_in_traceback = False
        self._is_own = False  # that traceback has passed through the archive's code

    def follow(self, model: Model) -> None:
        """Show the archive's files by the names they have in it."""
        paths = {model.path, os.path.realpath(model.path)}
        self._folders = tuple(sorted((path + os.sep for path in paths), key=len, reverse=True))

    def forget_failure(self) -> None:
        self._own_frame = self._exception = ""

    def failure(self) -> str:
        """What the last traceback said, and where in the archive; "" if there was none."""
        where = f"\n    {self._own_frame}" if self._own_frame else ""
        return f"\n    {self._exception}{where}" if self._exception else where

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if STARTED_LINE.match(line) and not self.started_s:
            self.started_s = monotonic()
        for folder in self._folders:
            if folder in line:
                line = line.replace(folder, "")
                if frame := _FRAME.match(line):
                    self._own_frame = f"{frame[1]}, line {frame[2]}, in {frame[3]}"
                    self._is_own = True
        if line.startswith("Traceback "):
            self._is_in_traceback = True
            self._is_own = False
        elif self._is_in_traceback and not line.startswith(" "):
            self._is_in_traceback = False
            if self._is_own or not self._exception:  # not what the loader made of it
                self._exception = line
        if not self.is_quiet or record.levelno >= logging.WARNING:
            self._terminal.say(f"| {line}")


class OneWorkerPool(WorkerPool):
    """One worker is enough to try a model, however many its configuration asks for."""

    def scale(self, min_workers: int, max_workers: int, grace_s: float) -> list[Worker]:
        return super().scale(min(1, min_workers), min(1, max_workers), grace_s)


class OneWorkerSequencePool(OneWorkerPool, SequencePool):
    """The same for a model with sequences."""


class TryMeters:
    """The worker's metrics are lines like any other here."""

    def loaded(self, worker_name: str, load_ms: float) -> None: ...

    def batch(self, queue_ms: float, worker_thread_ms: float) -> None: ...

    def died(self, model: Model, cause: str) -> None: ...

    def rerun(self, model: Model, reason: str, requests: int) -> None: ...

    def quarantined(self, model: Model) -> None: ...

    def worker_line(self, line: str) -> bool:
        return False


async def try_model(
    options: argparse.Namespace, settings: Settings, inputs: Sequence[Input], terminal: Terminal
) -> int:
    """Load the archive, send the inputs as one batch, show the answers; the exit status."""
    output = WorkerOutput(terminal)
    logger = logging.getLogger("MODEL_LOG")
    was_propagating = logger.propagate
    logger.addHandler(output)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # It repeats a dead worker's last lines, which have been shown.
    logging.getLogger("ts_frontend.workers.worker").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ts-try-") as folder:
        store, location = _open_store(options.model, settings, folder)
        registry = ModelRegistry()
        control = ControlPlane(
            store,
            registry,
            lambda model: _new_pool(model, settings, folder),
            Defaults(
                workers=1,
                response_timeout_s=settings.default_response_timeout,
                startup_timeout_s=settings.default_startup_timeout,
                job_queue_size=max(settings.job_queue_size, len(inputs)),
                service_handler=settings.default_service_handler or "",
                service_envelope=settings.service_envelope or "",
                gpu_count=settings.number_of_gpu,
                models=settings.models,
                sequence_headers=SequenceHeaders(
                    settings.ts_header_key_sequence_id.encode(),
                    settings.ts_header_key_sequence_start.encode(),
                    settings.ts_header_key_sequence_end.encode(),
                ),
            ),
            output.follow,
        )
        try:
            return await _load_and_send(
                control, registry, output, terminal, location, inputs, options
            )
        finally:
            await control.close(grace_s=0)  # what still runs, nobody waits for
            logger.removeHandler(output)
            logger.propagate = was_propagating


async def _load_and_send(
    control: ControlPlane,
    registry: ModelRegistry,
    output: WorkerOutput,
    terminal: Terminal,
    location: str,
    inputs: Sequence[Input],
    options: argparse.Namespace,
) -> int:
    began_s = monotonic()
    wanted = Registration(
        url=location,
        model_name=None if _has_manifest(location) else default_name(location),
        handler=options.handler,
        batch_size=len(inputs) or None,
        max_batch_delay_ms=GATHER_MS,
        initial_workers=1,
    )
    try:
        scaled = await control.register(wanted)
    except WorkerStartFailed as error:
        terminal.say(f"The model was not loaded: {error.cause}{output.failure()}")
        return NOT_LOADED
    except ServingError as error:
        terminal.say(f"The archive was refused: {error}")
        return NOT_LOADED
    loaded_s = monotonic()
    model = scaled.model
    started_s = output.started_s or loaded_s
    terminal.say(
        f"{model.id.name} {model.id.version}: process started in {_ms(started_s - began_s)}, "
        f"model loaded in {_ms(loaded_s - started_s)}"
    )
    if not inputs:
        return OK
    data = DataPlane(registry)
    output.forget_failure()  # one that the model survived while it was loaded
    headers = _request_headers(options)
    answers = await _send(data, model, inputs, headers, terminal)
    is_answered = _show(answers, inputs, output, terminal, options.output)
    if is_answered and options.repeat:
        output.is_quiet = True
        is_answered = await _repeat(data, model, inputs, headers, terminal, options.repeat)
    return OK if is_answered else NOT_ANSWERED


def _has_manifest(location: str) -> bool:
    """False for a directory that was never packed: it needs a name, and `--handler`."""
    return not os.path.isdir(location) or os.path.exists(os.path.join(location, MANIFEST_PATH))


# --- the batch ------------------------------------------------------------------------------------


async def _send(
    data: DataPlane,
    model: Model,
    inputs: Sequence[Input],
    headers: Sequence[Header],
    terminal: Terminal | None,
) -> list[Answer]:
    """Send all inputs as one batch. terminal: where pieces of a stream show up as they come."""
    sent_s = monotonic()
    is_single = len(inputs) == 1

    async def send(number: int, each: Input) -> Answer:
        request = to_request(f"try-{number}", each, headers)
        chunks: list[ResponseChunk] = []
        first_s = 0.0
        error = ""
        status = 0
        try:
            async for chunk in data.predict(model.id.name, model.id.version, request):
                first_s = first_s or monotonic() - sent_s
                if terminal is not None and is_single and (chunks or not chunk.is_last):
                    terminal.show(bytes(chunk.body))
                chunks.append(chunk)
        except ServingError as failure:
            error = str(failure)
            status = failure.code if isinstance(failure, ModelError) else 500
        first = chunks[0] if chunks else ResponseChunk(status, b"", b"", (), b"", True)
        return Answer(
            status=status or first.status,
            content_type=first.content_type.decode("latin-1"),
            headers=first.headers,
            body=b"".join(bytes(chunk.body) for chunk in chunks),
            pieces=len(chunks),
            first_s=first_s,
            last_s=monotonic() - sent_s,
            error=error,
        )

    # All of them are waiting before the first can be sent: one batch.
    answers = await asyncio.gather(*(send(number, each) for number, each in enumerate(inputs)))
    if any(answer.error for answer in answers):
        await asyncio.sleep(LAST_LINES_S)
    return list(answers)


def to_request(name: str, given: Input, headers: Sequence[Header]) -> InferenceRequest:
    """The request that an HTTP client's would become: the input as its body."""
    own = [*headers]
    if given.content_type:
        own.append((b"content-type", given.content_type.encode()))
    media_type = given.content_type.partition(";")[0].strip().lower()
    return InferenceRequest(name.encode(), own, [Part(b"body", media_type.encode(), given.body)])


async def _repeat(
    data: DataPlane,
    model: Model,
    inputs: Sequence[Input],
    headers: Sequence[Header],
    terminal: Terminal,
    count: int,
) -> bool:
    """Send the batch `count` times more, one after the other; how long that took."""
    taken_s = []
    for _ in range(count):
        began_s = monotonic()
        answers = await _send(data, model, inputs, headers, None)
        taken_s.append(monotonic() - began_s)
        if any(answer.error or answer.status >= 400 for answer in answers):
            terminal.say(f"Repetition {len(taken_s)} was not answered.")
            return False
    taken_s.sort()
    parts = [
        f"{word} {_ms(taken_s[min(count - 1, int(share * count))])}"
        for word, share in (("fastest", 0), ("median", 0.5), ("95 %", 0.95), ("slowest", 1))
    ]
    rate = count * len(inputs) / sum(taken_s)
    terminal.say(f"{count} more: {', '.join(parts)}; {rate:.1f} inputs/s one batch after the other")
    return True


def _show(
    answers: Sequence[Answer],
    inputs: Sequence[Input],
    output: WorkerOutput,
    terminal: Terminal,
    path: str | None,
) -> bool:
    """Every answer, in the order of the inputs; False if one of them is an error."""
    is_answered = True
    for number, (answer, each) in enumerate(zip(answers, inputs, strict=True)):
        if answer.error:
            is_answered = False
            failure = output.failure()
            terminal.say(f"{each.name}: status {answer.status}, {answer.error}{failure}")
            continue
        is_answered = is_answered and answer.status < 400
        was_shown = answer.pieces > 1 and len(inputs) == 1
        if was_shown and not answer.body.endswith(b"\n"):
            terminal.show(b"\n")
        facts = [f"status {answer.status}", answer.content_type or "no content type"]
        facts.append(f"{len(answer.body):,} bytes")
        if answer.pieces > 1:
            facts.append(f"{answer.pieces} pieces, the first after {_ms(answer.first_s)}")
        terminal.say(f"{each.name}: {', '.join(facts)}, {_ms(answer.last_s)}")
        for name, value in answer.headers:
            if name.lower() != b"content-type":
                terminal.say(f"    {name.decode('latin-1')}: {value.decode('latin-1')}")
        if path is not None:
            target = _numbered(path, number)
            with open(target, "wb") as file:
                file.write(answer.body)
            terminal.say(f"    written to {target}")
        elif not was_shown:
            shown = printable(answer.body)
            if shown is None:
                terminal.say("    binary; --output FILE keeps it")
            else:
                terminal.show(shown)
    return is_answered


def printable(body: bytes) -> bytes | None:
    """JSON indented, other text as it is, both with a line's end; None for what is no text."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    if any(character < " " and character not in "\t\n\r\f\x1b" for character in text):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text.encode() if text.endswith("\n") or not text else f"{text}\n".encode()


def _numbered(path: str, number: int) -> str:
    root, suffix = os.path.splitext(path)
    return f"{root}-{number + 1}{suffix}" if number else path


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


# --- what it is made of ---------------------------------------------------------------------------


def _open_store(model: str, settings: Settings, folder: str) -> tuple[ModelStore, str]:
    """The store and the location in it: a path, or else a name in the configured model store."""
    path = os.path.abspath(model)
    if not os.path.exists(path) and settings.model_store:
        path = os.path.join(settings.model_store, model)
    if not os.path.exists(path):
        raise CannotTry(f"There is no archive {model}.")
    limits = ArchiveLimits(
        max_entries=settings.max_archive_entries,
        max_bytes=settings.max_archive_size,
        max_ratio=settings.max_archive_ratio,
    )
    store = ModelStore(os.path.dirname(path), folder, limits=limits)
    return store, path if os.path.isdir(path) else os.path.basename(path)


def _new_pool(model: Model, settings: Settings, folder: str) -> WorkerPool:
    launch = WorkerLaunch(
        home=settings.model_server_home,
        python=settings.python,
        environment=settings.worker_environment,
        socket_dir=folder,
        metrics_config=settings.metrics_config,
        log_location=folder,
        max_field_bytes=settings.max_response_size,
        limit_max_image_pixels=settings.limit_max_image_pixels,
        variables={
            "TS_DECODE_INPUT_REQUEST": "true" if settings.decode_input_request else "false",
            "PYTHONDONTWRITEBYTECODE": "1",  # a directory model stays as it is
        },
    )
    # What fails shall be seen as it failed, once: nothing is run again.
    care = dataclasses.replace(model.config.care, is_idempotent=False)
    model.config = dataclasses.replace(model.config, care=care)
    kind = OneWorkerSequencePool if model.config.sequence_batching else OneWorkerPool
    return kind(
        model,
        launch,
        load_connection("unix"),
        PortAllocator(settings.initial_worker_port, is_tcp=False),
        PortAllocator(settings.initial_distribution_port, is_tcp=False),
        DeviceAllocator(settings.number_of_gpu),
        TryMeters(),
    )


def read_inputs(paths: Sequence[str], content_type: str | None) -> list[Input]:
    """The files' contents; "-" is standard input. A file's name decides its type if none is given.

    Raises CannotTry for a file that cannot be read.
    """
    inputs = []
    for path in paths:
        try:
            if path == "-":
                body = sys.stdin.buffer.read()
            else:
                with open(path, "rb") as file:
                    body = file.read()
        except OSError as error:
            raise CannotTry(f"--input {path}: {error.strerror}") from error
        guessed = mimetypes.guess_type(path)[0] or "" if content_type is None else content_type
        inputs.append(Input("standard input" if path == "-" else path, guessed, body))
    return inputs


def read_headers(texts: Sequence[str]) -> list[Header]:
    """`Name: value` texts as request headers. Raises CannotTry."""
    headers = []
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise CannotTry(f"--header {text}: a header is written as NAME:VALUE")
        headers.append((name.strip().encode(), value.strip().encode()))
    return headers


def _request_headers(options: argparse.Namespace) -> list[Header]:
    own = EXPLAIN_HEADER if options.explain else PREDICT_HEADER
    return [*read_headers(options.header), own, (b"url_path", b"")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchserve",
        allow_abbrev=False,
        description="Load a model in a worker process of its own, send it the inputs as one batch "
        "and show the answers. No server is started and nothing is left on the disk. The answers "
        "go to standard output, all the rest (the worker's output, too) to standard error.",
        epilog="Exit status: 0 answered, 1 the archive was refused or the model not loaded, "
        "2 wrong usage, 3 an input was answered with an error.",
    )
    parser.add_argument(
        "--try",
        dest="model",
        required=True,
        metavar="MODEL",
        help="an archive or a directory, or the name of one in --model-store",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILE",
        help="the body of a request, - for standard input; several make one batch of that size",
    )
    parser.add_argument(
        "--content-type",
        metavar="TYPE",
        help="of all inputs; if not given, by each file's name; '' for none",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a request header for the handler",
    )
    parser.add_argument("--explain", action="store_true", help="ask for an explanation")
    parser.add_argument(
        "--handler", metavar="HANDLER", help="in place of the one that the archive names"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the answer there as it is; of several, the second goes to FILE with -2 before "
        "the suffix, and so on",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=0,
        metavar="N",
        help="send the batch N times more and say how long that took",
    )
    parser.add_argument("--ts-config", metavar="FILE", help="the server's configuration file")
    parser.add_argument("--model-store", metavar="DIR", help="folder with the model archives")
    return parser


def _settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    given = (("--ts-config", options.ts_config), ("--model-store", options.model_store))
    argv = [f"{flag}={value}" for flag, value in given if value]
    return load_settings([*argv, "--no-config-snapshots"], environ, os.getcwd())


async def _until_a_signal(trial: Coroutine[Any, Any, int]) -> int:
    """Ended by SIGTERM it cleans up all the same; of SIGINT asyncio makes a cancel by itself."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await trial


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    terminal = Terminal(sys.stdout.buffer, sys.stderr)
    try:
        settings = _settings(options, os.environ)
        if options.repeat < 0 or (options.repeat and not options.input):
            raise CannotTry("--repeat takes a count of repetitions, and needs an --input")
        inputs = read_inputs(options.input, options.content_type)
        read_headers(options.header)
        return asyncio.run(_until_a_signal(try_model(options, settings, inputs, terminal)))
    except (CannotTry, ConfigurationError) as error:
        terminal.say(f"torchserve --try: {error}")
        return USAGE
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
