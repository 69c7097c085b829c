"""Handlers that yield stream their answers; a stream that nobody reads is closed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from serving import MODELS, RunningServer, archive, wait_until

CONFIGS = {
    "yields": ("yields", ""),
    "yields_slowly": ("yields_async", ""),  # an asynchronous generator in a plain worker
    "yields_async": ("yields_async", "asyncCommunication: true\n"),
    "yields_each": ("yields_each", "batchSize: 4\nmaxBatchDelay: 2000\n"),
}


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("config")
    for name, (handler, lines) in CONFIGS.items():
        config = folder / f"{name}.yaml"
        config.write_text(f"minWorkers: 1\nmaxWorkers: 1\n{lines}")
        archive(store, name, MODELS / f"{handler}.py", config_file=str(config))
        answer = server.register(f"{name}.mar")
        assert answer.status_code == 200, answer.text


def ask(server: RunningServer, model: str, text: str) -> requests.Response:
    return requests.post(
        f"{server.inference}/predictions/{model}", data=text.encode(), stream=True, timeout=60,
        headers={"Content-Type": "application/octet-stream"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("yields", ["one", "two", "three"]),
        ("yields_slowly", ["Begin", "one", "two", "three"]),
        ("yields_async", ["Begin", "one", "two", "three"]),
    ],
)
def test_what_is_yielded_comes_in_chunks(
    server: RunningServer, model: str, words: list[str]
) -> None:
    with ask(server, model, "one two three") as answer:
        assert answer.status_code == 200
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert b"".join(answer.iter_content(chunk_size=None)).decode() == "".join(words)


def test_headers_are_those_of_the_first_piece(server: RunningServer) -> None:
    with ask(server, "yields", "a b") as answer:
        assert answer.headers["Content-Type"] == "text/plain"


def test_a_stream_without_pieces_is_an_empty_answer(server: RunningServer) -> None:
    with ask(server, "yields", " ") as answer:
        assert (answer.status_code, answer.content) == (200, b"")


def test_the_requests_of_a_batch_stream_each_their_own(server: RunningServer) -> None:
    texts = ["abc", "", "x", "longer than the others"]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda text: ask(server, "yields_each", text).text, texts))
    assert answers == ["abc/4", "nothing", "x/4", "longer than the others/4"]


@pytest.mark.parametrize("model", ["yields", "yields_slowly", "yields_async"])
def test_a_stream_that_nobody_reads_is_closed(
    server: RunningServer, model: str, tmp_path: Path
) -> None:
    mark = tmp_path / "closed"
    with ask(server, model, f"forever:{mark}") as answer:
        assert next(answer.iter_content(chunk_size=100)).startswith(b"...")
    wait_until(mark.exists, 20, f"the generator's end; the log:\n{server.tail()}")
    # The worker is free, and the same.
    with ask(server, model, "after") as answer:
        assert answer.text.endswith("after")
