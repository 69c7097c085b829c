import base64
import io
import sys

import pytest
import torch
from captum.attr import IntegratedGradients
from PIL import Image

from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_segmenter import ImageSegmenter
from ts.torch_handler.image_transforms import Compose, Normalize, Resize, ToTensor
from ts.torch_handler.object_detector import ObjectDetector
from ts.torch_handler.vision_handler import VisionHandler

EAGER = """
import torch

class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""


@pytest.fixture(params=["eager", "torchscript"])
def classifier(request, tmp_path, make_context, save_torchscript, save_mapping, mean_colour):
    """A loaded classifier that answers with the strongest colour, and its context."""
    save_mapping({"0": "red", "1": "green", "2": "blue"})
    if request.param == "eager":
        (tmp_path / "mean_colour.py").write_text(EAGER)
        context = make_context(modelFile="mean_colour.py")
    else:
        context = make_context(serializedFile=save_torchscript(mean_colour))
    handler = ImageClassifier()
    handler.initialize(context)
    return handler, context


def normalized(rgb):
    """A pixel as the model sees it."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return torch.tensor([(c / 255 - m) / s for c, m, s in zip(rgb, mean, std, strict=True)])


class TestClassifier:
    def test_serve_2121_a_batch_is_classified(self, classifier, picture):
        handler, context = classifier
        context.start_batch({}, {})
        red, blue = handler.handle(
            [{"data": picture(colour=(255, 0, 0))}, {"body": picture(colour=(0, 0, 255))}], context
        )
        assert list(red) == ["red", "blue", "green"]
        assert next(iter(blue)) == "blue"
        expected = torch.softmax(normalized((255, 0, 0)), dim=0)
        assert red["red"] == pytest.approx(expected[0].item(), abs=1e-5)
        assert sum(red.values()) == pytest.approx(1)

    def test_every_form_of_a_request_gives_the_same(self, classifier, picture):
        handler, context = classifier
        encoded = picture(colour=(0, 200, 10))
        tensor = handler.image_processing(Image.open(io.BytesIO(encoded)))
        answers = handler.handle(
            [
                {"data": encoded},
                {"data": bytes(encoded)},
                {"body": base64.b64encode(encoded).decode()},
                {"data": tensor.tolist()},
                bytes(encoded),
            ],
            context,
        )
        for answer in answers[1:]:
            assert answer == pytest.approx(answers[0], abs=1e-6)

    @pytest.mark.parametrize(
        ("mode", "colour"), [("RGBA", (255, 0, 0, 9)), ("P", 0), ("L", 200), ("LA", (200, 3))]
    )
    def test_pictures_of_any_mode_are_classified(self, classifier, picture, mode, colour):
        handler, context = classifier
        (answer,) = handler.handle([{"data": picture(mode, colour)}], context)
        assert len(answer) == 3

    def test_the_number_of_labels_can_be_set(self, classifier, picture):
        handler, context = classifier
        assert handler.get_max_result_classes() == 5
        handler.set_max_result_classes(1)
        assert handler.handle([{"data": picture()}], context)[0].keys() == {"red"}
        assert ImageClassifier.topk == 5

    def test_without_labels_the_answer_has_indices(self, classifier, picture):
        handler, context = classifier
        handler.mapping = None
        (answer,) = handler.handle([{"data": picture()}], context)
        assert next(iter(answer)) == "0"

    def test_an_explanation_is_captums(self, classifier, picture):
        handler, context = classifier
        context.start_batch({"explain": "True"}, {"explain": "True"})
        rows = [{"data": picture(), "target": bytearray(b"1")}, {"data": picture(colour=(1, 2, 3))}]
        answer = handler.handle(rows, context)
        images = handler.preprocess(rows)
        expected = IntegratedGradients(handler.model).attribute(images, target=[1, 0], n_steps=15)
        assert len(answer) == 2
        assert torch.equal(torch.tensor(answer), torch.tensor(expected.tolist()))
        # The model is linear, so that attributions are known: input times weight.
        first = torch.tensor(answer[0])
        assert torch.allclose(first[1], images[0, 1] / (224 * 224), rtol=1e-4, atol=1e-9)
        assert not first[0].any()


def test_a_subclass_gets_the_picture_as_it_was_opened(make_context, save_torchscript, picture):
    modes = []

    class OwnTransform(ImageClassifier):
        image_processing = Compose([lambda image: modes.append(image.mode) or image, ToTensor()])

    handler = OwnTransform()
    handler.device = torch.device("cpu")
    assert handler.preprocess([{"data": picture("RGBA", (1, 2, 3, 4))}]).shape == (1, 4, 24, 32)
    assert modes == ["RGBA"]


