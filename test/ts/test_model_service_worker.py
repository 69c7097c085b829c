"""The worker as its frontend sees it: a process, its lines, its frames and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from ts.protocol.messages import LoadReply, Part, Prediction, PredictReply, PredictRequest

ERROR_BODY = b"error"


def test_start_lines_come_in_order(start_worker, models):
    worker = start_worker(models)
    worker.connect()
    worker.out.wait("Connection accepted")
    wanted = [
        f"Listening on port: {worker.address}",
        f"[PID]{worker.process.pid}",
        "Torch worker started.",
        f"Python runtime: {sys.version.split()[0]}",
        f"Connection accepted: {worker.address}.",
    ]
    assert [line for line in worker.out.so_far() if line in wanted] == wanted


def test_serves_over_tcp(start_worker, models, worker_api):
    worker = start_worker(models, sock_type="tcp")
    host, port = worker.address
    worker.out.wait(f"Listening on addr:port: {host}:{port}")
    assert worker.load("echo.py") == LoadReply(200, "loaded model m")
    assert worker_api.bodies(worker.ask(b"hello")) == [b"hello"]
    assert worker.close() == 0


def test_a_plain_reply_to_the_letter(start_worker, models):
    worker = start_worker(models)
    assert worker.load("echo.py") == LoadReply(200, "loaded model m")
    assert worker.ask(b"one", b"two") == PredictReply(
        200,
        "Prediction success",
        [
            Prediction(b"r0", b"", 200, b"", [], b"one"),
            Prediction(b"r1", b"", 200, b"", [], b"two"),
        ],
    )


def test_ends_with_0_when_the_frontend_disconnects(start_worker, models):
    worker = start_worker(models)
    worker.load("echo.py")
    assert worker.close() == 0
    assert "Frontend disconnected." in worker.out.all()
    assert not os.path.exists(worker.address)


def test_a_socket_file_that_is_left_over_is_replaced(start_worker, models, worker_api):
    first = start_worker(models)
    first.connect()
    first.process.kill()
    first.wait()
    assert os.path.exists(first.address)
    second = start_worker(
        models,
        arguments=[
            "--sock-type",
            "unix",
            "--sock-name",
            first.address,
            "--metrics-config",
            str(worker_api.METRICS),
        ],
    )
    second.address = first.address
    assert second.load("echo.py").code == 200


def test_ranks_listen_on_the_following_numbers(start_worker, models):
    worker = start_worker(models, environment={"LOCAL_RANK": "2"})
    worker.address = worker.address.replace(".9000", ".9002")
    worker.out.wait(f"Listening on port: {worker.address}")
    # Every rank answers a load, but only rank 0 a batch.
    assert worker.load("echo.py").code == 200
    worker.send(PredictRequest(b"r", [], [Part(b"body", b"", b"x")]))
    assert worker.close() == 0


@pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_000])
def test_bodies_of_all_sizes(start_worker, models, worker_api, size):
    worker = start_worker(models)
    worker.load("echo.py")
    body = os.urandom(size)
    assert worker_api.bodies(worker.ask(body)) == [body]


def test_a_reply_of_many_large_bodies(start_worker, write_handler, worker_api):
    """More buffers than one system call takes."""
    folder = write_handler(
        """
        def handle(data, context):
            return [bytes([i % 256]) * 17000 for i in range(len(data or []))]
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    reply = worker.ask(*[b""] * 700)
    assert worker_api.bodies(reply) == [bytes([i % 256]) * 17000 for i in range(700)]


def test_commands_that_come_in_one_piece(start_worker, models, worker_api):
    worker = start_worker(models)
    worker.connect()
    message = worker_api.LoadModel("m", str(models), 1, "echo.py", None, "", True)
    batch = worker_api.encode_predict([worker_api.request("r", b"x")])
    worker.socket.sendall(b"".join([worker_api.encode_load(message), *batch, *batch]))
    assert worker._receive(worker._reader.next_load).code == 200
    assert worker_api.bodies(worker.reply()) == [b"x"]
    assert worker_api.bodies(worker.reply()) == [b"x"]


