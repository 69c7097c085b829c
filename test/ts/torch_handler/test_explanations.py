"""The `captum` section, what a request may choose, and the answers in their forms."""

from __future__ import annotations

import io
import types
import warnings

import captum.attr
import pytest
import torch
from PIL import Image

from ts.torch_handler.explanations import IMAGE_METHODS, TEXT_METHODS, Method, read_settings
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_transforms import Compose, Normalize, ToTensor
from ts.torch_handler.text_classifier import TextClassifier
from ts.utils.util import PredictionException

FORMATS = ("json", "png")
EXPLAIN = {"explain": "True"}


class TestSection:
    @pytest.mark.parametrize(
        ("section", "complaint"),
        [
            ([], "captum: a section with the keys"),
            ({"methods": "saliency"}, r"captum: 'methods' is no key; did you mean 'method'\?"),
            ({"method": "salency"}, r"'salency' is no method; did you mean 'saliency'\?"),
            ({"method": 5}, "captum.method: '?5'? is no method; there are integrated_gradients"),
            (
                {"arguments": {"nsteps": 5}},
                r"'nsteps' is no argument of integrated_gradients; did you mean 'n_steps'\?",
            ),
            ({"arguments": {"n_steps": "many"}}, r"captum\.arguments\.n_steps: int, not 'many'"),
            ({"arguments": {"n_steps": True}}, r"captum\.arguments\.n_steps: int, not True"),
            ({"arguments": {"baselines": ["a"]}}, "baselines: a list of numbers"),
            ({"arguments": [5]}, r"captum\.arguments: names and values"),
            ({"arguments": {"inputs": 5}}, "'inputs' is no argument"),
            ({"method": "occlusion"}, r"captum\.arguments\.sliding_window_shapes is missing"),
            ({"method": "grad_cam"}, r"captum\.layer: grad_cam needs layer"),
            ({"layer": "conv"}, r"captum\.layer: integrated_gradients takes no layer"),
            ({"layer": 5}, r"captum\.layer: the name of a module"),
            ({"target": "best"}, r"captum\.target: an integer or 'predicted'"),
            ({"target": True}, r"captum\.target: an integer"),
            ({"format": "jpg"}, r"captum\.format: 'jpg' is no format; did you mean 'png'\?"),
            ({"request_methods": "saliency"}, r"captum\.request_methods: a list of"),
            ({"request_methods": ["occlusion"]}, "occlusion works only as captum.method"),
            ({"smoothing": {"samples": 3}}, r"captum\.smoothing: 'samples' is no argument"),
        ],
    )
    def test_what_cannot_be_followed_is_refused_by_name(self, section, complaint):
        with pytest.raises(ValueError, match=complaint):
            read_settings(section, IMAGE_METHODS, FORMATS)

    def test_words_have_no_noise(self):
        with pytest.raises(ValueError, match=r"captum\.smoothing: only for images"):
            read_settings({"smoothing": {}}, TEXT_METHODS, FORMATS)

    def test_defaults(self):
        settings = read_settings(None, IMAGE_METHODS, FORMATS)
        assert (settings.method, settings.arguments) == ("integrated_gradients", {"n_steps": 15})
        assert (settings.target, settings.format, settings.is_given) == (0, "json", False)
        assert settings.request_methods == ("integrated_gradients", "saliency", "input_x_gradient")

    def test_lists_become_tuples(self):
        section = {"method": "occlusion", "arguments": {"sliding_window_shapes": [3, 4, 4]}}
        settings = read_settings(section, IMAGE_METHODS, FORMATS)
        assert settings.arguments == {"sliding_window_shapes": (3, 4, 4)}

    @pytest.mark.parametrize("method", [*IMAGE_METHODS.values(), *TEXT_METHODS.values()])
    def test_captum_has_every_method_of_the_tables(self, method: Method):
        assert hasattr(getattr(captum.attr, method.captum_class), "attribute")


class Patches(torch.nn.Module):
    """Two logits: the sums of the left and of the right half, through a layer with a name."""

    def __init__(self):
        super().__init__()
        self.relu = torch.nn.ReLU()
        self.features = torch.nn.Conv2d(3, 1, 1, bias=False)
        torch.nn.init.ones_(self.features.weight)

    def forward(self, images):
        maps = self.relu(self.features(images))
        half = maps.shape[3] // 2
        return torch.stack([maps[..., :half].sum((1, 2, 3)), maps[..., half:].sum((1, 2, 3))], 1)


class SmallPictures(ImageClassifier):
    image_processing = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


