"""The main job over HTTP: register, predict, stream, batch; and what a client sees when it goes
wrong.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from serving import MODELS, RunningServer, archive, wait_until


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, server: RunningServer) -> None:
    for name in ("echo", "streams", "fails_on_predict", "wrong_length", "context_probe"):
        archive(store, name, MODELS / f"{name}.py")
        answer = server.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "status": f'Model "{name}" Version: 1.0 registered with 1 initial workers'
        }


def test_a_body_comes_back_with_torchserves_headers(server: RunningServer) -> None:
    answer = server.predict("echo", b"hello")
    assert answer.status_code == 200
    assert answer.content == b"hello"
    assert answer.headers["Pragma"] == "no-cache"
    assert answer.headers["Cache-Control"] == "no-cache; no-store, must-revalidate, private"
    assert answer.headers["Expires"] == "Thu, 01 Jan 1970 00:00:00 UTC"
    assert len(answer.headers["x-request-id"]) == 36
    assert "content-type" not in answer.headers


def test_the_version_may_be_named(server: RunningServer) -> None:
    assert server.predict("echo/1.0", b"x").content == b"x"
    missing = server.predict("echo/2.0", b"x")
    assert missing.status_code == 404
    assert missing.json() == {
        "code": 404,
        "type": "ModelVersionNotFoundException",
        "message": "Model version: 2.0 does not exist for model: echo",
    }


def test_an_unknown_model_is_named(server: RunningServer) -> None:
    answer = server.predict("nobody", b"x")
    assert answer.json() == {
        "code": 404,
        "type": "ModelNotFoundException",
        "message": "Model not found: nobody",
    }


def test_forms_become_named_parameters(server: RunningServer) -> None:
    answer = server.session.post(
        f"{server.inference}/predictions/echo", files={"data": ("a.bin", b"\x00\x01")}, timeout=20
    )
    assert answer.content == b"\x00\x01"
    assert server.predict("echo", {"data": "field"}).content == b"field"


@pytest.mark.parametrize("path", ["/v1/models/echo:predict", "/v2/models/echo/infer"])
def test_kserve_paths_reach_the_same_handler(server: RunningServer, path: str) -> None:
    body = json.dumps({"instances": [1]})
    answer = server.session.post(
        server.inference + path, data=body, headers={"content-type": "application/json"}, timeout=20
    )
    assert answer.status_code == 200
    assert answer.json() == {"instances": [1]}


def test_the_query_reaches_the_handler_on_the_invocation_paths_only(server: RunningServer) -> None:
    for path in ("/invocations?model_name=echo&data=q", "/models/echo/invoke?data=q"):
        assert server.session.post(server.inference + path, timeout=20).content == b"q"
    answer = server.session.post(f"{server.inference}/predictions/echo?data=q", timeout=20)
    assert answer.content == b""


def test_a_stream_comes_in_chunks(server: RunningServer) -> None:
    with server.session.post(
        f"{server.inference}/predictions/streams", data="3", stream=True, timeout=20
    ) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.headers["ts_stream_next"] == "true"
        chunks = list(answer.iter_content(chunk_size=None))
    assert len(chunks) == 4, chunks


def test_a_handler_chooses_status_headers_and_content_type(server: RunningServer) -> None:
    answer = server.predict("context_probe", b"x")
    assert answer.status_code == 200
    seen = answer.json()
    assert seen["headers"]["explain"] == "False"
    assert seen["headers"]["url_path"] == ""
    assert answer.headers["content-type"] == "application/json"


def test_requests_with_the_same_head_are_told_apart(server: RunningServer) -> None:
    """Several times, on one connection, head and body in one packet."""

    def ask(path: str, body: bytes, times: int) -> list[tuple[str, dict[str, Any]]]:
        answers = []
        for _ in range(times):
            head = f"POST {path} HTTP/1.1\r\nX-A: b\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sock.sendall(head.encode() + body)
            answer = http.client.HTTPResponse(connection.sock)
            answer.begin()
            answers.append((answer.headers["x-request-id"], json.loads(answer.read())))
        return answers

    place = urlsplit(server.inference)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
    connection.connect()
    with contextlib.closing(connection):
        probes = ask("/predictions/context_probe", b"x", 5)
        explained = ask("/explanations/context_probe/1.0/rest?a=b", b"x", 5)
        bodies = [ask("/predictions/echo", b"%d" % number, 1)[0][1] for number in range(5)]
    assert bodies == list(range(5))
    assert len({request_id for request_id, _ in probes + explained}) == 10
    for request_id, seen in probes + explained:
        assert seen["request_id"] == request_id
    headers = [seen["headers"] for _, seen in probes]
    assert headers == [headers[0]] * 5
    assert headers[0]["X-A"] == "b"
    assert (headers[0]["explain"], headers[0]["url_path"]) == ("False", "")
    headers = [seen["headers"] for _, seen in explained]
    assert headers == [headers[0]] * 5
    assert headers[0]["explain"] == "True"
    assert (headers[0]["url_path"], headers[0]["url_query"]) == ("rest", "a=b")


def test_a_failing_handler_is_a_503_and_the_worker_lives_on(server: RunningServer) -> None:
    pid = server.worker_pids("fails_on_predict")
    answer = server.predict("fails_on_predict", b"x")
    assert answer.json() == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
    }
    assert server.worker_pids("fails_on_predict") == pid


def test_a_wrong_length_fails_the_batch(server: RunningServer) -> None:
    answer = server.predict("wrong_length", b"x")
    assert answer.status_code == 503
    assert answer.json()["message"] == "number of batch response mismatched"


def test_a_thousand_mixed_requests_get_their_own_answers(
    server: RunningServer, store: Path
) -> None:
    archive(store, "ids", MODELS / "ids.py")
    registered = server.register("ids.mar", initial_workers=2, batch_size=8, max_batch_delay=5)
    assert registered.status_code == 200
    kinds = ("json", "raw", "multipart", "form", "large")

    def ask(number: int) -> tuple[int, str]:
        kind, mark = kinds[number % len(kinds)], f"id-{number}"
        session = sessions[number % 32]
        url = f"{server.inference}/predictions/ids"
        if kind == "json":
            answer = session.post(url, json={"id": mark}, timeout=60)
        elif kind == "multipart":
            answer = session.post(url, files={"data": ("f", mark.encode())}, timeout=60)
        elif kind == "form":
            answer = session.post(url, data={"data": mark}, timeout=60)
        elif kind == "large":
            answer = session.post(url, data=mark.encode().ljust(100_000), timeout=60)
        else:
            answer = session.post(url, data=mark.encode(), timeout=60)
        assert answer.status_code == 200, answer.text
        return number, answer.text

    sessions = [requests.Session() for _ in range(32)]
    lanes = [range(lane, 1000, 32) for lane in range(32)]
    with ThreadPoolExecutor(32) as clients:
        answers = [
            pair
            for pairs in clients.map(lambda lane: [ask(number) for number in lane], lanes)
            for pair in pairs
        ]
    assert len(answers) == 1000
    wrong = [(number, text) for number, text in answers if text.strip() != f"id-{number}"]
    assert wrong == []


def test_serve_727_the_log_keeps_the_level_of_what_a_handler_logs(server: RunningServer) -> None:
    server.predict("fails_on_predict", b"x")
    lines = (server.folder / "logs" / "model_log.log").read_text
    wait_until(lambda: "ValueError: this handler always fails" in lines(), what="the traceback")
    (last,) = {
        line.partition(" MODEL_LOG - ")[0].partition(" ")[2]
        for line in lines().splitlines()
        if line.endswith("ValueError: this handler always fails")
    }
    assert last.startswith("[WARN ] W-90")
    assert last.endswith("-fails_on_predict_1.0-stdout")
