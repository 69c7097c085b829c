"""KServe's v1 paths, as clients see them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import requests

sys.path.append(str(Path(__file__).resolve().parents[3]))  # fake_planes.py

from fake_planes import FakePlanes, answers

from ts_frontend.dialects.errors import answer_error
from ts_frontend.dialects.kserve_v1 import KServeV1Dialect
from ts_frontend.http.listener import Listener
from ts_frontend.http.router import Router
from ts_frontend.settings.addresses import parse_address
from ts_frontend.tokens import KeyKind, TokenAuthority


@pytest.fixture
def fakes(request: pytest.FixtureRequest) -> FakePlanes:
    """Indirect parameters are options of FakePlanes."""
    return FakePlanes(**getattr(request, "param", {}))


@pytest.fixture(params=["inference", "management"])
async def ask(fakes: FakePlanes, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Asks one of the two listeners."""
    routes = getattr(KServeV1Dialect().http_routes(fakes.planes), request.param)
    listener = Listener(parse_address("http://127.0.0.1:0"), Router(routes, answer_error))
    await listener.start()
    with requests.Session() as session:

        async def ask(method: str, path: str, **more: Any) -> requests.Response:
            url = f"{listener.address}{path}"
            return await asyncio.to_thread(session.request, method, url, timeout=20, **more)

        yield ask
    await listener.stop(0)


only_inference = pytest.mark.parametrize("ask", ["inference"], indirect=True)


@only_inference
async def test_the_server_lives(ask, fakes) -> None:
    answer = await ask("GET", "/")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert (await ask("POST", "/")).status_code == 405


async def test_the_names_of_all_models(ask, fakes) -> None:
    assert (await ask("GET", "/v1/models")).json() == {"models": []}
    for name, version in (("b", "1.0"), ("a", "1.0"), ("a", "2.0")):
        fakes.add(name, version)
    assert (await ask("GET", "/v1/models/")).json() == {"models": ["a", "b"]}
    assert (await ask("POST", "/v1/models")).status_code == 405


async def test_the_status_of_a_model(ask, fakes) -> None:
    model = fakes.add("m")
    assert (await ask("GET", "/v1/models/m")).json() == {"name": "m", "ready": True}
    model.workers = []
    assert (await ask("GET", "/v1/models/m")).json() == {"name": "m", "ready": False}
    answer = await ask("GET", "/v1/models/nobody")
    assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")


@only_inference
@pytest.mark.parametrize(("verb", "header"), [("predict", None), ("explain", "True")])
async def test_the_body_reaches_the_worker_as_it_came(ask, fakes, verb, header) -> None:
    model = fakes.add("m", does=answers(b'{"predictions": [1]}', content_type=b"application/json"))
    text = b'{"instances": [ {"b64": "aGk="} ]}'
    answer = await ask(
        "POST", f"/v1/models/m:{verb}", data=text, headers={"content-type": "application/json"}
    )
    assert answer.json() == {"predictions": [1]}
    assert model.requests == [{"body": text}]
    assert model.headers[0]["explain"] == (header or "False")


@only_inference
@pytest.mark.parametrize("path", ["/v1/models/m:train", "/v1/models/m:", "/v1/models/m:predict/x"])
async def test_other_verbs_are_unknown(ask, fakes, path: str) -> None:
    fakes.add("m")
    answer = await ask("POST", path)
    assert (answer.status_code, answer.json()["type"]) == (404, "ResourceNotFoundException")


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[TokenAuthority, dict[str, str]]:
    """An authority, and its keys by kind."""
    authority = TokenAuthority(str(tmp_path), 3600)
    authority.write_file()
    keys = json.loads(Path(authority.path).read_text())
    return authority, {kind: entry["key"] for kind, entry in keys.items()}


async def test_every_path_asks_for_the_key(tokens) -> None:
    authority, keys = tokens
    fakes = FakePlanes(tokens=authority)
    fakes.add("m")
    routes = KServeV1Dialect().http_routes(fakes.planes)
    for kind in (KeyKind.INFERENCE, KeyKind.MANAGEMENT):
        listener = Listener(
            parse_address("http://127.0.0.1:0"),
            Router(getattr(routes, kind.value), answer_error),
        )
        await listener.start()
        key = {"authorization": f"Bearer {keys[kind.value]}"}
        paths = ["/v1/models", "/v1/models/m"]
        if kind is KeyKind.INFERENCE:
            paths.append("/")
        for path in paths:
            url = f"{listener.address}{path}"
            refused = await asyncio.to_thread(requests.get, url, timeout=20)
            assert refused.json()["type"] == "InvalidKeyException"
            allowed = await asyncio.to_thread(requests.get, url, headers=key, timeout=20)
            assert allowed.status_code == 200
        await listener.stop(0)
