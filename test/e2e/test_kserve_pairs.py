"""What a transformer made with KServe's SDK asked its predictor, asked again.

`kserve_pairs/` holds each request and its answer, as test/clients/kserve_sdk.py recorded
them (TS_RECORD_PAIRS=<folder> makes them anew): v1 over REST, v2 over REST with binary tensors, v2
over gRPC. The model is the digits example, the picture one of a 3.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from serving import RunningServer, archive_digits, start_server

from ts_frontend.grpc.stubs.open_inference_pb2 import ModelInferRequest, ModelInferResponse

PAIRS = Path(__file__).parent / "kserve_pairs"


def pair(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    recorded = json.loads((PAIRS / f"{name}.json").read_text())
    return recorded["request"], recorded["answer"]


def body_of(message: dict[str, Any]) -> bytes:
    body = message["body"]
    return body["text"].encode() if "text" in body else base64.b64decode(body["base64"])


@pytest.fixture(scope="module", params=["v1", "v2"])
def predictor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunningServer]]:
    store = tmp_path_factory.mktemp("store")
    archive_digits(store)
    keys = {"service_envelope": "kserve"} if request.param == "v1" else {}
    running = start_server(
        tmp_path_factory.mktemp("server"), store, ts_open_inference_protocol="true", **keys
    )
    assert running.register("digits.mar", initial_workers=1).status_code == 200
    yield request.param, running
    assert running.stop() == 0, running.tail()


def same_probabilities(got: dict[str, float], recorded: dict[str, float]) -> bool:
    """On another machine the last digits differ."""
    return got == pytest.approx(recorded, abs=1e-5)


def test_rest(predictor: tuple[str, RunningServer]) -> None:
    protocol, server = predictor
    request, recorded = pair(f"{protocol}_rest")
    answer = requests.request(
        request["method"],
        server.inference + request["path"],
        data=body_of(request),
        headers=request["headers"],
        timeout=30,
    )
    assert answer.status_code == recorded["status"]
    got, wanted = answer.json(), json.loads(body_of(recorded))
    if protocol == "v1":
        (got_row,), (wanted_row,) = got.pop("predictions"), wanted.pop("predictions")
    else:
        ((got_text,), (wanted_text,)) = (value["outputs"][0].pop("data") for value in (got, wanted))
        got_row, wanted_row = json.loads(got_text), json.loads(wanted_text)
    assert same_probabilities(got_row, wanted_row)
    assert got == wanted


def test_grpc(predictor: tuple[str, RunningServer]) -> None:
    protocol, server = predictor
    if protocol == "v1":
        pytest.skip("v1 has no gRPC form")
    request, recorded = pair("v2_grpc")
    ModelInferRequest.FromString(body_of(request))
    with grpc.insecure_channel(server.grpc_inference) as channel:
        call = channel.unary_unary(request["method"])
        got = ModelInferResponse.FromString(call(body_of(request), timeout=30))
    wanted = ModelInferResponse.FromString(body_of(recorded))
    rows = []
    for answer in (got, wanted):
        (raw,) = answer.raw_output_contents
        (length,) = struct.unpack_from("<I", raw)
        assert length == len(raw) - 4
        rows.append(json.loads(raw[4:]))
        del answer.raw_output_contents[:]
    assert same_probabilities(*rows)
    assert got == wanted
