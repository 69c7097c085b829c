"""Handlers as TorchServe's documentation writes them run unmodified, and answer as they do there.

The second half is opt-in: it serves the same archives in TorchServe 0.12 of PyPI and compares.

    TORCHSERVE_PYTHON=<environment>/bin/python pytest -m torchserve test/e2e/test_documented_handlers.py
"""  # noqa: E501

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from serving import MODELS, RunningServer, archive, start_server, wait_until
from their_server import find_home, start_their_server

FOLDER = MODELS / "documented"
PLAIN = (
    *("base_subclass", "initialize_and_handle", "module_function", "custom_metrics", "streaming"),
    *("micro_batches", "explaining", "async_class", "base_handler"),
)
ENVELOPED = ("enveloped",)
CONFIGS = {
    "micro_batches": "micro_batching:\n  micro_batch_size: 2\n  parallelism:\n    inference: 2\n",
    "async_class": "asyncCommunication: true\n",
}


@dataclass(frozen=True)
class Question:
    """One request and what must come back; `json` is the body of the answer, or `text`."""

    model: str
    path: str = "predictions"
    body: Any = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/octet-stream"),)
    status: int = 200
    json: Any = None
    text: str | None = None


JSON = (("Content-Type", "application/json"),)
QUESTIONS = [
    Question(
        "base_subclass",
        body=b"[1, 2]",
        json={"values": [3.0, 6.0], "labels": {"0": "first", "1": "second"}},
    ),
    Question(
        "base_subclass",
        body=b"[1, 2]",
        headers=JSON,
        json={"values": [3.0, 6.0], "labels": {"0": "first", "1": "second"}},
    ),
    Question(
        "initialize_and_handle",
        body=b"what",
        headers=(("Content-Type", "text/plain"), ("X-Question", "why")),
        text="what why 3.0 initialize_and_handle",
    ),
    Question(
        "initialize_and_handle",
        body=b"teapot",
        status=418,
        text="teapot None 3.0 initialize_and_handle",
    ),
    Question("module_function", body=b"2.5", json=7.5),
    Question(
        "module_function",
        body=b"no number",
        status=503,
        json={
            "code": 503,
            "type": "InternalServerException",
            "message": "Prediction failed",
        },
    ),
    Question("custom_metrics", body=b"12345", text="HandlerCalls Count ['Level', 'Kind']"),
    Question("streaming", body=b"x", text="piece 0;piece 1;piece 2;end"),
    Question("micro_batches", body=b"4", json=12.0),
    Question("explaining", body=b"4", json=12.0),
    Question(
        "explaining",
        "explanations",
        b"4",
        json={"gradient": [3.0, 0.0], "of": "4", "target": 0},
    ),
    Question(
        "explaining",
        body=b"four",
        status=415,
        json={
            "code": 415,
            "type": "InternalServerException",
            "message": "not a number: four",
        },
    ),
    Question("async_class", body=b"you", text="hello hello you"),
]
ENVELOPED_QUESTIONS = [
    Question(
        "enveloped",
        body=b'{"instances": [[1, 2], [3, 4]]}',
        headers=JSON,
        json={"predictions": [[3.0, 6.0], [9.0, 12.0]]},
    ),
]


def ask(inference: str, question: Question) -> requests.Response:
    return requests.post(
        f"{inference}/{question.path}/{question.model}",
        data=question.body,
        headers=dict(question.headers),
        timeout=60,
    )


def fill(store: Path) -> None:
    """The archives, made once for both servers."""
    weights = store / "weights.pt"
    torch.save({"factor": torch.tensor(3.0), "mix.weight": torch.eye(2)}, weights)
    (store / "index_to_name.json").write_text('{"0": "first", "1": "second"}')
    for name in (*PLAIN, *ENVELOPED):
        handler = FOLDER / f"{name}.py"
        more: dict[str, str] = {}
        if name in CONFIGS:
            config = store / f"{name}.yaml"
            config.write_text(CONFIGS[name])
            more["config_file"] = str(config)
        if name == "base_subclass":
            more["extra_files"] = str(store / "index_to_name.json")
        archive(
            store,
            name,
            f"{handler}:answer"
            if name == "module_function"
            else handler
            if handler.exists()
            else name,
            model_file=str(FOLDER / "double_model.py"),
            serialized_file=str(weights),
            **more,
        )


