"""The client's half of scripts/demo: packs two models, serves them, uses them and stops the server.

Every process of the run carries the environment variable TS_DEMO_RUN with a value of its own, so
that the end can prove that none is left, whoever started it. Uses only the commands a user has and
HTTP.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MNIST = ROOT / "examples" / "image_classifier" / "mnist"
ECHO = ROOT / "examples" / "echo_stream"
RUN_MARK = "TS_DEMO_RUN"
STARTED_LINE = "Model server started"  # what the server prints when it listens
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
STREAM_TEXT = "each word of this sentence arrives on its own"


class DemoFailed(Exception):
    """Something the demo promises did not happen."""


# What ends the demo with a message instead of a traceback; urllib's errors are OSErrors.
FAILURES = (DemoFailed, OSError, http.client.HTTPException, subprocess.SubprocessError)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo-output", help="folder of heat maps and logs"
    )
    output = parser.parse_args().output.resolve()
    shutil.rmtree(output / "logs", ignore_errors=True)
    (output / "logs").mkdir(parents=True)
    # A kill of the demo must stop the server too: turn it into an exception that unwinds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ts-demo-") as temp:
        demo = Demo(Path(temp), output)
        try:
            demo.run()
        except FAILURES as error:
            detail = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
            print(f"\nFAILED: {error} {detail}\nserver's log: {demo.console}", file=sys.stderr)
            return 1
        finally:
            demo.kill_what_is_left()
    print(f"\nDone in {time.monotonic() - started:.1f} s. Server's log: {demo.console}")
    return 0


class Demo:
    def __init__(self, temp: Path, output: Path) -> None:
        self.temp = temp
        self.output = output
        self.store = temp / "model_store"
        self.console = output / "logs" / "console.log"
        self.mark = uuid.uuid4().hex
        inference, management, metrics, grpc_inference, grpc_management = free_ports(5)
        self.ports = [inference, management, metrics, grpc_inference, grpc_management]
        self.inference = f"http://127.0.0.1:{inference}"
        self.management = f"http://127.0.0.1:{management}"
        self.config = temp / "config.properties"
        self.config.write_text(
            f"inference_address={self.inference}\n"
            f"management_address={self.management}\n"
            f"metrics_address=http://127.0.0.1:{metrics}\n"
            f"grpc_inference_port={grpc_inference}\n"
            f"grpc_management_port={grpc_management}\n"
        )
        self.environment = os.environ | {
            RUN_MARK: self.mark,
            "LOG_LOCATION": str(output / "logs"),
            "METRICS_LOCATION": str(output / "logs"),
            # The command keeps its pid file in the temp folder: with one of our own it cannot meet,
            # or stop, a server that this user runs besides.
            "TMPDIR": str(temp),
        }

    def run(self) -> None:
        heading("1. Pack two models with torch-model-archiver")
        self.pack()
        heading("2. Start the server")
        self.start()
        heading("3. Classify handwritten digits that training never saw")
        answers = self.classify()
        heading("4. Explain the answers")
        self.explain(answers)
        heading("5. Register a second model and stream its answer")
        self.stream()
        heading("6. Scale to two workers")
        self.scale()
        heading("7. Stop, and look whether anything is left")
        self.stop()

    def pack(self) -> None:
        self.store.mkdir()
        self.command(
            *("torch-model-archiver", "--model-name", "mnist", "--version", "1.0"),
            *("--model-file", MNIST / "mnist.py", "--serialized-file", MNIST / "digits_cnn.pt"),
            *("--handler", MNIST / "mnist_handler.py"),
            *("--extra-files", MNIST / "index_to_name.json"),
            *("--config-file", MNIST / "model-config.yaml", "--export-path", self.store),
        )
        self.command(
            *("torch-model-archiver", "--model-name", "echo_stream", "--version", "1.0"),
            *("--handler", ECHO / "echo_stream_handler.py"),
            *("--config-file", ECHO / "model-config.yaml", "--export-path", self.store),
        )
        for archive in sorted(self.store.iterdir()):
            print(f"  {archive.name}: {archive.stat().st_size:,} bytes")

    def start(self) -> None:
        print("  --disable-token-auth: the demo sends no keys; a server that others can reach")
        print("  should keep them. --enable-model-api: step 5 registers a model at run time.")
        began = time.monotonic()
        self.command(
            *("torchserve", "--start", "--ncs", "--ts-config", self.config),
            *("--model-store", self.store, "--models", "mnist=mnist.mar"),
            *("--disable-token-auth", "--enable-model-api"),
        )
        wait_until(self.has_started, START_LIMIT_S, "start")
        print(f"  listeners up after {time.monotonic() - began:.1f} s:")
        print(f"  {self.inference} (inference), {self.management} (management)")
        wait_until(lambda: self.ready_workers("mnist") >= 1, START_LIMIT_S, "load the digits model")
        print(f"  digits model ready after {time.monotonic() - began:.1f} s")
        print(f"  GET /ping -> {get_json(self.inference + '/ping')}")

    def has_started(self) -> bool:
        if STARTED_LINE in self.console.read_text():
            return True
        if not self.processes():
            raise DemoFailed("the server ended while it started")
        return False

    def classify(self) -> dict[Path, int]:
        """Prints a table; gives what the model said for each image."""
        answers: dict[Path, int] = {}
        right = 0
        images = sorted((MNIST / "test_data").glob("*.png"))
        print("  file      digit  answer  probability")
        url = f"{self.inference}/predictions/mnist"
        for image in images:
            labels = get_json(url, image.read_bytes(), "image/png")
            answer, probability = max(labels.items(), key=lambda item: item[1])
            answers[image] = int(answer)
            is_right = image.name.startswith(answer)
            right += is_right
            wrong = "" if is_right else "  <- wrong"
            print(f"  {image.name:<9} {image.name[0]:>5}  {answer:>6}  {probability:>11.4f}{wrong}")
        print(f"  right: {right} of {len(images)}")
        if right < 0.9 * len(images):
            raise DemoFailed(f"only {right} of {len(images)} digits right")
        return answers

    def explain(self, answers: dict[Path, int]) -> None:
        pairs = []
        for digit in range(10):
            image = MNIST / "test_data" / f"{digit}.png"
            body, content_type = explanation_form(image.read_bytes(), answers[image])
            found = get_json(f"{self.inference}/explanations/mnist", body, content_type)
            pairs.append((Image.open(image), heat_map(list(flatten(found)))))
        path = self.output / "explanations.png"
        contact_sheet(pairs).save(path)
        print("  ten digits, each beside the pixels that spoke for its answer (red) and against it")
        print(f"  (blue): {path}")

    def stream(self) -> None:
        query = "url=echo_stream.mar&initial_workers=1&synchronous=true"
        print(f"  {get_json(f'{self.management}/models?{query}', b'')['status']}")
        request = post(
            f"{self.inference}/predictions/echo_stream", STREAM_TEXT.encode(), "text/plain"
        )
        arrivals: list[float] = []
        pieces: list[str] = []
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=30) as answer:
            while piece := answer.read1(65536):
                arrivals.append(time.monotonic() - began)
                pieces.append(piece.decode())
                print(f"  {arrivals[-1]:6.2f} s  {pieces[-1].strip()}", flush=True)
        if "".join(pieces).split() != STREAM_TEXT.split():
            raise DemoFailed(f"the stream said {pieces}")
        if len(pieces) < 2 or arrivals[-1] - arrivals[0] < 0.5:
            raise DemoFailed("the pieces arrived together instead of one by one")

    def scale(self) -> None:
        query = "min_worker=2&max_worker=2&synchronous=true"
        answer = get_json(f"{self.management}/models/mnist?{query}", b"", method="PUT")
        print(f"  {answer['status']}")
        wait_until(lambda: self.ready_workers("mnist") == 2, START_LIMIT_S, "start a second worker")
        described = self.describe("mnist")
        described["workers"] = [
            {key: worker[key] for key in ("id", "status", "pid")} for worker in described["workers"]
        ]
        shown = ("modelName", "modelVersion", "minWorkers", "maxWorkers", "batchSize", "workers")
        print(f"  GET {self.management}/models/mnist ->")
        for key in shown:
            print(f"    {key}: {described[key]}")

    def stop(self) -> None:
        running = self.processes()
        print(f"  processes before: {describe_processes(running)}")
        if not running:
            raise DemoFailed("no process of this run found, so nothing would prove that it ended")
        began = time.monotonic()
        self.command("torchserve", "--stop", "--foreground")
        wait_until(lambda: not self.processes(), STOP_LIMIT_S, "end all processes")
        open_ports = [port for port in self.ports if is_open(port)]
        if open_ports:
            raise DemoFailed(f"ports still open: {open_ports}")
        print(f"  stopped in {time.monotonic() - began:.1f} s")
        print("  processes left: none; ports left open: none")

    def kill_what_is_left(self) -> None:
        """Ends what lives of this run after a failure half-way; after a good stop nothing does."""
        for process in self.processes():
            print(f"killing a leftover: {process}", file=sys.stderr)
            with contextlib.suppress(psutil.Error):
                process.kill()

    def command(self, *words: str | Path) -> None:
        """Runs an installed command; what it and the server print goes to the console log."""
        name, *arguments = map(str, words)
        program = Path(sys.executable).with_name(name)
        shown = " ".join(argument.replace(f"{ROOT}/", "") for argument in (name, *arguments))
        print(f"  $ {re.sub(re.escape(str(self.temp)), '<temp>', shown)}")
        with self.console.open("a") as console:
            result = subprocess.run(
                [program, *arguments],
                cwd=self.temp,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                timeout=90,
                check=False,
            )
        if result.returncode:
            raise DemoFailed(f"{name} ended with {result.returncode}")

    def describe(self, model: str) -> dict:
        return get_json(f"{self.management}/models/{model}")[0]

    def ready_workers(self, model: str) -> int:
        return sum(worker["status"] == "READY" for worker in self.describe(model)["workers"])

    def processes(self) -> list[psutil.Process]:
        """The live processes that carry this run's mark, the demo itself left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process.environ().get(RUN_MARK) == self.mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def free_ports(count: int) -> list[int]:
    """Ports free at this moment; all are held while choosing, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(is_done, limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not is_done():
        if time.monotonic() > deadline:
            raise DemoFailed(f"did not {what} within {limit_s:.0f} s")
        time.sleep(0.05)


def post(url: str, body: bytes, content_type: str, method: str = "POST") -> urllib.request.Request:
    return urllib.request.Request(
        url, data=body, headers={"Content-Type": content_type}, method=method
    )


def get_json(
    url: str, body: bytes | None = None, content_type: str = "text/plain", method: str = "POST"
):
    """The JSON answer of a GET, or of a POST or PUT where a body is given."""
    request = url if body is None else post(url, body, content_type, method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def explanation_form(image: bytes, target: int) -> tuple[bytes, str]:
    """A form of the image and the class to explain: body and content type.

    The class is a part with a JSON content type, so it reaches the handler as a number; a plain
    form field would arrive as bytes.
    """
    boundary = uuid.uuid4().hex
    head = 'Content-Disposition: form-data; name="{0}"; filename="{0}"\r\nContent-Type: {1}\r\n\r\n'
    body = b"".join(
        [
            f"--{boundary}\r\n{head.format('data', 'image/png')}".encode(),
            image,
            f"\r\n--{boundary}\r\n{head.format('target', 'application/json')}{target}".encode(),
            f"\r\n--{boundary}--\r\n".encode(),
        ]
    )
    return body, f"multipart/form-data; boundary={boundary}"


def flatten(nested) -> Iterator[float]:
    if isinstance(nested, list):
        for item in nested:
            yield from flatten(item)
    else:
        yield nested


def heat_map(attributions: list[float]) -> Image.Image:
    """28x28 picture: white no influence, red for, blue against; scaled to the strongest pixel."""
    if len(attributions) != 28 * 28:
        raise DemoFailed(f"expected an explanation of 28x28 numbers, got {len(attributions)}")
    strongest = max(map(abs, attributions)) or 1.0
    picture = Image.new("RGB", (28, 28))
    picture.putdata([colour(value / strongest) for value in attributions])
    return picture


def colour(strength: float) -> tuple[int, int, int]:
    """strength: -1 (blue) .. 0 (white) .. 1 (red)."""
    pale = round(255 * (1 - abs(strength)))
    return (255, pale, pale) if strength > 0 else (pale, pale, 255)


def contact_sheet(pairs: list[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Digit and heat map side by side, two pairs to a row, five times enlarged."""
    side, gap = 28 * 5, 10
    pair_width = 2 * side + 3 * gap
    rows = (len(pairs) + 1) // 2
    sheet = Image.new("RGB", (2 * pair_width, rows * (side + gap) + gap), "lightgray")
    for index, (digit, heat) in enumerate(pairs):
        row, column = divmod(index, 2)
        left, top = column * pair_width + gap, row * (side + gap) + gap
        for offset, picture in ((0, digit.convert("RGB")), (side + gap, heat)):
            enlarged = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + offset, top))
    return sheet


def describe_processes(processes: list[psutil.Process]) -> str:
    shown = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            shown.append(f"{process.pid} ({process.name()})")
    return ", ".join(shown) or "none"


if __name__ == "__main__":
    sys.exit(main())
