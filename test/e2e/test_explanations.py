"""Explanations of the default handlers over HTTP: as numbers, as a picture, as coloured text."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image
from serving import MODELS, ROOT, RunningServer, archive

MNIST = ROOT / "examples" / "image_classifier" / "mnist"
TOPICS = ROOT / "examples" / "text_classification"
DIGIT = (MNIST / "test_data" / "3.png").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("captum")
    config = tmp_path_factory.mktemp("config") / "model-config.yaml"
    config.write_text(
        "captum:\n  method: occlusion\n  target: predicted\n  arguments:\n"
        "    sliding_window_shapes: [1, 5, 5]\n    strides: [1, 2, 2]\n"
    )
    files = {"model_file": str(MNIST / "mnist.py"), "serialized_file": str(MNIST / "digits_cnn.pt")}
    handler = MNIST / "mnist_handler.py"
    archive(store, "digits", handler, **files)
    archive(store, "occluded", handler, config_file=str(config), **files)
    extra = f"{TOPICS / 'index_to_name.json'},{TOPICS / 'source_vocab.pt'}"
    archive(
        store,
        "topics",
        "text_classifier",
        model_file=str(TOPICS / "topic_model.py"),
        serialized_file=str(TOPICS / "topic_model.pt"),
        extra_files=extra,
    )
    archive(store, "context_probe", MODELS / "context_probe.py")
    for name in ("digits", "occluded", "topics", "context_probe"):
        answer = server.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, server.tail()


def explain(
    server: RunningServer, model: str, data: bytes, query: str = "", **headers: str
) -> requests.Response:
    return requests.post(
        f"{server.inference}/explanations/{model}{query}", data=data, headers=headers, timeout=60
    )


def test_numbers_by_default(server: RunningServer) -> None:
    answer = explain(server, "digits", DIGIT, "?target=3")
    assert answer.status_code == 200
    rows = answer.json()[0]
    assert (len(rows), len(rows[0])) == (28, 28)
    assert answer.json() != explain(server, "digits", DIGIT, "?target=8").json()


@pytest.mark.parametrize(
    ("query", "headers"), [("?format=png&target=3", {}), ("?target=3", {"Accept": "image/png"})]
)
@pytest.mark.parametrize("model", ["digits", "occluded"])
def test_a_picture_on_request(
    server: RunningServer, model: str, query: str, headers: dict[str, str]
) -> None:
    answer = explain(server, model, DIGIT, query, **headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.content)).size == (224, 224)


def test_the_kserve_form_takes_the_query_too(server: RunningServer) -> None:
    url = f"{server.inference}/v1/models/digits:explain?format=png"
    answer = requests.post(url, data=DIGIT, timeout=60)
    assert answer.headers["Content-Type"] == "image/png"


def test_text_in_colours(server: RunningServer) -> None:
    text = b"The striker scored in the last minute of the match!"
    answer = explain(server, "topics", text, "?format=html&target=predicted",
                     **{"Content-Type": "text/plain"})  # fmt: skip
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<title>What speaks for sport</title>" in answer.text


@pytest.mark.parametrize(("query", "accept"), [("&format=png", "*/*"), ("", "image/png")])
def test_text_in_colours_as_a_picture(server: RunningServer, query: str, accept: str) -> None:
    answer = explain(server, "topics", b"The striker scored in the last minute of the match!",
                     f"?target=predicted{query}",
                     **{"Content-Type": "text/plain", "Accept": accept})  # fmt: skip
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(answer.content)).convert("RGB")
    colours = [colour for _, colour in image.getcolors(1 << 24)]
    assert any(red > blue + 100 for red, _, blue in colours)


def test_a_wrong_target_is_the_clients_fault(server: RunningServer) -> None:
    answer = explain(server, "digits", DIGIT, "?target=10")
    assert answer.status_code == 400
    assert "target 10 does not exist" in answer.json()["message"]


def test_each_of_a_batch_gets_its_own(store: Path, server: RunningServer) -> None:
    """Four explanations in one batch: other targets, another method, a picture, and a mistake."""
    files = {"model_file": str(MNIST / "mnist.py"), "serialized_file": str(MNIST / "digits_cnn.pt")}
    archive(store, "batched", MNIST / "mnist_handler.py", **files)
    queries = ["?target=3", "?target=8&method=saliency", "?target=3&format=png", "?target=10"]
    alone = [explain(server, "digits", DIGIT, query) for query in queries]
    # Full batches do not wait; one that is not full would wait for a minute.
    answer = server.register(
        "batched.mar", initial_workers=1, batch_size=len(queries), max_batch_delay=60_000
    )
    assert answer.status_code == 200, server.tail()
    with ThreadPoolExecutor(len(queries)) as pool:
        together = list(pool.map(lambda query: explain(server, "batched", DIGIT, query), queries))
    assert [each.status_code for each in together] == [200, 200, 200, 400]
    for one, other in zip(together[:2], alone[:2], strict=True):
        assert torch.allclose(torch.tensor(one.json()), torch.tensor(other.json()), atol=1e-5)
    assert together[2].headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(together[2].content)).size == (224, 224)


def test_a_prediction_is_not_disturbed_by_a_query(server: RunningServer) -> None:
    answer = server.session.post(
        f"{server.inference}/predictions/digits?target=3", data=DIGIT, timeout=60
    )
    assert max(answer.json(), key=answer.json().get) == "3"


def test_handlers_see_the_query_as_a_header(server: RunningServer) -> None:
    for path in ("predictions/context_probe", "explanations/context_probe"):
        asked = server.session.post(f"{server.inference}/{path}?a=1&b=%20", data=b"x", timeout=60)
        assert asked.json()["headers"]["url_query"] == "a=1&b=%20"
        plain = server.session.post(f"{server.inference}/{path}", data=b"x", timeout=60)
        assert "url_query" not in plain.json()["headers"]
