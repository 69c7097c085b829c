"""`python -m ts_frontend`: the server process. `torchserve --start` runs this and waits for its
word.

The word goes to `--ready-fd`, in the lines of `start_report`.
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

from ts_frontend.config_check import check_config
from ts_frontend.core.errors import ServingError
from ts_frontend.logs import ServerLogs
from ts_frontend.server import Server
from ts_frontend.settings import ConfigurationError, Settings, load_settings
from ts_frontend.start_report import StartReport

logger = logging.getLogger(__name__)


def version() -> str:
    try:
        return importlib.metadata.version("torchserve")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in argv or "-v" in argv:
        print(f"TorchServe Version is {version()}")
        return 0
    if "--check-config" in argv:
        return check_config(argv, os.environ, os.getcwd())
    try:
        settings = load_settings(argv, os.environ, os.getcwd())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        StartReport(_ready_fd(argv)).failed(str(error))
        return 1
    logs = ServerLogs(settings.log_location, settings.metrics_location)
    for name, level in settings.log_levels.items():
        logging.getLogger(name).setLevel(level)
    report = StartReport(settings.ready_fd)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(settings, report))
    except (OSError, ServingError, ConfigurationError) as error:
        logger.error("The server could not start: %s", error)
        report.failed(str(error))
        return 1
    finally:
        logs.close()


async def serve(settings: Settings, report: StartReport) -> int:
    server = Server(settings, version())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    starting = asyncio.ensure_future(server.start(report.progress))
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
            report.ready(addresses)
            await stopping
    finally:
        await server.stop()
    if starting.cancelled():
        report.failed("stopped before it had started")
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