@pytest.fixture
def make_handler(make_context):
    """A handler of 8x8 pictures with this `captum` section, and its context."""

    def make(section=None):
        context = make_context(config={} if section is None else {"captum": section})
        handler = SmallPictures()
        handler._load_model = lambda *_: setattr(handler, "model", Patches().eval())
        handler.initialize(context)
        return handler, context

    return make


@pytest.fixture
def bright(picture):
    """A bright 8x8 picture, as a request carries it."""
    return picture(colour=(250, 240, 230), size=(8, 8))


def explain(handler, context, row, **headers):
    context.start_batch({**EXPLAIN, **headers})
    (answer,) = handler.handle([row], context)
    return answer


def halves(answer):
    """The strength of the attribution in the left and in the right half."""
    values = torch.tensor(answer).abs().sum(dim=(0, 1))
    half = len(values) // 2
    return values[:half].sum().item(), values[half:].sum().item()


def compiled_code(model):
    """What torch._export.aot_load makes of an AOTInductor .so: a function, and no module."""

    def optimized(*args):
        with torch.no_grad():
            return model(*args)

    optimized.__module__ = torch._export.aot_load.__module__
    return optimized


# What the configuration passes to Captum, besides the defaults of the handlers.
CAPTUM_ARGUMENTS = {
    **{name: {} for name in IMAGE_METHODS},
    "gradient_shap": {"n_samples": 4, "stdevs": 0.3},
    "occlusion": {"sliding_window_shapes": [3, 3, 2], "strides": [3, 2, 1]},
}