def test_a_handler_in_the_style_of_the_mnist_example(make_context, tmp_path, picture):
    class Digits(ImageClassifier):
        image_processing = Compose([Resize(4), ToTensor(), Normalize((0.1307,), (0.3081,))])

        def postprocess(self, data):
            return data.argmax(1).tolist()

    (tmp_path / "mean_colour.py").write_text(EAGER)
    context = make_context(modelFile="mean_colour.py")
    handler = Digits()
    handler.initialize(context)
    assert handler.handle([{"data": picture("L", 3)}], context) == [0]


class TestIntegratedGradients:
    def test_captum_is_imported_for_the_first_explanation(self, monkeypatch, mean_colour):
        monkeypatch.setitem(sys.modules, "captum.attr", None)
        handler = ImageClassifier()
        handler.model = mean_colour
        with pytest.raises(RuntimeError, match="pip install captum"):
            handler.get_insights(torch.zeros(1, 3, 2, 2), None, 0)

    def test_a_subclass_may_set_and_use_it(self, mean_colour):
        class Noisy:
            def attribute(self, data, target, n_steps):
                return torch.full_like(data, target + n_steps)

        handler = ImageClassifier()
        handler.ig = Noisy()
        assert handler.get_insights(torch.zeros(1, 1), None, 2) == [[17.0]]

    def test_it_works_without_the_base_constructor(self, mean_colour):
        class Bare(VisionHandler):
            def __init__(self):
                pass

        handler = Bare()
        handler.model = mean_colour
        assert isinstance(handler.ig, IntegratedGradients)
        assert handler.ig is handler.ig


def test_the_size_limit_of_pictures_can_be_lifted(make_context, tmp_path, monkeypatch):
    (tmp_path / "mean_colour.py").write_text(EAGER)
    context = make_context(modelFile="mean_colour.py")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    ImageClassifier().initialize(context)
    assert Image.MAX_IMAGE_PIXELS == 100
    context.system_properties["limit_max_image_pixels"] = False
    ImageClassifier().initialize(context)
    assert Image.MAX_IMAGE_PIXELS is None


class OneBoxPerImage(torch.nn.Module):
    """Detects the whole image as class 1, surely, and its first pixel as class 2, unsurely."""

    def forward(self, images):
        assert all(image.ndim == 3 for image in images)
        return [
            {
                "boxes": torch.tensor([[0.0, 0, image.shape[2], image.shape[1]], [0, 0, 1, 1]]),
                "labels": torch.tensor([1, 2]),
                "scores": torch.tensor([0.75, 0.25]),
            }
            for image in images
        ]


class TestObjectDetector:
    @pytest.fixture
    def detector(self):
        handler = ObjectDetector()
        handler.model = OneBoxPerImage()
        handler.device = torch.device("cpu")
        handler.mapping = {"1": "picture", "2": "pixel"}
        return handler

    def test_boxes_from_the_threshold_up_are_answered(self, detector, make_context, picture):
        answers = detector.handle([{"data": picture()}], make_context())
        assert answers == [[{"picture": [0.0, 0.0, 32.0, 24.0], "score": 0.75}]]
        detector.threshold = 0.25
        assert len(detector.handle([{"data": picture()}], make_context())[0]) == 2
        detector.threshold = 0.8
        assert detector.handle([{"data": picture()}], make_context()) == [[]]

    def test_without_labels_the_answer_has_indices(self, detector, make_context, picture):
        detector.mapping = None
        assert detector.handle([{"data": picture()}], make_context())[0][0].keys() == {"1", "score"}

    def test_pictures_of_one_batch_may_differ_in_size(self, detector, make_context, picture):
        context = make_context()
        context.start_batch({}, {})
        answers = detector.handle(
            [{"data": picture()}, {"data": picture("RGBA", (1, 2, 3, 4), size=(8, 9))}], context
        )
        assert [answer[0]["picture"][2:] for answer in answers] == [[32.0, 24.0], [8.0, 9.0]]

    def test_pictures_of_one_size_are_stacked(self, detector, picture):
        assert detector.preprocess([{"data": picture()}] * 2).shape == (2, 3, 24, 32)


def test_the_segmenter_answers_class_and_probability_per_pixel(make_context, picture):
    class FirstChannels(torch.nn.Module):
        def forward(self, images):
            return {"out": images[:, :2]}

    handler = ImageSegmenter()
    handler.model = FirstChannels()
    handler.device = torch.device("cpu")
    answers = handler.handle([{"data": picture(colour=(0, 255, 0))}], make_context())
    result = torch.tensor(answers)
    assert result.shape == (1, 224, 224, 2)
    index, probability = result[0, 5, 5].tolist()
    expected = torch.softmax(normalized((0, 255, 0))[:2], dim=0)
    assert index == 1.0
    assert probability == pytest.approx(expected[1].item(), abs=1e-5)
