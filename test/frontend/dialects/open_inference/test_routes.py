"""The protocol over HTTP, as its clients see it."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import struct
import threading
import zlib
from pathlib import Path

import pytest
from fake_planes import answers, fails, holds, is_describe, streams
from fakes import wait_until
from openapi_spec_validator import validate

from ts.protocol.tensors import ENVELOPE, JSON_LENGTH_HEADER, PART_TYPE
from ts_frontend.core import errors
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.job import JobState
from ts_frontend.core.model import TensorSpec
from ts_frontend.dialects.json_body import JSON
from ts_frontend.dialects.open_inference import routes
from ts_frontend.tokens import KeyKind, TokenAuthority

REQUEST = {
    "id": "7",
    "inputs": [{"name": "a", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}],
}
ANSWER = {
    "id": "7",
    "model_name": "m",
    "model_version": "1.0",
    "outputs": [{"name": "a", "datatype": "INT64", "data": [1, 2], "shape": [2]}],
}
ANSWERED = json.dumps(ANSWER).encode()
OFF = [{"open_inference": False}]


# What TorchServe serves, word for word.


async def test_the_server_describes_itself(rest) -> None:
    answer = await rest.get("/v2")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "name": "Torchserve",
        "version": "0.13.0",
        "extenstion": ["kserve", "kubeflow"],
        "extensions": ["kserve", "kubeflow", "binary_tensor_data"],
    }
    assert (await rest.get("/v2/")).json() == answer.json()


async def test_health(rest, fakes) -> None:
    assert (await rest.get("/v2/health/live")).text == '{\n  "live": true\n}\n'
    assert (await rest.get("/v2/health/ready")).text == '{\n  "ready": true\n}\n'
    fakes.add("m").healthy_count = 0
    assert (await rest.get("/v2/health/live")).json() == {"live": True}
    answer = await rest.get("/v2/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False})


@pytest.mark.parametrize("fakes", OFF, indirect=True)
async def test_switched_off_it_is_torchserves_own_path(rest, fakes) -> None:
    model = fakes.add("m", does=answers(b"[1]"))
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/m",
        "/v2/models/m/ready",
    ):
        answer = await rest.get(path)
        assert answer.status_code == 404
        assert answer.json()["type"] == "ResourceNotFoundException"
    answer = await rest.infer(b"no JSON at all")
    assert (answer.status_code, answer.content) == (200, b"[1]")
    assert model.requests == [{"body": b"no JSON at all"}]


# Models.


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models/m/versions/2.0"])
async def test_metadata_of_a_model(rest, fakes, path: str) -> None:
    tensors = {
        "inputs": (TensorSpec("a", "FP32", (-1, 3)),),
        "outputs": (TensorSpec("o", "BYTES", (1,)),),
    }
    fakes.add("m", "1.0", **tensors)
    fakes.add("m", "2.0", **tensors)
    assert (await rest.get(path)).json() == {
        "name": "m",
        "versions": ["1.0", "2.0"],
        "platform": "",
        "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "o", "datatype": "BYTES", "shape": [1]}],
    }


async def test_the_handler_is_asked_once_what_it_takes(rest, fakes) -> None:
    described = {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}], "outputs": "?"}
    model = fakes.add("m", does=answers(json.dumps(described).encode()))
    for _ in range(2):
        metadata = (await rest.get("/v2/models/m")).json()
        assert metadata["inputs"] == described["inputs"]
        assert metadata["outputs"] == []
    assert [is_describe(job) for job in model.jobs] == [True]


@pytest.mark.parametrize("does", [answers(b"no JSON"), fails(errors.ModelError(503, "no"))])
async def test_a_handler_that_cannot_tell_is_not_asked_again(rest, fakes, does) -> None:
    model = fakes.add("m", does=does)
    for _ in range(2):
        metadata = (await rest.get("/v2/models/m")).json()
        assert metadata["inputs"] == metadata["outputs"] == []
    assert len(model.jobs) == 1


async def test_metadata_does_not_wait_for_a_busy_worker(
    rest, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ts_frontend.dialects.open_inference.metadata.DESCRIBE_TIMEOUT_S", 0.05)
    model = fakes.add("m", does=holds)
    assert (await rest.get("/v2/models/m")).json()["inputs"] == []
    assert model.jobs[0].state is JobState.CANCELLED
    # Next time it may have more time.
    model.does = answers(b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}')
    assert (await rest.get("/v2/models/m")).json()["inputs"] != []


async def test_metadata_of_a_model_without_workers(rest, fakes) -> None:
    fakes.add("m").can_serve = False
    assert (await rest.get("/v2/models/m")).json()["name"] == "m"


async def test_readiness_of_a_model(rest, fakes) -> None:
    model = fakes.add("m")
    for path in ("/v2/models/m/ready", "/v2/models/m/versions/1.0/ready"):
        model.healthy_count = 1
        answer = await rest.get(path)
        assert (answer.status_code, answer.json()) == (200, {"name": "m", "ready": True})
        model.healthy_count = 0
        answer = await rest.get(path)
        assert (answer.status_code, answer.json()) == (503, {"name": "m", "ready": False})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v2/models/zz", "Model not found: zz"),
        ("/v2/models/zz/ready", "Model not found: zz"),
        ("/v2/models/zz/infer", "Model not found: zz"),
        ("/v2/models/m/versions/9", "Model version: 9 does not exist for model: m"),
        ("/v2/models/m/versions/9/ready", "Model version: 9 does not exist for model: m"),
        ("/v2/models/m/versions/9/infer", "Model version: 9 does not exist for model: m"),
    ],
)
async def test_what_is_not_there_is_told_in_the_protocols_form(rest, fakes, path, text) -> None:
    fakes.add("m")
    ask = rest.infer(REQUEST, path=path) if path.endswith("infer") else rest.get(path)
    answer = await ask
    assert (answer.status_code, answer.json()) == (404, {"error": text})
    assert answer.headers["content-type"] == "application/json"


# Inference.


async def test_a_json_request_goes_to_the_handler_as_it_came(rest, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    body = json.dumps(REQUEST, indent=1).encode()
    answer = await rest.infer(body)
    assert answer.status_code == 200
    assert answer.content == ANSWERED
    assert answer.headers["content-type"] == "application/json"
    assert model.requests == [{"body": body}]
    (job,) = model.jobs
    assert job.request.parts[0].content_type == b"application/json"
    assert model.headers[0]["explain"] == "False"
    assert model.headers[0]["content-type"] == "application/json"


async def test_the_version_may_be_named(rest, fakes) -> None:
    fakes.add("m", "1.0", answers(b"one"))
    fakes.add("m", "2.0", answers(b"two"))
    assert (await rest.infer(REQUEST)).content == b"one"
    second = await rest.infer(REQUEST, path="/v2/models/m/versions/2.0/infer")
    assert second.content == b"two"


async def test_binary_tensors_both_ways(rest, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    request = {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {
                "name": "a",
                "shape": [2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 8},
            },
            {
                "name": "b",
                "shape": [1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": 7},
            },
        ],
    }
    answer = await rest.infer(request, struct.pack("<2f", 1.5, 2), b"\x03\0\0\0abc")
    assert json.loads(model.requests[0]["body"]) == {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": "a", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]},
            {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["YWJj"]},
        ],
    }
    assert answer.headers["content-type"] == "application/octet-stream"
    json_bytes = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:json_bytes]) == {
        **ANSWER,
        "outputs": [
            {
                "name": "a",
                "datatype": "INT64",
                "shape": [2],
                "parameters": {"binary_data_size": 16},
            }
        ],
    }
    assert answer.content[json_bytes:] == struct.pack("<2q", 1, 2)


async def test_large_tensors_are_converted_beside_the_event_loop(
    rest, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    converted = routes.convert.read_http

    def read(*arguments):
        threads.append(threading.current_thread())
        return converted(*arguments)

    monkeypatch.setattr(routes.convert, "read_http", read)
    fakes.add("m", does=answers(ANSWERED))
    for count in (2, 100_000):
        tensor = {
            "name": "a",
            "shape": [count],
            "datatype": "FP32",
            "parameters": {"binary_data_size": 4 * count},
        }
        answer = await rest.infer({"inputs": [tensor]}, bytes(4 * count))
        assert answer.status_code == 200
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_requested_outputs(rest, fakes) -> None:
    fakes.add("m", does=answers(ANSWERED))
    answer = await rest.infer({**REQUEST, "outputs": [{"name": "a"}]})
    assert answer.json() == ANSWER
    answer = await rest.infer({**REQUEST, "outputs": [{"name": "b"}]})
    assert answer.status_code == 400
    assert 'no output "b"' in answer.json()["error"]


async def test_an_undeclared_output_is_refused_before_the_model_runs(rest, fakes) -> None:
    model = fakes.add("m", outputs=(TensorSpec("a", "INT64", (-1,)),))
    answer = await rest.infer({**REQUEST, "outputs": [{"name": "b"}]})
    assert answer.status_code == 400
    assert model.jobs == []


async def test_an_answer_of_another_form_is_the_clients_to_read(rest, fakes) -> None:
    """Handlers that do not use the envelope keep working, as in TorchServe."""
    fakes.add("m", does=answers(b"<p>", content_type=b"text/html"))
    answer = await rest.infer(REQUEST)
    assert (answer.content, answer.headers["content-type"]) == (b"<p>", "text/html")
    answer = await rest.infer({**REQUEST, "parameters": {"binary_data_output": True}})
    assert answer.status_code == 500
    assert "not an Open Inference response" in answer.json()["error"]


async def test_a_status_that_the_handler_chose_is_the_answers(rest, fakes) -> None:
    fakes.add("m", does=answers(b"too hot", status=418))
    answer = await rest.infer({**REQUEST, "parameters": {"binary_data_output": True}})
    assert (answer.status_code, answer.content) == (418, b"too hot")


async def test_a_streamed_answer_is_joined(rest, fakes) -> None:
    fakes.add("m", does=streams(ANSWERED[:10], ANSWERED[10:]))
    assert (await rest.infer(REQUEST)).json() == ANSWER


FAILURES = [
    (errors.NoWorker("none"), 503),
    (errors.QueueFull("full"), 503),
    (errors.WorkerDied(), 500),
    (errors.WorkerDied(out_of_memory=True), 507),
    (errors.DeadlineExceeded("late"), 504),
    (errors.ModelError(503, "Prediction failed"), 503),
    (errors.ModelError(400, "an input must be"), 400),
    (errors.ModelError(413, "Out of resources"), 507),
    (errors.ModelError(599, "odd"), 599),
    (errors.ModelError(200, "odder"), 500),
]


@pytest.mark.parametrize(
    ("error", "status"), FAILURES, ids=[f"{type(e).__name__}-{s}" for e, s in FAILURES]
)
async def test_failures(rest, fakes, error, status: int) -> None:
    fakes.add("m", does=fails(error))
    answer = await rest.infer(REQUEST)
    assert (answer.status_code, answer.json()) == (status, {"error": error.message})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"inputs": 1}',
        b'{"inputs": [{"name": "a", "shape": [1099511627776], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "a", "shape": [-1], "datatype": "FP32", "data": [1]}]}',
    ],
)
async def test_a_bad_body_never_reaches_the_model(rest, fakes, body: bytes) -> None:
    model = fakes.add("m")
    answer = await rest.infer(body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert model.jobs == []


async def test_a_false_header_length(rest, fakes) -> None:
    model = fakes.add("m")
    for length in ("-1", "x", "99999999999999999999", str(2**63)):
        answer = await rest.infer(REQUEST, header_length=length)
        assert answer.status_code == 400
        assert "Inference-Header-Content-Length" in answer.json()["error"]
    assert model.jobs == []


# Compression.

LIMIT = [{"max_body_bytes": 100_000, "min_compressed_bytes": 1000}]


@pytest.mark.parametrize("fakes", LIMIT, indirect=True)
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "bare deflate"])
async def test_compressed_bodies(rest, fakes, encoding: str) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    text = json.dumps(REQUEST).encode()
    if encoding == "bare deflate":
        packed = zlib.compress(text, wbits=-zlib.MAX_WBITS)
    else:
        packed = gzip.compress(text) if "gzip" in encoding else zlib.compress(text)
    headers = {"content-encoding": encoding.removeprefix("bare ")}
    answer = await rest.infer(packed, **headers)
    assert (answer.status_code, answer.json()) == (200, ANSWER), answer.text
    assert model.requests == [{"body": text}]
    assert "content-encoding" not in model.headers[0]


@pytest.mark.parametrize("fakes", LIMIT, indirect=True)
async def test_a_compressed_binary_body(rest, fakes) -> None:
    """The header tells the length of the JSON before it was compressed."""
    model = fakes.add("m", does=answers(ANSWERED))
    tensor = {"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}}
    text = json.dumps({"inputs": [tensor]}).encode()
    answer = await rest.infer(
        gzip.compress(text + b"\x05"),
        header_length=str(len(text)),
        **{"content-encoding": "gzip"},
    )
    assert answer.status_code == 200, answer.text
    assert json.loads(model.requests[0]["body"])["inputs"][0]["data"] == [5]


@pytest.mark.parametrize("fakes", LIMIT, indirect=True)
@pytest.mark.parametrize(
    ("body", "encoding", "status", "word"),
    [
        (gzip.compress(bytes(100_000)) + b"x", "gzip", 400, "follow"),
        (gzip.compress(bytes(100_001)), "gzip", 413, "100000 bytes"),
        (gzip.compress(bytes(50_000_000)), "gzip", 413, "100000 bytes"),
        (gzip.compress(b"[1]")[:-1], "gzip", 400, "too early"),
        (b"", "gzip", 400, "too early"),
        (b"{}", "gzip", 400, "not gzip"),
        (b"x{}", "deflate", 400, "not deflate"),
        (gzip.compress(b"{}"), "br", 400, "'br' is not understood"),
        (gzip.compress(b"{}"), "gzip, gzip", 400, "not understood"),
    ],
)
async def test_bad_compressed_bodies(
    rest, fakes, body: bytes, encoding: str, status: int, word: str
) -> None:
    model = fakes.add("m")
    answer = await rest.infer(body, **{"content-encoding": encoding})
    assert answer.status_code == status
    assert word in answer.json()["error"]
    assert model.jobs == []


@pytest.mark.parametrize("fakes", LIMIT, indirect=True)
@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate;q=0.9", "deflate"),
        ("br, gzip;q=1.0", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
        ("identity", None),
        ("", None),
    ],
)
async def test_answers_are_compressed_for_those_who_ask(
    rest, fakes, accept: str, encoding: str | None
) -> None:
    large = {**ANSWER, "parameters": {"x": "y" * 1000}}
    fakes.add("m", does=answers(json.dumps(large).encode()))
    answer = await rest.infer(REQUEST, **{"accept-encoding": accept})
    assert answer.headers.get("content-encoding") == encoding
    assert answer.json() == large
    assert int(answer.headers["content-length"]) < 1000 or encoding is None


@pytest.mark.parametrize("fakes", [*LIMIT, {"min_compressed_bytes": 0}], indirect=True)
async def test_small_answers_are_not_compressed(rest, fakes) -> None:
    fakes.add("m", does=answers(ANSWERED))
    answer = await rest.infer(REQUEST, **{"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers


# Workers that take tensors as bytes.

BINARY = {"name": "a", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
RAW = struct.pack("<2f", 1.5, -2)


async def test_tensors_stay_bytes_on_the_way_to_our_envelope(rest, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    model.model.envelope = ENVELOPE
    asked = {"inputs": [{**BINARY, "parameters": {"binary_data_size": 8}}]}
    assert (await rest.infer(asked, RAW)).status_code == 200
    (parts,) = model.requests
    assert parts == {"body": json.dumps(asked).encode(), "tensor:0": RAW}
    (job,) = model.jobs
    assert [part.content_type for part in job.request.parts] == [JSON, PART_TYPE]


async def test_the_checks_of_bytes_are_the_same(rest, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    model.model.envelope = ENVELOPE
    for wrong in ({**BINARY, "shape": [3]}, {**BINARY, "shape": [2**40]}, {**BINARY, "shape": []}):
        answer = await rest.infer({"inputs": [wrong]}, RAW)
        assert answer.status_code == 400
        assert "bytes" in answer.json()["error"]
    assert model.jobs == []


def binary_answer(head: dict, *blobs: bytes, length: str | None = None):
    text = json.dumps(head).encode()
    headers = [(JSON_LENGTH_HEADER.encode(), (length or str(len(text))).encode())]
    chunk = ResponseChunk(
        200, b"", b"application/octet-stream", headers, text + b"".join(blobs), True
    )
    return lambda job: job.push(chunk)


async def test_a_binary_answer_in_the_form_that_the_client_wants(rest, fakes) -> None:
    word = {"name": "w", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}}
    head = {"model_name": "m", "outputs": [BINARY, word]}
    words = b"\x01\0\0\0a\x01\0\0\0\xff"
    fakes.add("m", does=binary_answer(head, RAW, words))
    asked = {
        **REQUEST,
        "outputs": [{"name": "w"}, {"name": "a", "parameters": {"binary_data": True}}],
    }
    answer = await rest.infer(asked)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:length])["outputs"] == [
        {"name": "w", "shape": [2], "datatype": "BYTES", "data": ["a", "ÿ"]},
        BINARY,
    ]
    assert answer.content[length:] == RAW
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("output", "length"),
    [
        ({**BINARY, "parameters": {"binary_data_size": 9}}, None),
        ({**BINARY, "parameters": {"binary_data_size": "8"}}, None),
        ({**BINARY, "shape": [3]}, None),
        ({**BINARY, "datatype": "FP33"}, None),
        ({**BINARY, "data": [1, 2]}, None),
        (BINARY, "99999"),
        (BINARY, "x"),
    ],
)
async def test_a_broken_binary_answer_is_the_models_fault(rest, fakes, output, length) -> None:
    fakes.add("m", does=binary_answer({"outputs": [output]}, RAW, length=length))
    answer = await rest.infer({**REQUEST, "parameters": {"binary_data_output": True}})
    assert answer.status_code == 500
    assert "not an Open Inference response" in answer.json()["error"]


async def test_our_own_bug_stays_in_the_log(
    rest, fakes, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def stumble(*arguments):
        raise KeyError("/secret/path")

    monkeypatch.setattr(routes.convert, "read_http", stumble)
    fakes.add("m")
    answer = await rest.infer(REQUEST)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "/secret/path" in caplog.text


async def test_a_client_that_leaves_cancels_its_job(rest, fakes) -> None:
    model = fakes.add("m", does=holds)
    host, port = rest._base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(REQUEST).encode()
    writer.write(
        b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    job = (await wait_until(lambda: model.jobs))[0]
    writer.close()
    await writer.wait_closed()
    await wait_until(lambda: job.state is JobState.CANCELLED)
    del reader


async def test_the_listeners_description_has_every_path(rest, fakes) -> None:
    document = (await rest.get("/api-description")).json()
    validate(document)
    model = "/v2/models/{model_name}"
    version = f"{model}/versions/{{model_version}}"
    described = {
        (method, path)
        for path, operations in document["paths"].items()
        for method in operations
        if path.startswith("/v2")
    }
    assert described == {
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        *(("get", base + end) for base in (model, version) for end in ("", "/ready")),
        *(("post", f"{base}/infer") for base in (model, version)),
    }
    infer = document["paths"][f"{model}/infer"]["post"]
    assert infer["operationId"] == "modelInfer"
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["inputs"]
    # Clients that compare TorchServe's document as text find its paths where they were.
    assert list(document["paths"])[:2] == ["/", "/ping"]


async def test_options_still_describe_the_model(rest, fakes) -> None:
    fakes.add("m")
    answer = await asyncio.to_thread(
        rest._session.options, rest._base + "/v2/models/m/infer", timeout=20
    )
    assert answer.json()["info"]["title"] == "RESTful API for: m"


@pytest.fixture
def tokens(tmp_path, fakes) -> TokenAuthority:
    authority = TokenAuthority(str(tmp_path), 3600)
    authority.write_file()
    fakes.planes = dataclasses.replace(fakes.planes, tokens=authority)
    return authority


def inference_key(tokens: TokenAuthority) -> str:
    return json.loads(Path(tokens.path).read_text())[KeyKind.INFERENCE.value]["key"]


async def test_every_path_asks_for_the_key(tokens, rest, fakes) -> None:
    fakes.add("m", does=answers(ANSWERED))
    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready"]
    paths += [f"{path}/" for path in paths] + [
        "/v2//health/live",
        "/%762",
        "/v2/models/m/versions/1.0",
    ]
    for path in paths:
        answer = await rest.get(path)
        assert answer.status_code in (400, 404), path
        if answer.status_code == 400:
            assert "Token Authorization failed" in answer.text
    assert (await rest.infer(REQUEST)).status_code == 400
    key = inference_key(tokens)
    answer = await rest.infer(REQUEST, authorization=f"Bearer {key}")
    assert answer.json() == ANSWER
