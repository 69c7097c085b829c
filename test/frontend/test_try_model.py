"""`torchserve --try`, run as a person runs it: what it shows, its status, what is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import MODELS, SOURCE_PATHS, archive, wait_until

from ts_frontend.try_model import printable

Run = Callable[..., subprocess.CompletedProcess[bytes]]
COMMAND = [sys.executable, "-m", "ts.model_server", "--try"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "temp").mkdir()
    paths = os.pathsep.join(SOURCE_PATHS)
    return {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path / "temp")}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """run(model, flags...) is `torchserve --try`; the folders are as before when it has ended."""
    (tmp_path / "here").mkdir()

    def run(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        result = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=given,
            capture_output=True,
            cwd=tmp_path / "here",
            env=environment,
            timeout=60,
            check=False,
        )
        assert os.listdir(tmp_path / "temp") == []
        assert os.listdir(tmp_path / "here") == []
        return result

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_an_answer_goes_to_stdout_and_all_else_to_stderr(
    run: Run, store: Path, tmp_path: Path
) -> None:
    model = archive(store, "echo", MODELS / "echo.py")
    result = run(model, "--input", file(tmp_path, "a.bin", b'{"b": [1]}'))
    assert result.returncode == 0, result.stderr
    assert result.stdout == b'{\n  "b": [\n    1\n  ]\n}\n'
    notes = result.stderr.decode()
    assert "| Torch worker started." in notes
    assert "echo 1.0: process started in " in notes
    assert "model loaded in " in notes
    assert "a.bin: status 200, no content type, 10 bytes, " in notes


def test_inputs_make_one_batch_with_headers_and_types(
    run: Run, store: Path, tmp_path: Path
) -> None:
    archive(store, "probe", MODELS / "context_probe.py")
    inputs = [file(tmp_path, name, b"{}") for name in ("a.json", "b.txt")]
    flags = [word for path in inputs for word in ("--input", path)]
    result = run(
        *("probe.mar", "--model-store", store, *flags, "--explain"),
        *("--header", "X-Own: one:two", "--header", "want-status:201"),
    )
    assert result.returncode == 0, result.stderr
    decoder = json.JSONDecoder()
    text = result.stdout.decode()
    first, end = decoder.raw_decode(text)
    second, _ = decoder.raw_decode(text[end:].lstrip())
    assert (first["batch"], first["properties"]["batch_size"]) == (2, 2)
    assert first["headers"] == {
        "X-Own": "one:two",
        "want-status": "201",
        "explain": "True",
        "url_path": "",
        "content-type": "application/json",
    }
    assert second["headers"]["content-type"] == "text/plain"
    assert b"b.txt: status 201, application/json, " in result.stderr
    assert b"    x-probe: item 1\n" in result.stderr


def test_binary_answers_are_written_to_files(run: Run, store: Path, tmp_path: Path) -> None:
    model = archive(store, "echo", MODELS / "echo.py")
    body = bytes(range(256))
    path = file(tmp_path, "in.png", body)
    result = run(model, "--input", path)
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"in.png: status 200, no content type, 256 bytes" in result.stderr
    assert b"binary; --output FILE keeps it" in result.stderr

    out = tmp_path / "out.png"
    result = run(model, "--input", path, "--input", "-", "--output", out, given=b"second")
    assert (result.returncode, result.stdout) == (0, b"")
    assert out.read_bytes() == body
    assert (tmp_path / "out-2.png").read_bytes() == b"second"


@pytest.mark.parametrize("handler", ["streams.py", "streams_async.py"])
def test_a_stream_is_shown_piece_by_piece(
    run: Run, store: Path, tmp_path: Path, handler: str
) -> None:
    config = file(tmp_path, "c.yaml", b"asyncCommunication: true\n" if "async" in handler else b"")
    model = archive(store, "streams", MODELS / handler, config_file=str(config))
    result = run(model, "--input", file(tmp_path, "count", b"3"))
    assert result.returncode == 0, result.stderr
    assert result.stdout == b"chunk 0 chunk 1 chunk 2 end\n"
    assert b"4 pieces, the first after " in result.stderr


def test_repetitions_are_measured(run: Run, store: Path, tmp_path: Path) -> None:
    model = archive(store, "echo", MODELS / "echo.py")
    result = run(model, "--input", file(tmp_path, "a", b"x"), "--repeat", 20)
    assert (result.returncode, result.stdout) == (0, b"x\n")
    assert b"20 more: fastest " in result.stderr
    assert b" inputs/s one batch after the other" in result.stderr


def test_a_directory_is_tried_before_it_is_packed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "helper.py").write_text("ANSWER = 'from a module beside it'\n")
    (folder / "mine.py").write_text(
        "import helper\ndef handle(data, context):\n"
        "    return data and [helper.ANSWER] * len(data)\n"
    )
    path = file(tmp_path, "a", b"")
    result = run(folder, "--handler", "mine.py", "--input", path)
    assert (result.returncode, result.stdout) == (0, b"from a module beside it\n")
    assert sorted(os.listdir(folder)) == ["helper.py", "mine.py"]


def test_no_input_only_loads(run: Run, store: Path, tmp_path: Path) -> None:
    config = file(tmp_path, "c.yaml", b"minWorkers: 3\nmaxWorkers: 3\n")
    model = archive(store, "echo", MODELS / "echo.py", config_file=str(config))
    result = run(model)
    assert (result.returncode, result.stdout) == (0, b"")
    assert result.stderr.count(b"Torch worker started.") == 1  # one is enough


def test_a_model_with_sequences(run: Run, store: Path, tmp_path: Path) -> None:
    text = b"sequenceBatching: true\nsequenceMaxIdleMSec: 60000\nbatchSize: 2\n"
    config = file(tmp_path, "c.yaml", text)
    model = archive(store, "echo", MODELS / "echo.py", config_file=str(config))
    flags = ("--header", "ts_request_sequence_id: a", "--repeat", 2)
    result = run(model, "--input", file(tmp_path, "a", b"x"), *flags)
    assert (result.returncode, result.stdout) == (0, b"x\n"), result.stderr


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_failing_handler_is_shown_with_its_own_lines(
    run: Run, store: Path, tmp_path: Path
) -> None:
    model = archive(store, "fails", MODELS / "fails_on_predict.py")
    result = run(model, "--input", file(tmp_path, "a", b"x"), "--repeat", 5)
    assert (result.returncode, result.stdout) == (3, b"")
    notes = result.stderr.decode()
    assert '|   File "fails_on_predict.py", line 7, in handle\n|     raise ValueError' in notes
    assert (
        "a: status 503, Prediction failed\n"
        "    ValueError: this handler always fails\n"
        "    fails_on_predict.py, line 7, in handle\n"
    ) in notes
    assert "more: fastest" not in notes


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (
            "fails_on_load.py",
            "    RuntimeError: this handler never loads\n"
            "    fails_on_load.py, line 6, in initialize\n",
        ),
        (
            "fails_on_import.py",
            "    ModuleNotFoundError: No module named 'a_package_that_nobody_has'\n"
            "    fails_on_import.py, line 3, in <module>\n",
        ),
    ],
)
def test_a_model_that_does_not_load(run: Run, store: Path, handler: str, said: str) -> None:
    result = run(archive(store, "fails", MODELS / handler))
    assert (result.returncode, result.stdout) == (1, b"")
    assert "\nThe model was not loaded: " in result.stderr.decode()
    assert said in result.stderr.decode()
    assert b"it last said" not in result.stderr


def test_a_worker_that_dies(run: Run, store: Path, tmp_path: Path) -> None:
    model = archive(store, "dies", MODELS / "dies.py")
    result = run(model, "--input", file(tmp_path, "a", b"exit"))
    assert (result.returncode, result.stdout) == (3, b"")
    assert b"a: status 500, Worker died" in result.stderr
    assert result.stderr.count(b"Torch worker started.") == 1  # not run again


def test_an_archive_that_is_none(run: Run, tmp_path: Path) -> None:
    result = run(file(tmp_path, "text.mar", b"no archive"))
    assert result.returncode == 1
    assert b"The archive was refused: The file is no model archive" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.mar",), b"There is no archive nowhere.mar."),
        (("nowhere.mar", "--input", "none"), b"--input none: No such file or directory"),
        (("nowhere.mar", "--header", "x"), b"--header x: a header is written as NAME:VALUE"),
        (("nowhere.mar", "--repeat", "3"), b"needs an --input"),
        (("nowhere.mar", "--what"), b"unrecognized arguments: --what"),
        ((), b"--try: expected one argument"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...], said: bytes) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert said in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    store: Path, tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    model = archive(store, "sleeps", MODELS / "sleeps.py")
    temp = Path(environment["TMPDIR"])
    path = file(tmp_path, "a", b"60")
    with (tmp_path / "notes").open("wb") as notes:
        process = subprocess.Popen(
            [*COMMAND, str(model), "--input", str(path)],
            env=environment,
            stderr=notes,
            # A runner in the background ignores it, and so would whatever it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        wait_until(lambda: b"model loaded in" in (tmp_path / "notes").read_bytes(), 30, "the model")
        process.send_signal(number)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert os.listdir(temp) == []


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"a":"\xc3\xbc"}', '{\n  "a": "ü"\n}\n'.encode()),
        (b"plain", b"plain\n"),
        (b"line\n", b"line\n"),
        (b"", b""),
        (b"\x89PNG", None),
        (b"a\0b", None),
        (b"[" * 100_000, b"[" * 100_000 + b"\n"),
    ],
)
def test_what_is_shown_of_a_body(body: bytes, shown: bytes | None) -> None:
    assert printable(body) == shown