@pytest.mark.parametrize(
    ("source", "handler"),
    [
        ("def handle(data, context):\n    return ['ok'] * len(data or [])", "handler.py"),
        ("def handle(data, context):\n    return ['ok'] * len(data or [])", "handler"),
        ("def serve(data, context):\n    return ['ok'] * len(data or [])", "handler:serve"),
        ("def serve(data, context):\n    return ['ok'] * len(data or [])", "handler.py:serve"),
        ("def serve(data, context):\n    return ['ok'] * len(data or [])", "/x/y/handler.py:serve"),
        (
            "class H:\n"
            "    def initialize(self, context):\n        self.word = 'ok'\n"
            "    def handle(self, data, context):\n        return [self.word] * len(data)",
            "handler.py",
        ),
        (
            # An object in the place of the method, as micro-batching does it.
            "from json import JSONDecoder\n"
            "class H:\n"
            "    def __init__(self):\n"
            "        self.handle = lambda data, context: [self.word] * len(data)\n"
            "    def initialize(self, context):\n        self.word = 'ok'",
            "handler.py",
        ),
    ],
)
def test_entry_points(start_worker, write_handler, worker_api, source, handler):
    worker = start_worker(write_handler(source))
    assert worker.load(handler) == LoadReply(200, "loaded model m")
    assert worker_api.bodies(worker.ask(b"", b"")) == [b"ok", b"ok"]