def check(response: requests.Response, question: Question) -> None:
    assert response.status_code == question.status, response.text
    if question.json is not None:
        assert response.json() == question.json
    else:
        assert response.text == question.text


@pytest.fixture(scope="module")
def filled_store(store: Path) -> Path:
    fill(store)
    return store


def start_ours(folder: Path, store: Path, models: tuple[str, ...], **keys: object) -> RunningServer:
    running = start_server(folder, store, default_workers_per_model=1, **keys)
    for name in models:
        answer = running.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, running.tail()
    return running


@pytest.fixture(scope="module")
def ours(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_ours(tmp_path_factory.mktemp("ours"), filled_store, PLAIN)
    yield running
    assert running.stop() == 0, running.tail()


@pytest.fixture(scope="module")
def ours_enveloped(
    filled_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("ours-enveloped")
    running = start_ours(folder, filled_store, ENVELOPED, service_envelope="json")
    yield running
    assert running.stop() == 0, running.tail()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.model)
def test_ours(ours: RunningServer, question: Question) -> None:
    check(ask(ours.inference, question), question)


@pytest.mark.parametrize("question", ENVELOPED_QUESTIONS, ids=lambda question: question.model)
def test_ours_with_an_envelope(ours_enveloped: RunningServer, question: Question) -> None:
    check(ask(ours_enveloped.inference, question), question)


def described(management: str) -> Any:
    answer = requests.get(f"{management}/models/base_subclass?customized=true", timeout=60)
    return answer.json()[0]["customizedMetadata"]["inputs"]


def test_ours_describes(ours: RunningServer) -> None:
    assert described(ours.management) == 2


def metric_lines(folder: Path) -> set[str]:
    """What custom_metrics.py wrote, from the server's metric log: name, unit, value, dimensions."""
    names = ("Requests", "PreTime", "InputSize", "Load", "Depth", "Complaints", "HandlerCalls")
    lines = (folder / "logs" / "model_metrics.log").read_text().splitlines()
    found = (re.search(rf" - ((?:{'|'.join(names)})\..*?)\|#hostname", line) for line in lines)
    return {match.group(1) for match in found if match}


@pytest.fixture(scope="module")
def their_python() -> Path:
    if "TORCHSERVE_PYTHON" not in os.environ:
        pytest.skip("TORCHSERVE_PYTHON is not set")
    return Path(os.environ["TORCHSERVE_PYTHON"])


@pytest.mark.torchserve
def test_torchserve_answers_the_same(
    filled_store: Path, tmp_path: Path, their_python: Path
) -> None:
    their_home = find_home(their_python)
    detect = {"model_metrics_auto_detect": "true"}
    theirs = start_their_server(
        *(tmp_path / "theirs", filled_store, their_home, PLAIN),
        home=their_home,
        python=str(their_python),
        **detect,
    )
    ours = None
    try:
        ours = start_ours(tmp_path / "ours", filled_store, PLAIN, **detect)
        for question in QUESTIONS:
            one, other = ask(ours.inference, question), ask(theirs.inference, question)
            check(other, question)
            assert (one.status_code, one.content, one.reason) == (
                other.status_code,
                other.content,
                other.reason,
            ), question
            for name in ("Content-Type", "x-length"):
                assert one.headers.get(name) == other.headers.get(name), (question, name)
        assert described(ours.management) == described(theirs.management) == 2
        for folder in (theirs.folder, ours.folder):
            wait_until(lambda of=folder: len(metric_lines(of)) >= 7, 20, f"metrics in {folder}")
        assert metric_lines(ours.folder) == metric_lines(theirs.folder)
    finally:
        theirs.stop()
        if ours is not None:
            ours.stop()


@pytest.mark.torchserve
def test_torchserve_answers_the_same_with_an_envelope(
    filled_store: Path, tmp_path: Path, their_python: Path, ours_enveloped: RunningServer
) -> None:
    their_home = find_home(their_python)
    theirs = start_their_server(
        *(tmp_path / "theirs", filled_store, their_home, ENVELOPED),
        home=their_home,
        python=str(their_python),
        service_envelope="json",
    )
    try:
        for question in ENVELOPED_QUESTIONS:
            one, other = ask(ours_enveloped.inference, question), ask(theirs.inference, question)
            check(other, question)
            assert (one.status_code, one.content) == (other.status_code, other.content)
    finally:
        theirs.stop()
