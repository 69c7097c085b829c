"""Where log lines go: TorchServe's files and formats (contract, config section 8).

    access_log.log     ACCESS_LOG            <time> - <message>
    ts_log.log         the server and root   <time> [LEVEL] <thread> <logger> - <message>
    model_log.log      MODEL_LOG             as ts_log
    ts_metrics.log     TS_METRICS            <time> - <line>
    model_metrics.log  MODEL_METRICS         <time> - <line>
    stdout             all of the above      as ts_log

Records are formatted and written by one thread of their own, so that a slow disk or a full pipe
holds up no request. A folder that cannot be written does not stop the server: it says so and goes
on with stdout. Lines that cannot be written later on (a full disk), or that come faster than they
can be written, are lost, and the log says how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import queue
import sys
import time
from collections.abc import Sequence
from typing import TextIO

MAX_FILE_BYTES = 100 * 1024 * 1024  # TorchServe rolls at 100 MB and keeps five
KEPT_FILES = 5
# What may wait to be written; more than that is dropped rather than memory exhausted.
MAX_WAITING_CHARS = 32 * 1024 * 1024
RECORD_CHARS = 1024  # what a record weighs besides its text

SPECIAL_LOGGERS = {
    "ACCESS_LOG": "access_log.log",
    "MODEL_LOG": "model_log.log",
    "TS_METRICS": "ts_metrics.log",
    "MODEL_METRICS": "model_metrics.log",
}
_METRICS = ("TS_METRICS", "MODEL_METRICS")
_LEVEL_NAMES = {"WARNING": "WARN", "CRITICAL": "FATAL"}


class ServerFormatter(logging.Formatter):
    """`2024-05-30T21:46:03,625 [INFO ] thread logger - message`; `thread_name` on a record names
    the worker.
    """

    def __init__(self, with_origin: bool) -> None:
        super().__init__()
        self._with_origin = with_origin

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_text:
            message = f"{message}\n{record.exc_text}"
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        start = f"{seconds},{int(record.msecs):03d}"
        if self._with_origin:
            level = _LEVEL_NAMES.get(record.levelname, record.levelname)
            thread = getattr(record, "thread_name", None) or "main"
            start = f"{start} [{level:<5}] {thread} {record.name}"
        start += " - "
        if getattr(record, "is_many_lines", False):
            message = message.replace("\n", f"\n{start}")
        return start + message


class _OnlyFrom(logging.Filter):
    def __init__(self, *names: str, exclude: bool = False) -> None:
        super().__init__()
        self._names = names
        self._exclude = exclude

    def filter(self, record: logging.LogRecord) -> bool:
        return (record.name in self._names) is not self._exclude


class _Waiting(logging.handlers.QueueHandler):
    """Hands records to the writing thread; formats only what cannot cross (a traceback)."""

    def __init__(self, records: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(records)
        self._put_chars = 0
        self.written_chars = 0  # counted up by the writing thread
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        record.msg, record.args = record.getMessage(), None
        return record

    @property
    def waiting_chars(self) -> int:
        return self._put_chars - self.written_chars

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.waiting_chars > MAX_WAITING_CHARS:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._put(_own_record(f"{dropped} log records came too fast and were dropped."))
        self._put(record)

    def _put(self, record: logging.LogRecord) -> None:
        self._put_chars += weight(record)
        self.queue.put_nowait(record)


class _Writer(logging.handlers.QueueListener):
    """The writing thread; tells the entrance what has left the queue."""

    def __init__(
        self,
        records: queue.SimpleQueue[logging.LogRecord],
        entrance: _Waiting,
        handlers: Sequence[logging.Handler],
    ) -> None:
        super().__init__(records, *handlers)
        self._entrance = entrance

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        finally:
            self._entrance.written_chars += weight(record)


def weight(record: logging.LogRecord) -> int:
    """About how much memory a prepared record takes, in characters."""
    return len(record.msg) + len(record.exc_text or "") + RECORD_CHARS


def _own_record(text: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)


class _Lossy(logging.StreamHandler[TextIO]):
    """Survives a disk that is full: says once that lines are lost, and at the end how many."""

    place = "stdout"
    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._lost
        super().emit(record)
        if lost and lost == self._lost:
            self._lost = 0
            super().emit(_own_record(f"{lost} log records could not be written here."))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._lost += 1
        if self._lost == 1:  # to the other places, which may still work
            logging.getLogger(__name__).error(
                "Cannot write %s: %s; its lines are lost until that is mended.",
                self.place,
                error.strerror,
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the last lines, on a disk that is full
            super().close()


class _LossyFile(_Lossy, logging.handlers.RotatingFileHandler):
    def __init__(self, path: str) -> None:
        logging.handlers.RotatingFileHandler.__init__(
            self, path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8"
        )
        self.place = path


class ServerLogs:
    """Set up once, `close` at the end so that the last lines are written."""

    def __init__(self, log_location: str, metrics_location: str, level: int = logging.INFO) -> None:
        self.directory = log_location
        problems: list[str] = []
        handlers: list[logging.Handler] = [_stdout_handler()]
        server_file = _file_handler(log_location, "ts_log.log", ServerFormatter(True), problems)
        if server_file is not None:
            server_file.addFilter(_OnlyFrom(*SPECIAL_LOGGERS, exclude=True))
            handlers.append(server_file)
        for name, file_name in SPECIAL_LOGGERS.items():
            location = metrics_location if name in _METRICS else log_location
            formatter = ServerFormatter(name == "MODEL_LOG")
            handler = _file_handler(location, file_name, formatter, problems)
            if handler is not None:
                handler.addFilter(_OnlyFrom(name))
                handlers.append(handler)
        records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._entrance = _Waiting(records)
        self._listener = _Writer(records, self._entrance, handlers)
        root = logging.getLogger()
        root.addHandler(self._entrance)
        root.setLevel(level)
        self._listener.start()
        for problem in problems:
            logging.getLogger(__name__).warning("%s", problem)

    @property
    def waiting_chars(self) -> int:
        """The weight of what is not written yet."""
        return self._entrance.waiting_chars

    def close(self) -> None:
        logging.getLogger().removeHandler(self._entrance)
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()


def write_lines(logger_name: str, lines: Sequence[str]) -> None:
    """Log finished lines as one record: its cost is shared, yet each line gets its own stamp."""
    logger = logging.getLogger(logger_name)
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, "\n".join(lines), (), None)
    record.is_many_lines = True
    logger.handle(record)


def write_access_lines(lines: Sequence[str]) -> None:
    write_lines("ACCESS_LOG", lines)


class LineBatch:
    """Gathers lines for one logger and writes them together, `GATHER_S` after the first."""

    GATHER_S = 0.1

    def __init__(self, logger_name: str) -> None:
        self._logger_name = logger_name
        self._lines: list[str] = []

    def append(self, line: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(self.GATHER_S, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            write_lines(self._logger_name, lines)


def _stdout_handler() -> logging.Handler:
    handler = _Lossy(sys.stdout)
    handler.setFormatter(ServerFormatter(True))
    return handler


def _file_handler(
    location: str, name: str, formatter: logging.Formatter, problems: list[str]
) -> logging.Handler | None:
    path = os.path.join(location, name)
    try:
        os.makedirs(location, exist_ok=True)
        handler = _LossyFile(path)
    except OSError as error:
        problems.append(f"Cannot write {path}: {error.strerror}; its lines go to stdout only.")
        return None
    handler.setFormatter(formatter)
    return handler
