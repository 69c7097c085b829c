"""A worker process: one model, one connection.

The worker listens, says so on standard output, accepts its frontend and then answers one command
after the other (with --async, many at once). Standard output is part of the interface: the frontend
waits for the line "Torch worker started.".

How it ends: status 0 when the frontend has closed the connection, 1 for every fault outside the
handler, and the handler's own status when the handler ends the process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _use_own_package() -> None:
    """Make `ts` the package that this script belongs to.

    Python has put the script's own folder on the path, where `metrics` or `service` would hide
    modules of the archive. What the folder above holds must not hide them either, so it goes to
    the end, but another `ts` that is installed must not win.
    """
    script_dir = os.path.join(HOME, "ts")
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != script_dir]
    sys.path.insert(0, HOME)
    import ts  # noqa: F401

    sys.path.remove(HOME)
    if HOME not in sys.path:
        sys.path.append(HOME)


if __name__ == "__main__":
    _use_own_package()

from ts.arg_parser import ArgParser  # noqa: E402
from ts.async_service import AsyncService  # noqa: E402
from ts.command_source import CommandSource  # noqa: E402
from ts.containment import contain  # noqa: E402
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl  # noqa: E402
from ts.model_loader import ModelLoaderFactory  # noqa: E402
from ts.protocol.controls import CONTROLS_VARIABLE, mark_controls  # noqa: E402
from ts.protocol.messages import PONG, LoadModel, Ping, encode_load_reply  # noqa: E402
from ts.protocol.restrictions import Restrictions  # noqa: E402
from ts.service import Service, cancelled_reply, ids_of  # noqa: E402
from ts.transports import tcp, unix  # noqa: E402
from ts.transports.connection import FrontendConnection, FrontendDisconnected  # noqa: E402
from ts.transports.shared_memory import SharedMemory  # noqa: E402
from ts.utils import worker_output  # noqa: E402

logger = logging.getLogger(__name__)

MAX_FAILURE_THRESHOLD = 5
SOCKET_ACCEPT_TIMEOUT = 30.0
DEBUG = False
BENCHMARK = os.getenv("TS_BENCHMARK") in ("True", "true", "TRUE")
BENCHMARK_FILE = "/tmp/tsPythonProfile.prof"  # noqa: S108 documented place

# Set by torchrun.
LOCAL_RANK = int(os.getenv("LOCAL_RANK", "0"))
WORLD_SIZE = int(os.getenv("WORLD_SIZE", "0"))
WORLD_RANK = int(os.getenv("RANK", "0"))
LOCAL_WORLD_SIZE = int(os.getenv("LOCAL_WORLD_SIZE", "0"))

# What a handler has left running (threads, engines) may take this long to end.
EXIT_GRACE_S = 2.0

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class TorchModelServiceWorker:
    """Listens at one address, serves one connection."""

    def __init__(
        self,
        s_type: str | None = None,
        s_name: str | None = None,
        host_addr: str | None = None,
        port_num: int | None = None,
        metrics_config: str | None = None,
        async_comm: bool = False,
    ) -> None:
        """Raises ValueError for an incomplete address, and what a faulty metrics file raises."""
        self.sock_type = s_type
        self._is_async = async_comm
        if s_type == "unix":
            if not s_name:
                raise ValueError("Wrong arguments passed. No socket name given.")
            self.sock_name: str | None = unix.rank_path(s_name, LOCAL_RANK)
        elif s_type == "tcp":
            if port_num is None:
                raise ValueError("Wrong arguments passed. No socket port given.")
            self.sock_name = None
            self.host = host_addr or "127.0.0.1"
            self.port = port_num + LOCAL_RANK
        else:
            raise ValueError("Incomplete data provided")
        self.metrics_cache = MetricsCacheYamlImpl(config_file_path=metrics_config)
        self.metrics_cache.initialize_cache()

    def run_server(self) -> None:
        """Serve until the frontend disconnects, which ends the process with status 0.

        Raises socket.timeout if no frontend comes.
        """
        if self.sock_name is not None:
            listener, where = unix.listen(self.sock_name)
        else:
            listener, where = tcp.listen(self.host, self.port)
        with listener:
            listener.settimeout(SOCKET_ACCEPT_TIMEOUT)
            logger.info("Listening on %s", where)
            logger.info("[PID]%d", os.getpid())
            logger.info("Torch worker started.")
            logger.info("Python runtime: %s", platform.python_version())
            cl_socket, _ = listener.accept()
        cl_socket.setblocking(True)
        logger.info("Connection accepted: %s.", cl_socket.getsockname())
        with cl_socket:
            try:
                self._serve(cl_socket)
            except FrontendDisconnected:
                logger.info("Frontend disconnected.")
                sys.exit(0)

    def _serve(self, cl_socket: socket.socket) -> None:
        serve = self.handle_connection_async if self._is_async else self.handle_connection
        if not BENCHMARK:
            serve(cl_socket)
            return
        import cProfile

        profile = cProfile.Profile()
        try:
            profile.runcall(serve, cl_socket)
        finally:
            profile.dump_stats(BENCHMARK_FILE)

    def handle_connection(self, cl_socket: socket.socket) -> None:
        """Answer commands, one after the other; raises FrontendDisconnected at the end."""
        connection = FrontendConnection(cl_socket, SharedMemory.from_environment())
        source = CommandSource(connection)
        service = None
        while True:
            command = reply = None  # while waiting, the last bodies must not be kept
            command = source.receive()
            if isinstance(command, LoadModel):
                service = self._load_and_reply(command, connection)
                if _has_controls():
                    service.set_cancellations(source)
            elif isinstance(command, Ping):
                connection.send([PONG])
            elif service is None:
                raise RuntimeError("Received a batch, but no model is loaded yet.")
            else:
                # Not at INFO: with small models the line costs more than the prediction.
                if logger.isEnabledFor(logging.DEBUG):
                    logger.debug("Backend received inference at: %d", time.time())
                if source.is_abandoned(command):
                    reply = cancelled_reply(ids_of(command))
                else:
                    reply = service.predict(command)
                if LOCAL_RANK == 0:
                    connection.send(reply)
                else:
                    logger.debug("skip sending response at rank %d", LOCAL_RANK)

    def handle_connection_async(self, cl_socket: socket.socket) -> None:
        """Answer commands, many at once; raises FrontendDisconnected at the end."""
        # Handlers that ask for the loop while they start get the one they will run on.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        connection = FrontendConnection(cl_socket, SharedMemory.from_environment())
        command = connection.receive_command()
        if not isinstance(command, LoadModel):
            raise RuntimeError("Received a batch, but no model is loaded yet.")
        service = self._load_and_reply(command, connection)
        loop.run_until_complete(AsyncService(service, connection, LOCAL_RANK == 0).run())

    def _load_and_reply(self, command: LoadModel, connection: FrontendConnection) -> Service:
        service, message, code = self.load_model(command)
        if service is not None:
            service.set_cl_socket(connection)
        # The frontend takes the reply as the sign that all about the start has been said.
        for handler in logging.getLogger().handlers:
            handler.flush()
        if service is not None and _has_controls():
            message = mark_controls(message)
        connection.send([encode_load_reply(code, message)])
        if service is None:
            raise RuntimeError(f"{code} - {message}")
        return service

    def load_model(self, command: LoadModel) -> tuple[Service | None, str, int]:
        """The service, the message and the code of the reply.

        Faults of other types than these are not answered: they end the process.
        """
        self.metrics_cache.model_name = command.model_name
        try:
            service = ModelLoaderFactory.get_model_loader().load(
                command.model_name,
                command.model_dir,
                command.handler,
                command.gpu_id,
                command.batch_size,
                command.envelope or None,
                command.limit_max_image_pixels,
                self.metrics_cache,
            )
        except MemoryError:
            logger.exception("Model %s cannot be loaded:", command.model_name)
            return None, "System out of memory", 507
        except RuntimeError as error:
            logger.exception("Model %s cannot be loaded:", command.model_name)
            if "CUDA" in str(error):
                return None, "System out of memory", 507
            return None, "Unknown exception", 500
        logger.debug("Model %s loaded.", command.model_name)
        return service, f"loaded model {command.model_name}", 200


def _has_controls() -> bool:
    """Whether the frontend may send cancels and pings. One of several ranks does not take them:
    the others would not hear of it.
    """
    return bool(os.environ.get(CONTROLS_VARIABLE)) and LOCAL_WORLD_SIZE <= 1


def _exit_status(end: SystemExit) -> int:
    """As the interpreter takes what was given to `sys.exit`."""
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    return 1


def _end_within(grace_s: float, status: int) -> None:
    """End the process even if a thread that a handler has left keeps it from ending."""

    def end() -> None:
        time.sleep(grace_s)
        os._exit(status)

    threading.Thread(target=end, name="worker-exit", daemon=True).start()


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends.

    For a frontend that asks for it: one that is killed cannot end its workers any more. Its number
    instead of 1 closes the gap in which it may already be gone.
    """
    wish = os.environ.get("TS_WORKER_DIE_WITH_PARENT", "")
    if not wish.isdigit() or wish == "0" or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    import ctypes  # only here: loading it costs milliseconds

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    expected = parent if wish == "1" else int(wish)
    if os.getppid() != expected:
        os._exit(1)


def main() -> None:
    worker_output.install()
    # A crash in native code says where: the frontend shows it beside the signal.
    faulthandler.enable(2, all_threads=False)
    worker = None
    try:
        args = ArgParser.model_service_worker_args().parse_args()
        contain(Restrictions.from_environment(os.environ), is_tcp=args.sock_type == "tcp")
        die_with_parent()  # after that: the kernel forgets this wish when rights change
        worker = TorchModelServiceWorker(
            args.sock_type,
            args.sock_name,
            args.host,
            args.port,
            args.metrics_config,
            args.async_comm,
        )
        worker.run_server()
    except TimeoutError:
        logger.error("Backend worker did not receive connection in: %d", SOCKET_ACCEPT_TIMEOUT)
    except Exception:
        logger.exception("Backend worker process died.")
    except SystemExit as end:
        _end_within(EXIT_GRACE_S, _exit_status(end))
        raise
    finally:
        if worker is not None and worker.sock_name is not None:
            unix.clean_up(worker.sock_name)
    _end_within(EXIT_GRACE_S, 1)
    sys.exit(1)


if __name__ == "__main__":
    main()
