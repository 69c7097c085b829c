"""What handlers are given and may answer is what TorchServe 0.12 gives them and makes of it.

Opt-in: the same archives are served by both, and every answer is compared.

    TORCHSERVE_PYTHON=<environment>/bin/python pytest -m torchserve test/e2e/test_handler_contract.py
"""  # noqa: E501

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from serving import MODELS, archive
from their_server import start_both

pytestmark = [
    pytest.mark.torchserve,
    pytest.mark.skipif(
        "TORCHSERVE_PYTHON" not in os.environ, reason="TORCHSERVE_PYTHON is not set"
    ),
]
FOLDER = MODELS / "documented"
# Headers that the client's library and the connection bring, different for each request.
VOLATILE = {"host", "content-type", "content-length", "user-agent", "accept", "connection"}
VOLATILE |= {"accept-encoding"}

BODIES = {
    "json": b'{"a": [1, 2.5, null, "\xc3\xa9"]}',
    "list": b"[1]",
    "string": b'"s"',
    "number": b"3",
    "no-json": b"not json",
    "no-text": b"\xff\xfe",
    "empty": b"",
}
TYPES = (
    *(None, "application/json", "application/json; charset=utf-8", "text/plain"),
    *("text/csv; charset=latin-1", "text/html", "application/octet-stream", "image/png"),
    *("application/jsonl", "no type"),
)
FORM = {
    "file": ("a.png", b"\0\1", "image/png"),
    "json-file": ("j.json", b'{"x": 1}', "application/json"),
    "text-file": ("t.txt", "\u00e9".encode(), "text/plain"),
    "untyped-file": ("u", b"u"),
    "field": (None, b"v"),
    "typed-field": (None, b'{"x": 1}', "application/json"),
    "text-field": (None, b"text", "text/plain"),
}
ANSWERS = (
    *("text", "bytes", "bytearray", "empty", "number", "float", "none", "true", "dict"),
    *("int-keys", "list", "tuple-inside", "nan", "infinite", "no-list", "tuple", "nothing"),
    *("too-few", "too-many", "object", "object-inside", "set", "zero-dim", "refused"),
    *("refused-plainly", "value-error", "key-error", "memory", "cuda", "cuda-value", "status"),
    *("status-by-name", "content-type", "header", "header-twice", "type-by-header"),
    "unknown",
)


@pytest.fixture(scope="module")
def both(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    config = store / "config.yaml"
    config.write_text("handler:\n  a: 1\n  b: [x, 1.5, null]\n")
    archive(store, "probe", FOLDER / "probe.py", config_file=str(config))
    archive(store, "returns", FOLDER / "returns.py")
    folder, python = tmp_path_factory.mktemp("both"), Path(os.environ["TORCHSERVE_PYTHON"])
    ours, theirs = start_both(folder, store, python, ("probe", "returns"))
    yield ours.inference, theirs.inference
    theirs.stop()
    ours.stop_and_leave_nothing()


def seen(inference: str, path: str, **options: Any) -> dict[str, Any]:
    """What the probe saw of a request."""
    method = options.pop("method", "POST")
    answer = requests.request(method, f"{inference}/{path}", timeout=30, **options)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    headers = found["headers"].items()
    found["headers"] = {name: text for name, text in headers if name.lower() not in VOLATILE}
    return found


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("body", BODIES)
def test_bodies(both: tuple[str, str], body: str, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    ours, theirs = (
        seen(inference, "predictions/probe", data=BODIES[body], headers=headers)
        for inference in both
    )
    assert ours == theirs


@pytest.mark.parametrize("name", FORM)
def test_form_parts(both: tuple[str, str], name: str) -> None:
    ours, theirs = (
        seen(inference, "predictions/probe", files={"part": FORM[name]}) for inference in both
    )
    assert ours == theirs


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "get": ("predictions/probe", {"method": "GET"}),
    "put": ("predictions/probe", {"method": "PUT", "data": b"x"}),
    "version": ("predictions/probe/1.0", {"data": b"x"}),
    "url-path": ("predictions/probe/1.0/a/b", {"data": b"x"}),
    "explain": ("explanations/probe", {"data": b"x"}),
    "urlencoded": ("predictions/probe", {"data": {"a": "1", "b": "\u00e9 +"}}),
    "headers": ("predictions/probe", {"data": b"x", "headers": {"X-Own": "1", "x-other": "Two"}}),
    "v1": ("v1/models/probe:predict", {"json": {"instances": [1]}}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(both: tuple[str, str], name: str) -> None:
    path, options = REQUESTS[name]
    ours, theirs = (seen(inference, path, **dict(options)) for inference in both)
    assert ours == theirs


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(both: tuple[str, str], name: str) -> None:
    ours, theirs = (
        requests.post(
            f"{inference}/predictions/returns",
            data=name.encode(),
            headers={"Content-Type": "text/plain"},
            timeout=30,
        )
        for inference in both
    )
    assert ours.status_code == theirs.status_code
    for header in ("Content-Type", "X-Own"):
        assert ours.headers.get(header) == theirs.headers.get(header)
    if theirs.headers.get("Content-Type") == "application/json":
        assert json.loads(ours.content) == json.loads(theirs.content)
    else:
        assert ours.content == theirs.content
    if theirs.status_code < 400 or name == "status":
        assert ours.reason == theirs.reason
