"""examples/image_classifier/mnist: the committed weights through the real handler."""

import base64
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def folder(examples: Path) -> Path:
    return examples / "image_classifier" / "mnist"


@pytest.fixture
def mnist(load_example: Callable):
    return load_example("image_classifier/mnist")


def best(answer: dict[str, float]) -> str:
    return max(answer, key=answer.__getitem__)


def test_the_digits_are_recognised_in_one_batch(mnist, folder: Path) -> None:
    images = sorted((folder / "test_data").glob("*.png"))
    answers = mnist.handle([{"body": bytearray(image.read_bytes())} for image in images])
    assert all(len(answer) == 5 for answer in answers)  # the default classifier's top five
    wrong = [
        image.name for image, a in zip(images, answers, strict=True) if best(a) != image.name[0]
    ]
    assert wrong == ["8_1.png"]  # 39 of 40, as the README says


def test_an_image_is_answered_alone_as_in_a_batch(mnist, folder: Path) -> None:
    rows = [{"data": bytearray((folder / "test_data" / f"{d}.png").read_bytes())} for d in (3, 7)]
    together = mnist.handle(rows)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = mnist.handle([row])
        assert best(alone) == best(answer)
        assert alone[best(alone)] == pytest.approx(answer[best(answer)], abs=1e-5)


def test_the_kserve_request_holds_the_two_as_base64(mnist, folder: Path) -> None:
    request = json.loads((folder / "kserve_v1.json").read_text())
    assert (
        base64.b64decode(request["instances"][0]["data"])
        == (folder / "test_data" / "2.png").read_bytes()
    )
    (answer,) = mnist.handle(request["instances"])
    assert best(answer) == "2"


def test_the_explanation_covers_every_pixel_and_adds_up(mnist, folder: Path) -> None:
    pytest.importorskip("captum")
    image = bytearray((folder / "test_data" / "3.png").read_bytes())
    (attributions,) = mnist.handle([{"data": image, "target": 3}], {"explain": "True"})
    assert torch.tensor(attributions).shape == (1, 28, 28)

    # Integrated gradients: the pixels' shares add up to what the image adds to the digit's score,
    # here within the error of 15 steps.
    handler = mnist.handler
    with torch.inference_mode():
        pixels = handler.preprocess([{"data": image}])
        gained = (handler.model(pixels) - handler.model(torch.zeros_like(pixels)))[0, 3].item()
    assert torch.tensor(attributions).sum().item() == pytest.approx(gained, rel=0.1)


@pytest.mark.slow
def test_training_writes_the_kept_files(folder: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("sys.argv", ["train.py", "--output", str(tmp_path), "--epochs", "2"])
    try:
        runpy.run_path(str(folder / "train.py"), run_name="__main__")
    finally:
        torch.use_deterministic_algorithms(False)
        sys.modules.pop("mnist", None)
    made = torch.load(tmp_path / "digits_cnn.pt")
    kept = torch.load(folder / "digits_cnn.pt")
    assert {name: value.shape for name, value in made.items()} == {
        name: value.shape for name, value in kept.items()
    }
    for image in sorted((folder / "test_data").iterdir()):
        assert (tmp_path / "test_data" / image.name).read_bytes() == image.read_bytes()
