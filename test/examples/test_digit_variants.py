"""The digits network served in other ways: explained, compiled, exported, by ONNX Runtime."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def rows(examples: Path) -> list[dict]:
    folder = examples / "image_classifier" / "mnist" / "test_data"
    return [{"body": bytearray((folder / f"{digit}.png").read_bytes())} for digit in (3, 7)]


def best(answers: list[dict[str, float]]) -> list[str]:
    return [max(answer, key=answer.__getitem__) for answer in answers]


def test_occlusion_as_numbers_and_as_a_picture(load_example: Callable, rows: list[dict]) -> None:
    pytest.importorskip("captum")
    explained = load_example("captum")
    (attributions, _) = explained.handle(rows, {"explain": "True"})
    assert (len(attributions), len(attributions[0]), len(attributions[0][0])) == (1, 28, 28)
    values = [value for row in attributions[0] for value in row]
    assert max(values) > 0 > min(values)

    (picture, _) = explained.handle(rows, {"explain": "True", "Accept": "image/png"})
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.mode) == ("PNG", "RGB")


def test_a_request_chooses_its_method(load_example: Callable, rows: list[dict]) -> None:
    pytest.importorskip("captum")
    explained = load_example("captum")
    rows[0] |= {"method": "saliency", "target": 8}
    rows[1] |= {"method": "gradient_shap"}  # not in request_methods
    saliency, refusal = explained.handle(rows, {"explain": "True"})
    assert min(value for row in saliency[0] for value in row) >= 0  # as saliency has it
    assert [explained.status(index) for index in (0, 1)] == [200, 400]
    assert "gradient_shap" in str(refusal)


def test_the_compiled_network_answers_alike(load_example: Callable, rows: list[dict]) -> None:
    compiled = load_example("pt2/torch_compile")
    assert type(compiled.handler.model).__name__ == "OptimizedModule"
    assert best(compiled.handle(rows)) == ["3", "7"]


def test_the_exported_program_needs_no_model_file(load_example: Callable, rows: list[dict]) -> None:
    exported = load_example("pt2/torch_export")
    assert best(exported.handle(rows)) == ["3", "7"]
    assert best(exported.handle(rows[1:])) == ["7"]  # another batch size


def test_onnx_runtime_answers_alike(load_example: Callable, rows: list[dict]) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    digits = load_example("onnx")
    assert hasattr(digits.handler.model, "get_inputs")  # a session of ONNX Runtime
    assert best(digits.handle(rows)) == ["3", "7"]