class TestImages:
    @pytest.mark.parametrize(
        "section",
        [
            None,
            {"method": "saliency"},
            {"method": "input_x_gradient"},
            {"method": "gradient_shap", "arguments": {"n_samples": 3, "stdevs": 0.01}},
            {"method": "deep_lift", "arguments": {"baselines": 0}},
            {"method": "guided_backprop"},
            {"method": "occlusion", "arguments": {"sliding_window_shapes": [3, 2, 2]}},
            {"method": "grad_cam", "layer": "features"},
            {"method": "saliency", "smoothing": {"nt_samples": 2, "stdevs": 0.01}},
        ],
    )
    def test_every_method_finds_the_half_that_counts(self, make_handler, bright, section):
        handler, context = make_handler(section)
        for target in (0, 1):
            answer = explain(handler, context, {"data": bright, "target": target})
            assert torch.tensor(answer).shape[1:] == (8, 8)
            if section is None or section["method"] != "grad_cam":
                there, elsewhere = halves(answer)[target], halves(answer)[1 - target]
                assert there > 10 * elsewhere  # windows of occlusion overlap both

    @pytest.mark.parametrize("name", IMAGE_METHODS)
    @pytest.mark.parametrize("smoothing", [None, {"nt_samples": 3, "stdevs": 0.2}])
    def test_the_numbers_are_captums(self, make_handler, bright, name, smoothing):
        arguments, layer = CAPTUM_ARGUMENTS[name], "features" if name == "grad_cam" else None
        section = {"method": name, "arguments": arguments, "layer": layer, "smoothing": smoothing}
        handler, context = make_handler({key: value for key, value in section.items() if value})
        torch.manual_seed(5)  # of the methods that draw samples
        answer = explain(handler, context, {"data": bright, "target": 1})

        images = handler.preprocess([{"data": bright}]).requires_grad_()
        made_by = getattr(captum.attr, IMAGE_METHODS[name].captum_class)
        explainer = made_by(handler.model, *([handler.model.features] if layer else []))
        if smoothing:
            explainer = captum.attr.NoiseTunnel(explainer)
        more = {"n_steps": 15} if name == "integrated_gradients" else {}
        if name == "gradient_shap":
            more = {"baselines": torch.zeros_like(images)}
        if layer:
            more = {"relu_attributions": True}
        window = {key: tuple(value) for key, value in arguments.items() if isinstance(value, list)}
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = explainer.attribute(
                images, target=1, **{**arguments, **window, **more, **(smoothing or {})}
            )
        assert expected.abs().max() > 0
        assert torch.allclose(torch.tensor(answer), expected[0].detach(), rtol=1e-5, atol=1e-7)

    def test_an_unknown_layer_is_refused_when_the_model_starts(self, make_handler):
        with pytest.raises(ValueError, match=r"did you mean 'features'\?"):
            make_handler({"method": "grad_cam", "layer": "feature"})

    def test_the_target_may_be_what_the_model_predicts(self, make_handler):
        handler, context = make_handler({"target": "predicted"})
        image = Image.new("RGB", (8, 8), (120, 120, 120))
        image.paste((255, 255, 255), (4, 0, 8, 8))
        file = io.BytesIO()
        image.save(file, "PNG")
        left, right = halves(explain(handler, context, {"data": file.getvalue()}))
        assert right > 0 == left

    def test_a_request_chooses_by_fields_or_query(self, make_handler, bright):
        handler, context = make_handler()
        by_field = explain(
            handler, context, {"data": bright, "method": b"saliency", "target": b"1"}
        )
        assert set(torch.tensor(by_field).unique().tolist()) == {0.0, 2 * 0.5}
        query = {"url_query": "method=saliency&target=1"}
        assert explain(handler, context, {"body": bright}, **query) == by_field

    @pytest.mark.parametrize(
        ("fields", "headers", "message"),
        [
            ({"method": "occlusion"}, {}, "method must be one of integrated_gradients, saliency"),
            ({"target": 2}, {}, r"target 2 does not exist: .* the shape \(2,\)"),
            ({"target": [0, 1]}, {}, "target .0, 1. does not exist"),
            ({"target": {"a": 1}}, {}, "target must be an integer"),
            ({"target": 1.5}, {}, "target must be an integer"),
            ({}, {"url_query": "target=cat"}, "target must be an integer, not 'cat'"),
            ({}, {"url_query": "format=pdf"}, "format must be one of json, png, not 'pdf'"),
            ({"format": "html"}, {}, "format must be one of json, png"),
        ],
    )
    def test_impossible_wishes_are_the_clients_fault(
        self, make_handler, bright, fields, headers, message
    ):
        handler, context = make_handler()
        with pytest.raises(PredictionException, match=message) as caught:
            explain(handler, context, {"data": bright, **fields}, **headers)
        assert caught.value.error_code == 400

    @pytest.mark.parametrize(
        ("headers", "is_picture"),
        [
            ({"url_query": "format=png"}, True),
            ({"Accept": "image/png"}, True),
            ({"accept": "text/html, image/png;q=0.9, */*"}, True),
            ({"Accept": "*/*"}, False),
            ({"Accept": "application/json, image/png"}, False),
            ({"Accept": "image/png", "url_query": "format=json"}, False),
        ],
    )
    def test_the_query_or_the_accept_header_chooses_the_form(
        self, make_handler, bright, headers, is_picture
    ):
        handler, context = make_handler()
        answer = explain(handler, context, {"data": bright}, **headers)
        assert isinstance(answer, bytes) is is_picture
        content_type = "image/png" if is_picture else None
        assert context.get_response_content_type(0) == content_type

    def test_the_picture_is_coloured_where_the_output_comes_from(self, make_handler, bright):
        handler, context = make_handler({"format": "png"})
        answer = explain(handler, context, {"data": bright, "target": 1})
        image = Image.open(io.BytesIO(answer))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (224, 224))
        left, right = image.getpixel((10, 100)), image.getpixel((200, 100))
        assert max(left) - min(left) <= 1  # grey: no share
        assert right[0] > right[2] + 100  # red: speaks for it

    def test_requests_of_a_batch_have_their_own_targets_methods_and_forms(
        self, make_handler, bright
    ):
        handler, context = make_handler()
        context.start_batch(
            EXPLAIN,
            {**EXPLAIN, "url_query": "target=1"},
            {**EXPLAIN, "url_query": "target=7"},
            {**EXPLAIN, "Accept": "image/png"},
            {**EXPLAIN, "url_query": "method=saliency"},
        )
        answers = handler.handle([{"body": bright} for _ in range(5)], context)
        assert halves(answers[0])[1] == 0 == halves(answers[1])[0]
        assert answers[2]["code"] == 400
        assert context.get_response_status(2)[0] == 400
        assert Image.open(io.BytesIO(answers[3])).size == (224, 224)
        assert answers[4] != answers[0]
        assert [context.get_response_status(index)[0] for index in (0, 1, 3, 4)] == [200] * 4

    def test_a_target_is_the_same_as_a_number_or_in_a_list(self, make_handler, bright):
        """A list beside a number would otherwise fail everybody's explanation in Captum."""
        handler, context = make_handler()
        context.start_batch(EXPLAIN, EXPLAIN, EXPLAIN)
        rows = [{"data": bright, "target": target} for target in (1, [1], [0])]
        first, second, third = handler.handle(rows, context)
        assert first == second != third

    def test_a_batch_of_predictions_and_explanations_answers_each(self, make_handler, bright):
        handler, context = make_handler()
        context.start_batch(
            {"explain": "False"}, {**EXPLAIN, "url_query": "target=1"}, {"explain": "False"}
        )
        answers = handler.handle([{"body": bright} for _ in range(3)], context)
        assert answers[0] == answers[2] == {"0": 0.5, "1": 0.5}
        assert halves(answers[1])[0] == 0 < halves(answers[1])[1]

    def test_a_model_without_a_tensor_says_so(self, make_handler, bright):
        handler, context = make_handler()
        handler.model = lambda images: {"out": images}
        with pytest.raises(PredictionException, match="output is no tensor") as caught:
            explain(handler, context, {"data": bright})
        assert caught.value.error_code == 501

    def test_compiled_code_has_no_gradients(self, make_handler, bright):
        handler, context = make_handler()
        handler.model = compiled_code(handler.model)
        with pytest.raises(PredictionException, match="needs gradients") as caught:
            explain(handler, context, {"data": bright})
        assert caught.value.error_code == 501

    def test_models_without_gradients_can_be_explained_by_hiding_parts(self, make_handler, bright):
        class Session:
            """As much of a session of ONNX Runtime as is asked: numpy in, numpy out."""

            def get_inputs(self):
                return [types.SimpleNamespace(name="images", type="tensor(float)")]

            def run(self, names, feed):
                return [Patches()(torch.from_numpy(feed["images"])).detach().numpy()]

        handler, context = make_handler()
        handler.model = Session()
        with pytest.raises(PredictionException, match="integrated_gradients needs gradients"):
            explain(handler, context, {"data": bright})
        section = {"method": "occlusion", "arguments": {"sliding_window_shapes": [3, 2, 2]}}
        handler, context = make_handler(section)
        handler.model = Session()
        left, right = halves(explain(handler, context, {"data": bright, "target": 1}))
        assert right > 10 * left

    def test_a_model_of_another_type_gets_inputs_of_its_type(self, make_handler, bright):
        handler, context = make_handler()
        handler._dtype = torch.bfloat16
        handler.model.to(torch.bfloat16)
        left, right = halves(explain(handler, context, {"data": bright, "target": 1}))
        assert right > 0 == left

    def test_a_handler_without_transforms_draws_its_input_as_it_is(self, make_handler, bright):
        handler, _ = make_handler()
        handler.image_processing = None
        picture = handler._picture(torch.tensor([[[-1.0, 3.0]]]))
        assert picture.tolist() == [[[0.0, 1.0]]]

    def test_a_get_insights_of_ones_own_is_asked(self, make_handler, bright):
        class Own(SmallPictures):
            def get_insights(self, tensor_data, inputs, target):
                return [f"{len(inputs) > 0} {target}"] * len(tensor_data)

        handler, context = make_handler()
        handler.__class__ = Own
        assert explain(handler, context, {"data": bright, "target": b"1"}) == "True 1"