def test_a_function_is_called_once_at_load(start_worker, write_handler, worker_api):
    folder = write_handler(
        """
        calls = []

        def handle(data, context):
            calls.append(data is None)
            return [str(calls)]
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    assert worker_api.bodies(worker.ask(b"")) == [b"[True, False]"]


def test_streaming(start_worker, models):
    worker = start_worker(models)
    worker.load("streams.py")
    for _ in range(2):  # marks of one answer do not leak into the next
        worker.send(PredictRequest(b"r", [], [Part(b"body", b"", b"2")]))
        replies = [worker.reply() for _ in range(3)]
        found = [(p.headers, p.body) for reply in replies for p in reply.predictions]
        assert found == [
            ([(b"ts_stream_next", b"true")], b"chunk 0 "),
            ([(b"ts_stream_next", b"true")], b"chunk 1 "),
            ([(b"ts_stream_next", b"false")], b"end"),
        ]
        assert [reply.message for reply in replies][-1] == "Prediction success"
    # Nothing was streamed: no mark.
    worker.send(PredictRequest(b"r", [], [Part(b"body", b"", b"0")]))
    assert worker.reply().predictions == [Prediction(b"r", b"", 200, b"", [], b"end")]


def test_stopping_criteria(start_worker, write_handler):
    folder = write_handler(
        """
        def handle(data, context):
            if data is None:
                return
            context.stopping_criteria = [lambda item: {"done": True, "more": False}.get(item)] * 3
            return ["done", "more", "plain"]
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    reply = worker.ask(b"", b"", b"")
    assert [item.headers for item in reply.predictions] == [
        [(b"ts_stream_next", b"false")],
        [(b"ts_stream_next", b"true")],
        [],
    ]


def test_status_headers_and_what_the_context_knows(start_worker, models):
    worker = start_worker(models)
    worker.load("context_probe.py", gpu_id=3, batch_size=7)
    headers = [(b"Want-Latin", "é".encode("latin-1")), (b"want-status", b"404")]
    worker.send(PredictRequest(b"the-id", headers, [Part(b"body", b"", b"x")]))
    (item,) = worker.reply().predictions
    assert (item.status, item.reason) == (404, b"as asked")
    assert item.content_type == b"application/json"
    assert item.headers == [(b"content-type", b"application/json"), (b"x-probe", b"item 0")]
    assert json.loads(item.body) == {
        "headers": {"Want-Latin": "é", "want-status": "404"},
        "request_id": "the-id",
        "batch": 1,
        "properties": {"gpu_id": 3, "batch_size": 7},
    }


def test_inputs_are_decoded_by_their_type(start_worker, write_handler, worker_api):
    folder = write_handler(
        """
        def handle(data, context):
            return [repr(sorted((k, v) for row in data for k, v in row.items()))] if data else None
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    parts = [
        Part(b"empty-json", b"application/json", b""),
        Part(b"json", b"application/json", b'{"a": 1}'),
        Part(b"json-utf8", b"application/json; charset=utf-8", b"{}"),
        Part(b"no-json", b"application/json", b"{"),
        Part(b"no-text", b"text/plain", b"\xff"),
        Part(b"raw", b"", b"r"),
        Part(b"text", b"text/csv", b"t"),
        Part(b"twice", b"", b"first"),
        Part(b"twice", b"", b"last"),
    ]
    worker.send(PredictRequest(b"r", [], parts))
    assert worker_api.bodies(worker.reply()) == [
        repr(
            [
                ("empty-json", bytearray()),
                ("json", {"a": 1}),
                ("json-utf8", bytearray(b"{}")),
                ("no-json", bytearray(b"{")),
                ("no-text", bytearray(b"\xff")),
                ("raw", bytearray(b"r")),
                ("text", "t"),
                ("twice", bytearray(b"last")),
            ]
        ).encode()
    ]
    assert "no-json" not in "".join(worker.out.so_far())  # content stays out of the log
    worker.out.wait("An input of type application/json is passed on as bytes")


def test_decoding_can_be_switched_off(start_worker, write_handler, worker_api):
    folder = write_handler(
        "def handle(data, context):\n    return [type(data[0]['body']).__name__] if data else None"
    )
    worker = start_worker(folder, environment={"TS_DECODE_INPUT_REQUEST": "false"})
    worker.load("handler.py")
    worker.send(worker_api.request("r", b"{}", content_type=b"application/json"))
    assert worker_api.bodies(worker.reply()) == [b"bytearray"]


FAILURES = [
    ("raise ValueError('mine')", 503, "Prediction failed"),
    ("raise MemoryError", 507, "Out of resources"),
    ("raise RuntimeError('CUDA out of memory')", 507, "Out of resources"),
    (
        "from ts.utils.util import PredictionException\n"
        "    raise PredictionException('no such endpoint', 404)",
        404,
        "no such endpoint",
    ),
    (
        "from ts.service import PredictionException\n    raise PredictionException('plain')",
        500,
        "plain",
    ),
    ("return 'text'", 503, "Invalid model predict output"),
    ("return ('x',)", 503, "Invalid model predict output"),
    ("return None", 503, "Invalid model predict output"),
    ("return ['x', 'y']", 503, "number of batch response mismatched"),
    ("return [object()]", 503, "Unsupported model output data type."),
    ("a = []; a.append(a); return [a]", 503, "Unsupported model output data type."),
    ("return [{('a',): 1}]", 503, "Unsupported model output data type."),
    ("return ['\\ud800']", 503, "Unsupported model output data type."),
    ("context.stopping_criteria = []; return ['x']", 200, "Prediction success"),
    (
        "context.stopping_criteria = [lambda item: item['x']]; return ['x']",
        503,
        "Prediction failed",
    ),
    ("context.set_response_status('no number'); return ['x']", 503, "Prediction failed"),
]


@pytest.mark.parametrize(("line", "code", "message"), FAILURES)
def test_failures_are_answered_and_survived(
    start_worker, write_handler, worker_api, line, code, message
):
    folder = write_handler(
        f"def handle(data, context):\n"
        f"    if data is None: return\n"
        f"    context.stopping_criteria = None\n"
        f"    if data[0]['body'] == b'fine': return ['fine']\n"
        f"    {line}\n"
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    reply = worker.ask(b"x")
    assert (reply.code, reply.message) == (code, message)
    if code != 200:
        assert reply.predictions == [Prediction(b"r0", b"", code, b"", [], ERROR_BODY)]
        worker.out.wait("r0")  # the log names the request
    assert worker_api.bodies(worker.ask(b"fine")) == [b"fine"]
    assert worker.close() == 0


def test_the_traceback_of_a_failing_handler_is_logged(start_worker, models):
    worker = start_worker(models)
    worker.load("fails_on_predict.py")
    assert worker.ask(b"a", b"b").code == 503
    worker.out.wait("The handler failed for request r0, r1:")
    worker.out.wait("Traceback (most recent call last):")
    worker.out.wait("ValueError: this handler always fails")


def test_wrong_length(start_worker, models):
    worker = start_worker(models)
    worker.load("wrong_length.py")
    assert worker.ask(b"a").message == "number of batch response mismatched"
    worker.out.wait("2 items for 1 requests")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("raise RuntimeError('no weights')", 500, "Unknown exception"),
        ("raise RuntimeError('CUDA error')", 507, "System out of memory"),
        ("raise MemoryError", 507, "System out of memory"),
    ],
)
def test_a_refused_load_is_answered_and_ends_with_1(
    start_worker, write_handler, line, code, message
):
    worker = start_worker(write_handler(f"def handle(data, context):\n    {line}"))
    assert worker.load("handler.py") == LoadReply(code, message)
    assert worker.wait() == 1
    assert f"RuntimeError: {code} - {message}" in worker.out.all()
    assert not os.path.exists(worker.address)


@pytest.mark.parametrize(
    ("source", "handler", "complaint"),
    [
        ("import nothing_like_this", "handler.py", "No module named 'nothing_like_this'"),
        ("", "absent", "No module named 'absent'"),
        ("x = 1", "handler.py", "BadHandlerError: Expected only one class in custom service code"),
        ("class A: pass\nclass B: pass", "handler.py", "['A', 'B']"),
        ("class A: pass", "handler.py", "BadHandlerError: Expect handle method in class"),
        ("def handle(d, c):\n    raise ValueError('odd')", "handler.py", "ValueError: odd"),
        ("class A", "handler.py", "SyntaxError"),
    ],
)
def test_other_faults_of_loading_end_the_worker_without_a_reply(
    start_worker, write_handler, source, handler, complaint
):
    worker = start_worker(write_handler(source))
    assert worker.load(handler) is None
    assert worker.wait() == 1
    lines = worker.out.all()
    assert "Backend worker process died." in lines
    assert any(complaint in line for line in lines)


@pytest.mark.parametrize(
    ("how", "status"),
    [(b"exit", 4), (b"_exit", 5), (b"kill", -signal.SIGKILL), (b"abort", -signal.SIGABRT)],
)
def test_a_handler_may_end_the_process(start_worker, models, how, status):
    worker = start_worker(models)
    worker.load("dies.py")
    assert worker.ask(how) is None
    assert worker.wait() == status


def test_bytes_that_are_no_command(start_worker, models):
    worker = start_worker(models)
    worker.connect()
    worker.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert worker.wait() == 1
    assert any("Invalid command: b'G'" in line for line in worker.out.all())


def test_a_batch_before_any_load(start_worker, models):
    worker = start_worker(models)
    worker.connect()
    worker.send(PredictRequest(b"r", [], []))
    assert worker.wait() == 1
    assert any("no model is loaded" in line for line in worker.out.all())


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--sock-type", "unix"], 1, "No socket name given"),
        (["--sock-type", "tcp"], 1, "No socket port given"),
        (["--sock-type", "pigeon"], 2, "invalid choice"),
        ([], 2, "--sock-type"),
        (["--sock-type", "unix", "--sock-name", "/tmp/x.1"], 1, "Backend worker process died."),
        (
            ["--sock-type", "unix", "--sock-name", "/tmp/x.1", "--metrics-config", "/no/such"],
            1,
            "/no/such",
        ),
    ],
)
def test_command_lines_that_cannot_work(start_worker, models, arguments, status, complaint):
    worker = start_worker(models, arguments=arguments)
    assert worker.wait() == status
    lines = worker.out.all() + worker.err.all()
    assert any(complaint in line for line in lines)
    assert "Torch worker started." not in lines


def test_a_socket_name_that_cannot_be_removed(start_worker, models, tmp_path, worker_api):
    (tmp_path / "x.1").mkdir()
    name = str(tmp_path / "x.1")
    worker = start_worker(
        models,
        arguments=[
            "--sock-type",
            "unix",
            "--sock-name",
            name,
            "--metrics-config",
            str(worker_api.METRICS),
        ],
    )
    assert worker.wait() == 1
    assert any(f"socket already in use: {name}." in line for line in worker.out.all())


def test_prints_and_log_lines_show_at_once(start_worker, write_handler):
    folder = write_handler(
        """
        import logging, sys

        def handle(data, context):
            if data is None:
                print("printed at load")
                return None
            print("printed", end=" ")
            print("in two steps")
            logging.getLogger("mine").info("logged %s", "here")
            logging.getLogger("mine").debug("not logged")
            print("to stderr", file=sys.stderr)
            return ["x"]
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    worker.out.wait("printed at load")
    worker.ask(b"x")
    worker.out.wait("printed in two steps")
    worker.out.wait("logged here")
    worker.err.wait("to stderr")
    assert worker.out.wait("[METRICS]PredictionTime.Milliseconds:").endswith(",r0")
    assert worker.close() == 0
    assert not any("not logged" in line for line in worker.out.all())


def test_every_batch_can_have_its_metric_even_the_last(start_worker, models):
    worker = start_worker(models, environment={"TS_PREDICTION_METRIC_INTERVAL_MS": "0"})
    worker.load("echo.py")
    for _ in range(500):
        worker.ask(b"x")
    assert worker.close() == 0
    lines = [line for line in worker.out.all() if line.startswith("[METRICS]")]
    assert len(lines) == 500
    assert lines[0].startswith("[METRICS]PredictionTime.Milliseconds:")
    assert "|#ModelName:m,Level:Model|#type:GAUGE|#hostname:" in lines[0]


@pytest.mark.parametrize("flags", [(), ("--async",)])
def test_metrics_of_many_small_batches_are_thinned_out(start_worker, write_handler, flags):
    kind = "async " if flags else ""
    folder = write_handler(
        "class Handler:\n"
        "    def initialize(self, context): ...\n"
        f"    {kind}def handle(self, data, context): return ['x']\n"
    )
    interval = {"TS_PREDICTION_METRIC_INTERVAL_MS": "3600000"}
    worker = start_worker(folder, *flags, environment=interval)
    worker.load("handler.py")
    for _ in range(20):
        worker.ask(b"x")
    worker.close()
    lines = [line for line in worker.out.all() if line.startswith("[METRICS]")]
    assert len(lines) == 1


KEEPS_A_BODY = """
import sys
import threading
import time

kept = []


def watch():
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        if sys.getrefcount(kept[0]) <= 2:  # the list's, and the call's
            print("released", flush=True)
            return
        time.sleep(0.005)


def handle(data, context):
    if data is None:
        return None
    kept.append(data[0]["body"])
    threading.Thread(target=watch, daemon=True).start()
    return [kept[0]]
"""


def test_a_worker_that_waits_keeps_no_bodies(start_worker, write_handler):
    """Else the memory of the last batch, and of its answer, would be taken twice in the next."""
    worker = start_worker(write_handler(KEEPS_A_BODY))
    worker.load("handler.py")
    worker.ask(bytes(100_000))
    worker.out.wait("released")


def test_failed_batches_have_no_metric(start_worker, models):
    worker = start_worker(models)
    worker.load("fails_on_predict.py")
    worker.ask(b"x")
    worker.close()
    assert not [line for line in worker.out.all() if line.startswith("[METRICS]")]


def test_an_echo_worker_loads_no_torch(start_worker, write_handler, worker_api):
    folder = write_handler(
        """
        import sys

        def handle(data, context):
            heavy = {"torch", "numpy", "psutil", "ctypes", "ts_frontend"}
            return [sorted(heavy & set(sys.modules))] if data else None
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    assert worker_api.bodies(worker.ask(b"")) == [b"[]"]


def test_the_folder_of_the_script_hides_nothing(start_worker, write_handler, worker_api):
    """A module of the archive may be called like one of ours."""
    folder = write_handler(
        """
        import service

        def handle(data, context):
            return [service.WORD] if data else None
        """
    )
    (folder / "service.py").write_text("WORD = 'of the archive'\n")
    worker = start_worker(folder)
    worker.load("handler.py")
    assert worker_api.bodies(worker.ask(b"")) == [b"of the archive"]


def test_a_worker_started_by_hand_needs_no_python_path(start_worker, models, worker_api):
    worker = start_worker(models, environment={"PYTHONPATH": ""})
    assert worker.load("echo.py").code == 200
    assert worker_api.bodies(worker.ask(b"x")) == [b"x"]


def test_another_ts_package_does_not_win(start_worker, models, tmp_path):
    (tmp_path / "ts").mkdir()
    (tmp_path / "ts" / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    worker = start_worker(models, environment={"PYTHONPATH": f"{tmp_path}:{models}"})
    assert worker.load("echo.py").code == 200


def test_a_tensor_is_saved(start_worker, write_handler, worker_api):
    torch = pytest.importorskip("torch")
    import io

    folder = write_handler(
        """
        import torch

        def handle(data, context):
            return [torch.arange(3)] if data else None
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    (body,) = worker_api.bodies(worker.ask(b""))
    assert torch.load(io.BytesIO(body)).tolist() == [0, 1, 2]


def test_a_thread_that_a_handler_left_does_not_keep_the_worker(start_worker, write_handler):
    folder = write_handler(
        """
        import threading

        def handle(data, context):
            if data is None:
                threading.Thread(target=threading.Event().wait).start()
            return ["x"]
        """
    )
    worker = start_worker(folder)
    worker.load("handler.py")
    assert worker.close() == 0


def test_dies_with_its_parent_if_asked(tmp_path, models, worker_api):
    """The parent is killed before anybody connects; the kernel ends the worker."""
    name = tmp_path / "s.1"
    parent_source = f"""
        import os, subprocess, sys
        command = [sys.executable, {str(worker_api.SCRIPT)!r}, "--sock-type", "unix",
                   "--sock-name", {str(name)!r}, "--metrics-config", {str(worker_api.METRICS)!r}]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                  env={{**os.environ, "TS_WORKER_DIE_WITH_PARENT": "1"}})
        for line in worker.stdout:
            if line.startswith("Torch worker started."):
                print(worker.pid, flush=True)
                break
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent_source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=models,
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        with contextlib.suppress(ProcessLookupError):
            worker_api.wait_until(lambda: _is_ended(pid))


def _is_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# Asynchronous workers.


def test_async_streams(start_worker, models, worker_api):
    worker = start_worker(models, "--async")
    assert worker.load("streams_async.py") == LoadReply(200, "loaded model m")
    worker.send(worker_api.request("r", b"3"))
    found = [worker.reply().predictions[0] for _ in range(4)]
    assert [(bytes(p.body), dict(p.headers)[b"ts_stream_next"]) for p in found] == [
        (b"chunk 0 ", b"true"),
        (b"chunk 1 ", b"true"),
        (b"chunk 2 ", b"true"),
        (b"end", b"false"),
    ]
    worker.send(worker_api.request("r", b"0"))
    assert worker.reply().predictions == [Prediction(b"r", b"", 200, b"", [], b"end")]
    assert worker.close() == 0


ASYNC_GATES = """
    import asyncio

    class Handler:
        def initialize(self, context):
            self.gates = {}
            context.attached = {"count": 0}
            self.loop = asyncio.get_event_loop_policy().get_event_loop()

        async def handle(self, data, context):
            assert self.loop is asyncio.get_running_loop()
            context.attached["count"] += 1
            word, _, name = bytes(data[0]["body"]).decode().partition(" ")
            gate = self.gates.setdefault(name, asyncio.Event())
            if word == "open":
                gate.set()
            elif word == "cancelled":
                raise asyncio.CancelledError
            else:
                await gate.wait()
            return [f"{word} {name} {context.get_request_id()} {context.attached['count']}"]
"""


def test_async_messages_run_beside_each_other(start_worker, write_handler, worker_api):
    worker = start_worker(write_handler(ASYNC_GATES), "--async")
    assert worker.load("handler.py").code == 200
    for index, body in enumerate([b"wait a", b"wait b", b"open b", b"open a"]):
        worker.send(worker_api.request(f"r{index}", body))
    replies = [worker.reply() for _ in range(4)]
    assert sorted(bytes(reply.predictions[0].body) for reply in replies) == [
        b"open a r3 1",
        b"open b r2 1",
        b"wait a r0 1",
        b"wait b r1 1",
    ]
    assert worker.close() == 0


def test_async_handler_that_is_cancelled_by_itself(start_worker, write_handler, worker_api):
    worker = start_worker(write_handler(ASYNC_GATES), "--async")
    worker.load("handler.py")
    assert worker.ask(b"cancelled x").message == "Prediction failed"
    assert worker.ask(b"open x").code == 200


def test_async_ends_promptly_with_messages_in_flight(start_worker, write_handler, worker_api):
    worker = start_worker(write_handler(ASYNC_GATES), "--async")
    worker.load("handler.py")
    worker.send(worker_api.request("r0", b"wait for-ever"))
    worker.ask(b"open y")
    assert worker.close() == 0
    assert "Frontend disconnected." in worker.out.all()


def test_async_large_messages_are_whole(start_worker, write_handler, worker_api):
    """Threads that stream and the loop that answers write on one socket."""
    folder = write_handler(
        """
        import asyncio
        from ts.handler_utils.utils import send_intermediate_predict_response

        class Handler:
            def initialize(self, context):
                pass

            async def handle(self, data, context):
                def stream():
                    for _ in range(5):
                        send_intermediate_predict_response(
                            [b"s" * 400_000], context.request_ids, "part", 200, context
                        )
                await asyncio.to_thread(stream)
                return [b"e" * 400_000]
        """
    )
    worker = start_worker(folder, "--async")
    worker.load("handler.py")
    for index in range(4):
        worker.send(worker_api.request(f"r{index}"))
    found = [worker.reply().predictions[0] for _ in range(24)]
    for index in range(4):
        own = [bytes(p.body)[:1] for p in found if bytes(p.id) == b"r%d" % index]
        assert own == [b"s"] * 5 + [b"e"]
    assert all(len(p.body) == 400_000 for p in found)


def test_async_synchronous_handler_fails_its_requests(start_worker, models):
    worker = start_worker(models, "--async")
    worker.load("echo.py")
    assert worker.ask(b"x").message == "Prediction failed"


def test_async_handler_may_end_the_process(start_worker, write_handler):
    folder = write_handler(
        """
        import sys

        class Handler:
            def initialize(self, context):
                pass

            async def handle(self, data, context):
                sys.exit(6)
        """
    )
    worker = start_worker(folder, "--async")
    worker.load("handler.py")
    assert worker.ask(b"x") is None
    assert worker.wait() == 6


def test_async_takes_no_second_load(start_worker, models):
    worker = start_worker(models, "--async")
    worker.load("streams_async.py")
    worker.load("streams_async.py")
    assert worker.wait() == 1
    assert any("Invalid command" in line for line in worker.out.all())


def test_no_frontend_comes(models, tmp_path, worker_api):
    """In this process, because nobody waits for the real 30 seconds."""
    source = f"""
        import sys
        sys.argv[1:] = ["--sock-type", "unix", "--sock-name", {str(tmp_path / "s.1")!r},
                        "--metrics-config", {str(worker_api.METRICS)!r}]
        from ts import model_service_worker
        model_service_worker.SOCKET_ACCEPT_TIMEOUT = 0.01
        model_service_worker.main()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        cwd=models,
        env={**os.environ, "PYTHONPATH": str(worker_api.ROOT)},
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert "Backend worker did not receive connection in: 0" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_second_frontend_is_refused(start_worker, models):
    worker = start_worker(models)
    worker.load("echo.py")
    with socket.socket(socket.AF_UNIX) as second, pytest.raises(ConnectionRefusedError):
        second.connect(worker.address)
