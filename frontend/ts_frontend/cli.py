"""`python -m ts_frontend`: the server process. `torchserve --start` runs this and waits for its
word.

The word goes to `--ready-fd`: `PROGRESS text` lines, then `READY text` or `FAILED reason`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from ts_frontend.core.errors import ServingError
from ts_frontend.logs import ServerLogs
from ts_frontend.server import Server
from ts_frontend.settings import ConfigurationError, Settings, load_settings

logger = logging.getLogger(__name__)


class ReadyPipe:
    """One-way word to whoever started the server; silent if nobody listens."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, word: str, text: str) -> None:
        if self._descriptor is None:
            return
        line = f"{word} {' '.join(text.split())}\n"
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode())
        if word != "PROGRESS":
            os.close(self._descriptor)
            self._descriptor = None


def version() -> str:
    try:
        return importlib.metadata.version("torchserve")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = load_settings(argv, os.environ, os.getcwd())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        ReadyPipe(_ready_fd(argv)).say("FAILED", str(error))
        return 1
    logs = ServerLogs(settings.log_location, settings.metrics_location)
    ready = ReadyPipe(settings.ready_fd)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(settings, ready))
    except (OSError, ServingError, ConfigurationError) as error:
        logger.error("The server could not start: %s", error)
        ready.say("FAILED", str(error))
        return 1
    finally:
        logs.close()


async def serve(settings: Settings, ready: ReadyPipe) -> int:
    server = Server(settings, version())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    starting = asyncio.ensure_future(server.start(lambda text: ready.say("PROGRESS", text)))
    stopping = asyncio.ensure_future(server.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
        elif not stopping.done():
            starting.result()
            _freeze()
            addresses = ", ".join(f"{name} {address}" for name, address in server.addresses())
            logger.info("Model server started.")
            ready.say("READY", addresses)
            await stopping
    finally:
        await server.stop()
    if starting.cancelled():
        ready.say("FAILED", "stopped before it had started")
        return 1
    return 0


def _freeze() -> None:
    """What lives for the server's life is not walked through by each garbage collection."""
    gc.collect()
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _ready_fd(argv: Sequence[str]) -> int | None:
    """The launcher must hear of a configuration that cannot be read, too."""
    with contextlib.suppress(ValueError, IndexError):
        return int(argv[argv.index("--ready-fd") + 1])
    return None