class Bag(torch.nn.Module):
    """Two logits from the mean of one-component vectors: the text's score, and minus it."""

    def __init__(self, mode):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(5, 2, mode=mode)
        weights = [[0.0, 0.0], [4.0, 1.0], [-2.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
        self.embedding.weight.data = torch.tensor(weights)

    def forward(self, ids, offsets):
        pooled = self.embedding(ids, offsets)
        return torch.stack([pooled[:, 0], -pooled[:, 0]], dim=1)


VOCABULARY = {"<unk>": 0, "good": 1, "bad": 2, "film": 3, "good film": 4}


@pytest.fixture
def make_text_handler(make_context, tmp_path):
    def make(section=None, mode="mean"):
        torch.save(VOCABULARY, tmp_path / "source_vocab.pt")
        context = make_context(config={} if section is None else {"captum": section})
        handler = TextClassifier()
        handler._load_model = lambda *_: setattr(handler, "model", Bag(mode).eval())
        handler.initialize(context)
        handler.mapping = {"0": "praise <b>", "1": "blame"}
        return handler, context

    return make


def coloured(image):
    """The columns with a strong red in them, and those with a strong blue."""
    reds, blues = set(), set()
    for y in range(image.height):
        for x in range(image.width):
            red, _, blue = image.getpixel((x, y))
            if abs(red - blue) > 60:
                (reds if red > blue else blues).add(x)
    return reds, blues


class TestTexts:
    @pytest.mark.parametrize(
        "section", [{}, {"method": "layer_gradient_x_activation"}, {"layer": "embedding"}]
    )
    @pytest.mark.parametrize(
        ("mode", "expected"),
        # "good film" has three tokens: 4 + 0 + 1, of which the pair's 1 belongs to both words.
        [("mean", [4.5 / 3, 0.5 / 3]), ("sum", [4.5, 0.5]), ("max", [4.0, 0.0])],
    )
    def test_with_a_section_importances_are_those_of_the_words(
        self, make_text_handler, section, mode, expected
    ):
        handler, context = make_text_handler(section, mode)
        answer = explain(handler, context, {"data": "Good film!"})
        assert answer["words"] == ["good", "film"]
        assert answer["importances"] == pytest.approx(expected, abs=1e-5)
        assert answer["target"] == 0

    @pytest.mark.parametrize("mode", ["mean", "sum"])
    def test_importances_add_up_to_captums(self, make_text_handler, mode):
        """Captum's own are one per component of the bag's vector: another cut of the same sum."""
        handler, context = make_text_handler({}, mode)
        answer = explain(handler, context, {"data": "bad good film", "target": 1})
        ids, _ = handler.preprocess([{"data": "bad good film"}])
        attributions = captum.attr.LayerIntegratedGradients(
            handler.model, handler.model.embedding
        ).attribute(
            ids,
            baselines=torch.zeros_like(ids),
            additional_forward_args=(torch.tensor([0]),),
            target=1,
        )
        assert sum(answer["importances"]) == pytest.approx(attributions.sum().item(), rel=1e-5)

    def test_without_one_they_are_torchserves(self, make_text_handler):
        handler, context = make_text_handler()
        answer = explain(handler, context, {"data": "Good film!"})
        assert set(answer) == {"words", "importances"}
        assert torch.tensor(answer["importances"]).shape == (1, 2)

    def test_html_shows_each_word_in_its_colour(self, make_text_handler):
        handler, context = make_text_handler()
        answer = explain(handler, context, {"data": "good bad"}, Accept="text/html")
        assert context.get_response_content_type(0) == "text/html; charset=utf-8"
        assert "<title>What speaks for praise &lt;b&gt;</title>" in answer
        good, bad = (line for line in answer.split("<span") if "good<" in line or "bad<" in line)
        assert "rgba(214,39,40" in good
        assert "rgba(31,119,180" in bad

    @pytest.mark.parametrize(
        "headers", [{"url_query": "format=png"}, {"Accept": "image/png, text/html;q=0.5"}]
    )
    def test_png_draws_each_word_on_its_colour(self, make_text_handler, headers):
        handler, context = make_text_handler()
        answer = explain(handler, context, {"data": "good bad"}, **headers)
        assert context.get_response_content_type(0) == "image/png"
        image = Image.open(io.BytesIO(answer))
        assert (image.format, image.mode) == ("PNG", "RGB")
        # Below the title the first word, which speaks for the label, and then the other one.
        line = image.crop((0, image.height // 3, image.width, image.height * 2 // 3))
        reds, blues = coloured(line)
        assert max(reds) < min(blues)

    def test_the_configuration_may_say_png(self, make_text_handler):
        handler, context = make_text_handler({"format": "png"})
        answer = explain(handler, context, {"data": "good"})
        assert answer.startswith(b"\x89PNG")

    def test_texts_of_a_batch_are_explained_each(self, make_text_handler):
        handler, context = make_text_handler({"target": "predicted"})
        context.start_batch(EXPLAIN, {**EXPLAIN, "url_query": "target=9"}, EXPLAIN)
        rows = [{"data": "good"}, {"data": "film"}, {"data": "bad film"}]
        good, refused, bad = handler.handle(rows, context)
        assert (good["target"], bad["target"]) == (0, 1)
        assert good["importances"] == pytest.approx([4.0])
        assert bad["importances"] == pytest.approx([2 / 3, 0], abs=1e-5)
        assert refused["code"] == context.get_response_status(1)[0] == 400

    def test_compiled_code_has_no_gradients(self, make_text_handler):
        handler, context = make_text_handler()
        handler.model = compiled_code(handler.model)
        with pytest.raises(PredictionException, match="need gradients") as caught:
            explain(handler, context, {"data": "good film"})
        assert caught.value.error_code == 501

    def test_an_unknown_layer_is_refused_when_the_model_starts(self, make_text_handler):
        with pytest.raises(ValueError, match=r"did you mean 'embedding'\?"):
            make_text_handler({"layer": "embeding"})


def test_missing_captum_says_what_to_install(make_handler, bright, monkeypatch):
    handler, context = make_handler()
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(RuntimeError, match=r"torchserve\[explain\]"):
        explain(handler, context, {"data": bright})
