"""The helpers that handlers import."""

from __future__ import annotations

import json
import time
from types import ModuleType

import pytest

from ts.handler_utils.timer import timed
from ts.handler_utils.utils import import_class
from ts.model_service.model_service import ModelService, SingleNodeService
from ts.utils import util


def test_prediction_exception():
    error = util.PredictionException("no", 404)
    assert (error.message, error.error_code, str(error)) == ("no", 404, "no : 404")
    assert util.PredictionException("no").error_code == 500


def test_classes_of_a_module():
    module = ModuleType("made")
    made = {name: type(name, (), {"__module__": "made"}) for name in ("B", "A")}
    made["C"] = type("C", (made["A"],), {"__module__": "made"})
    vars(module).update(made, Foreign=json.JSONDecoder)
    assert util.list_classes_from_module(module) == [made["A"], made["B"], made["C"]]
    assert util.list_classes_from_module(module, made["A"]) == [made["A"], made["C"]]


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ('{"0": "cat", "1": ["n01", "dog"]}', {"0": "cat", "1": "dog"}),
        ('{"object_type_names": ["a", "b"]}', {"0": "a", "1": "b"}),
    ],
)
def test_label_mapping(tmp_path, text, mapping):
    (tmp_path / "index_to_name.json").write_text(text)
    assert util.load_label_mapping(str(tmp_path / "index_to_name.json")) == mapping


@pytest.mark.parametrize("text", ["[]", '{"0": 1}', '{"0": []}', '{"0": [1]}'])
def test_label_mapping_that_is_none(tmp_path, text):
    (tmp_path / "index_to_name.json").write_text(text)
    with pytest.raises(Exception, match="index_to_name"):
        util.load_label_mapping(str(tmp_path / "index_to_name.json"))


def test_missing_label_mapping(tmp_path, caplog):
    assert util.load_label_mapping(str(tmp_path / "index_to_name.json")) is None
    assert "index_to_name.json" in caplog.text


def test_map_class_to_label():
    probabilities = [[0.7, 0.3], [0.4, 0.6]]
    assert util.map_class_to_label(probabilities) == [{"0": 0.7, "1": 0.3}, {"0": 0.4, "1": 0.6}]
    names = {"3": "c", "5": "e"}
    found = util.map_class_to_label(probabilities, names, [[5, 3], [3, 5]])
    assert [list(row.items()) for row in found] == [
        [("e", 0.7), ("c", 0.3)],
        [("c", 0.4), ("e", 0.6)],
    ]
    with pytest.raises(KeyError):
        util.map_class_to_label(probabilities, {"0": "a"})


@pytest.mark.parametrize(
    ("name", "is_valid"), [("inductor", True), ("openvino", True), ("x", False)]
)
def test_pt2_backends(name, is_valid):
    assert util.check_valid_pt2_backend(name) is is_valid


def test_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1]")
    assert util.get_yaml_config(str(tmp_path / "a.yaml")) == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "clean"), [("<b>x</b>", "x"), ("a&nbsp;b&#39;&#x27;", "ab"), ("1 < 2", "1 < 2")]
)
def test_cleanup(text, clean):
    assert util.CLEANUP_REGEX.sub("", text) == clean


def test_cleanup_is_linear():
    started_s = time.perf_counter()
    util.CLEANUP_REGEX.sub("", "<" * 200_000 + "&" * 200_000 + "&a" * 100_000)
    assert time.perf_counter() - started_s < 5


def test_deprecated():
    @util.deprecated("2.0", "new_name", DeprecationWarning)
    def old_name():
        return 7

    with pytest.warns(DeprecationWarning, match=r"old_name.*2\.0.*new_name"):
        assert old_name() == 7


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("JSONDecoder", "json"), ("json.JSONDecoder", None), ("decoder.JSONDecoder", "json")],
)
def test_import_class(name, prefix):
    assert import_class(name, prefix) is json.JSONDecoder


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("Nothing", "json"), ("nothing.X", None), ("loads", "json"), ("X", None)],
)
def test_import_class_misses(name, prefix):
    with pytest.raises(ImportError):
        import_class(name, prefix)


class RecordingMetrics:
    def __init__(self) -> None:
        self.times: list[str] = []

    def add_time(self, name, value, *args, **kwargs) -> None:
        assert value >= 0
        self.times.append(name)


class ProfiledContext:
    def __init__(self, config) -> None:
        self.model_yaml_config = config
        self.metrics = RecordingMetrics()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"handler": {"profile": True}}, ["ts_handler_preprocess"]),
        ({"handler": {"profile": False}}, []),
        ({"handler": None}, []),
        ({}, []),
        (None, []),
    ],
)
def test_timed(config, names):
    class Handler:
        context = ProfiledContext(config)

        @timed
        def preprocess(self, data):
            return data + 1

    handler = Handler()
    assert handler.preprocess(1) == 2
    assert handler.context.metrics.times == names


def test_single_node_service():
    class Doubling(SingleNodeService):
        def _preprocess(self, data):
            return [row["body"] for row in data]

        def _inference(self, data):
            return [2 * value for value in data]

    service = Doubling()
    assert isinstance(service, ModelService)
    assert service.inference([{"body": 1}]) == [2]  # without a context, without metrics
    assert (service.ping(), service.signature()) == (None, None)
    assert not service.initialized
    service.initialize("context")
    assert service.initialized
    context = ProfiledContext({})
    assert service.handle([{"body": 4}], context) == [8]
    assert context.metrics.times == ["PreprocessTime", "InferenceTime", "PostprocessTime"]
