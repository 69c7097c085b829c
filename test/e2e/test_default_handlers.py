"""The default handlers and every envelope answer as in TorchServe 0.12, from the same archives.

Opt-in: needs an environment with `torchserve` 0.12, torchvision and captum (and Java):

    TORCHSERVE_PYTHON=<environment>/bin/python pytest -m torchserve test/e2e/test_default_handlers.py
"""  # noqa: E501

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from PIL import Image
from serving import MODELS, ROOT, archive
from their_server import start_both

pytestmark = [
    pytest.mark.torchserve,
    pytest.mark.skipif(
        "TORCHSERVE_PYTHON" not in os.environ, reason="TORCHSERVE_PYTHON is not set"
    ),
]
DOCUMENTED = MODELS / "documented"
SHAPES = ROOT / "examples" / "object_detector" / "shapes"
SEGMENTER = ROOT / "examples" / "image_segmenter" / "shapes"
TOPICS = ROOT / "examples" / "text_classification"
DEFAULTS = ("classifier", "detector", "segmenter", "topics")
ENVELOPES = ("body", "json", "kserve", "kservev2")
# Numbers of two processes that run the same kernels; pictures are resized by Pillow in both.
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}


def picture(mode: str, width: int, height: int) -> bytes:
    """A PNG with detail everywhere."""
    values = bytes(
        value % 256
        for y in range(height)
        for x in range(width)
        for value in (x * 7 + y * 13, x * y, x * x + y)
    )
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), values).convert(mode).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Question:
    """One request; both servers must answer it with the same status and (nearly) the same JSON."""

    model: str
    path: str = "predictions/{model}"
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    form: dict[str, Any] | None = None


WIDE, HIGH = picture("RGB", 320, 240), picture("RGB", 90, 301)
JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
SENTENCE = b"The striker scored in the last minute of the match"
EXPLAIN = "explanations/{model}"
QUESTIONS = {
    "classify": Question("classifier", body=WIDE),
    "classify-high": Question("classifier", body=HIGH),
    "classify-form": Question("classifier", form={"data": ("a.png", HIGH)}),
    "classify-base64": Question(
        "classifier", body=json.dumps({"data": base64.b64encode(WIDE).decode()}), headers=JSON
    ),
    "classify-values": Question(
        "classifier", body=json.dumps({"data": [[[0.5] * 8] * 8] * 3}), headers=JSON
    ),
    "classify-no-image": Question("classifier", body=b"no image"),
    "explain-image": Question("classifier", EXPLAIN, WIDE),
    "explain-image-target": Question(
        "classifier",
        EXPLAIN,
        form={"data": ("a.png", WIDE), "target": ("target", "3", "application/json")},
    ),
    "detect": Question("detector", body=(SHAPES / "shapes.png").read_bytes()),
    "segment": Question("segmenter", body=(SHAPES / "shapes.png").read_bytes()),
    "text": Question("topics", body=SENTENCE, headers=TEXT),
    "text-cleaned": Question(
        "topics",
        body="&amp;<b>Scored</b> in   the, LAST minute of the m\u00e4tch!".encode(),
        headers=TEXT,
    ),
    "text-bytes": Question("topics", form={"data": SENTENCE}),
    "text-typed-field": Question("topics", form={"data": (None, SENTENCE, "text/plain")}),
    "explain-text": Question("topics", EXPLAIN, SENTENCE, TEXT),
    "explain-text-target": Question(
        "topics",
        EXPLAIN,
        form={
            "data": ("data", SENTENCE, "text/plain"),
            "target": ("target", "2", "application/json"),
        },
    ),
}
# Where TorchServe fails (503), and what ours answers: docs/compatibility.md.
BETTER = {
    "classify-grey": (Question("classifier", body=picture("L", 50, 50)), 200),
    "explain-image-form-target": (
        Question("classifier", EXPLAIN, form={"data": ("a.png", WIDE), "target": (None, "3")}),
        200,
    ),
    "unknown-word": (Question("topics", body=b"zyzzyva match", headers=TEXT), 200),
}
V1 = {"instances": [{"data": [1, 2], "target": 2}, {"data": [3, 4]}]}
V2 = {
    "id": "seven",
    "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]}],
}
ENVELOPE_QUESTIONS = {
    "body": [Question("rows", body=b"[1, 2]"), Question("rows", body=b"[1, 2]", headers=JSON)],
    "json": [
        Question("rows", body=b'{"instances": [[1, 2], [3, 4]]}', headers=JSON),
        Question("rows", body=b'{"instances": [{"b64": "WzEsIDJd"}]}', headers=JSON),
    ],
    "kserve": [
        Question("rows", path, json.dumps(V1), JSON)
        for path in ("v1/models/{model}:predict", "v1/models/{model}:explain",
                     "predictions/{model}", "explanations/{model}")
    ],
    "kservev2": [
        Question("rows", path, json.dumps(V2), JSON)
        for path in ("v2/models/{model}/infer", "predictions/{model}", "explanations/{model}")
    ],
}  # fmt: skip


def ask(inference: str, question: Question) -> requests.Response:
    return requests.post(
        f"{inference}/{question.path.format(model=question.model)}",
        data=question.body,
        files=question.form,
        headers=question.headers,
        timeout=60,
    )


def nearly(value: Any) -> Any:
    """The value, whose numbers may differ by rounding."""
    if isinstance(value, dict):
        return {key: nearly(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, float | int) for item in value):
            return pytest.approx(value, **TOLERANCE)
        return [nearly(item) for item in value]
    return pytest.approx(value, **TOLERANCE) if isinstance(value, float) else value


def check_same(one: requests.Response, other: requests.Response) -> None:
    assert one.status_code == other.status_code, (one.text[:300], other.text[:300])
    assert one.headers.get("Content-Type") == other.headers.get("Content-Type")
    try:
        expected = other.json()
    except ValueError:
        assert one.content == other.content
        return
    assert one.json() == nearly(expected)
    if isinstance(expected, dict):
        assert list(one.json()) == list(expected)  # the best label first


@pytest.fixture(scope="module")
def their_python() -> Path:
    python = Path(os.environ["TORCHSERVE_PYTHON"])
    check = subprocess.run(
        [python, "-W", "ignore", "-c", "import captum, torchvision"], capture_output=True, cwd="/"
    )
    if check.returncode:
        pytest.skip("the environment of TORCHSERVE_PYTHON has no torchvision or no captum")
    return python


@pytest.fixture(scope="module")
def filled_store(store: Path) -> Path:
    def pack(name: str, handler: str | Path, model: Path, **more: str) -> None:
        archive(store, name, handler, model_file=str(model), **more)

    pack("classifier", "image_classifier", DOCUMENTED / "colour_model.py")
    pack("detector", "object_detector", SHAPES / "colour_detector.py",
         extra_files=str(SHAPES / "index_to_name.json"))  # fmt: skip
    pack("segmenter", "image_segmenter", SEGMENTER / "colour_segmenter.py")
    pack("topics", "text_classifier", TOPICS / "topic_model.py",
         serialized_file=str(TOPICS / "topic_model.pt"),
         extra_files=f"{TOPICS / 'index_to_name.json'},{TOPICS / 'source_vocab.pt'}")  # fmt: skip
    weights = store / "weights.pt"
    torch.save({"factor": torch.tensor(3.0), "mix.weight": torch.eye(2)}, weights)
    pack("rows", DOCUMENTED / "enveloped_rows.py", DOCUMENTED / "double_model.py",
         serialized_file=str(weights))  # fmt: skip
    return store


@pytest.fixture(scope="module")
def both(
    filled_store: Path, tmp_path_factory: pytest.TempPathFactory, their_python: Path
) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("both")
    ours, theirs = start_both(folder, filled_store, their_python, DEFAULTS)
    yield ours.inference, theirs.inference
    theirs.stop()
    ours.stop_and_leave_nothing()


@pytest.mark.parametrize("name", QUESTIONS)
def test_default_handlers(both: tuple[str, str], name: str) -> None:
    one, other = (ask(inference, QUESTIONS[name]) for inference in both)
    check_same(one, other)


@pytest.mark.parametrize("name", BETTER)
def test_what_fails_there(both: tuple[str, str], name: str) -> None:
    question, status = BETTER[name]
    assert [ask(inference, question).status_code for inference in both] == [status, 503]


@pytest.fixture(scope="module", params=ENVELOPES)
def enveloped(
    request: pytest.FixtureRequest,
    filled_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    their_python: Path,
) -> Iterator[tuple[str, str, str]]:
    folder = tmp_path_factory.mktemp(request.param)
    ours, theirs = start_both(
        folder, filled_store, their_python, ("rows",), service_envelope=request.param
    )
    yield request.param, ours.inference, theirs.inference
    theirs.stop()
    ours.stop_and_leave_nothing()


def test_envelopes(enveloped: tuple[str, str, str]) -> None:
    envelope, ours, theirs = enveloped
    for question in ENVELOPE_QUESTIONS[envelope]:
        check_same(ask(ours, question), ask(theirs, question))
