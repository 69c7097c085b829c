import logging
import os

import pytest
import torch

from ts.torch_handler import base_handler
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

DOUBLE = """
import torch

class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.factor
"""


@pytest.fixture
def double_dir(tmp_path):
    """A model directory with an eager model and its weights, which triple."""
    (tmp_path / "double.py").write_text(DOUBLE)
    torch.save({"factor": torch.tensor(3.0)}, tmp_path / "double.pth")
    return tmp_path


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TestLoading:
    def test_a_state_dict_is_loaded_into_the_model_files_class(self, double_dir, make_context):
        handler = BaseHandler()
        context = make_context(modelFile="double.py", serializedFile="double.pth")
        handler.initialize(context)
        assert handler.initialized
        assert not handler.model.training
        assert handler.handle([[1.0], [2.0]], context) == [[3.0], [6.0]]
        assert handler.get_device() == torch.device("cpu")
        assert (handler.map_location, handler.mapping) == ("cpu", None)
        assert handler.model_pt_path == str(double_dir / "double.pth")

    def test_a_model_file_needs_no_weights(self, double_dir, make_context):
        handler = BaseHandler()
        context = make_context(modelFile="double.py")
        handler.initialize(context)
        assert handler.handle([[1.0]], context) == [[2.0]]

    def test_the_archives_own_file_counts_not_a_module_of_its_name(
        self, double_dir, make_context, tmp_path_factory
    ):
        other = tmp_path_factory.mktemp("other")
        (other / "double.py").write_text(DOUBLE.replace("2.0", "5.0"))
        first = BaseHandler()._load_pickled_model(str(double_dir), "double.py", None)
        second = BaseHandler()._load_pickled_model(str(other), "double.py", None)
        assert (first(1.0).item(), second(1.0).item()) == (2.0, 5.0)

    def test_torchscript_is_loaded_without_a_model_file(self, make_context, save_torchscript):
        handler = BaseHandler()
        context = make_context(serializedFile=save_torchscript(Identity()))
        handler.initialize(context)
        assert handler.handle([[1.0]], context) == [[1.0]]

    @pytest.mark.parametrize("manifest_model", [{"serializedFile": "double.pth"}, {}])
    def test_weights_that_need_a_model_file_are_refused(
        self, double_dir, make_context, manifest_model
    ):
        with pytest.raises(RuntimeError, match="No model weights could be loaded"):
            BaseHandler().initialize(make_context(**manifest_model))

    def test_a_missing_model_file_is_refused(self, make_context):
        with pytest.raises(RuntimeError, match=r"Missing the model\.py file"):
            BaseHandler().initialize(make_context(modelFile="absent.py"))

    def test_two_model_classes_are_refused(self, double_dir, make_context):
        (double_dir / "two.py").write_text(DOUBLE + "\nclass Other: pass\n")
        with pytest.raises(ValueError, match="Expected only one class as model definition"):
            BaseHandler().initialize(make_context(modelFile="two.py"))

    def test_cve_2025_32434_code_in_a_weights_file_is_refused_unless_trusted(
        self, double_dir, make_context, monkeypatch
    ):
        torch.save({"factor": torch.tensor(3.0), "made": PredictionException("x")}, "odd.pth")
        context = make_context(modelFile="double.py", serializedFile="odd.pth")
        with pytest.raises(RuntimeError, match="TS_WEIGHTS_ONLY=false"):
            BaseHandler().initialize(context)

        monkeypatch.setenv("TS_WEIGHTS_ONLY", "false")
        loaded = base_handler.load_torch_file("odd.pth")
        assert isinstance(loaded["made"], PredictionException)

    @pytest.fixture(autouse=True)
    def _work_in_model_dir(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)

    def test_onnx_without_its_runtime_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(base_handler.sys.modules, "onnxruntime", None)
        with pytest.raises(RuntimeError, match="pip install onnxruntime"):
            base_handler.setup_ort_session("model.onnx", "cpu")

    def test_labels_are_loaded(self, double_dir, make_context, save_mapping):
        save_mapping({"0": "cat", "1": ["n1", "dog"]})
        handler = BaseHandler()
        handler.initialize(make_context(modelFile="double.py"))
        assert handler.mapping == {"0": "cat", "1": "dog"}


class TestCompile:
    @pytest.fixture
    def compiled_with(self, double_dir, make_context, monkeypatch):
        """Initialize with a `pt2` configuration; the arguments torch.compile got, or None."""

        def initialize(pt2):
            calls = []

            def fake_compile(model, **options):
                calls.append(options)
                return model

            monkeypatch.setattr(torch, "compile", fake_compile)
            context = make_context(config={"pt2": pt2}, modelFile="double.py")
            BaseHandler().initialize(context)
            return calls[0] if calls else None

        return initialize

    @pytest.mark.parametrize(
        ("pt2", "options"),
        [
            ({"compile": {"enable": True}}, {}),
            ({"compile": {"enable": True, "backend": "eager"}}, {"backend": "eager"}),
            ({"compile": {"enable": False, "backend": "eager"}}, None),
            ({"export": {"aot_compile": True}}, None),
            ("eager", {"backend": "eager"}),
            ({"backend": "eager", "dynamic": True}, {"backend": "eager", "dynamic": True}),
            ({"compile": {"enable": True, "backend": "no-such"}}, None),
            ("no-such", None),
            (None, None),
        ],
    )
    def test_forms_of_the_configuration(self, compiled_with, pt2, options):
        assert compiled_with(pt2) == options

    def test_the_configuration_is_left_as_it_is(self, compiled_with):
        pt2 = {"compile": {"enable": True}}
        compiled_with(pt2)
        assert pt2 == {"compile": {"enable": True}}

    def test_broken_configurations(self, compiled_with):
        with pytest.raises(ValueError, match="pt2 should be str or dict"):
            compiled_with(5)
        with pytest.raises(KeyError, match="enable"):
            compiled_with({"compile": {"backend": "eager"}})

    def test_a_failing_compiler_leaves_the_model_as_it_is(
        self, double_dir, make_context, monkeypatch, caplog
    ):
        def fail(model, **options):
            raise RuntimeError("no compiler")

        monkeypatch.setattr(torch, "compile", fail)
        handler = BaseHandler()
        context = make_context(config={"pt2": {"compile": {"enable": True}}}, modelFile="double.py")
        handler.initialize(context)
        assert handler.handle([[1.0]], context) == [[2.0]]
        assert "no compiler" in caplog.text


class Explainable(BaseHandler):
    def get_insights(self, data_preprocess, inputs, target):
        return [(data_preprocess.tolist(), inputs, target)]

    def preprocess(self, data):
        return torch.zeros(len(data))

    def describe_handle(self):
        return {"author": "me"}


class TestHandle:
    @pytest.fixture
    def context(self, make_context):
        return make_context()

    @pytest.fixture
    def handler(self):
        handler = Explainable()
        handler.model = Identity()
        handler.device = torch.device("cpu")
        return handler

    def test_the_handler_time_is_emitted(self, handler, context, caplog):
        caplog.set_level(logging.INFO)
        context.metrics.model_name = "tiny"
        context.start_batch({}, {})
        assert handler.handle([{"data": 1}, {"data": 2}], context) == [0.0, 0.0]
        (line,) = [r.getMessage() for r in caplog.records if "HandlerTime" in r.getMessage()]
        assert line.startswith("[METRICS]HandlerTime.Milliseconds:")
        assert "|#ModelName:tiny,Level:Model|#type:GAUGE|#hostname:" in line
        assert line.endswith(",r0,r1")

    def test_a_describe_call_gets_the_description(self, handler, context):
        context.start_batch({"describe": "True"})
        assert handler.handle([{}], context) == [{"author": "me"}]
        assert BaseHandler().describe_handle() is None

    @pytest.mark.parametrize(
        ("row", "inputs", "target"),
        [
            ({"data": b"x"}, b"x", 0),
            ({"body": b"x", "target": 3}, b"x", 3),
            ({"data": b"", "body": b"x", "target": bytearray(b"2")}, b"x", 2),
            ({"data": [1], "target": "-1"}, [1], -1),
            ({"data": [1], "target": [1, 2]}, [1], [1, 2]),
            ({"data": [1], "target": b""}, [1], 0),
            (b"unwrapped", b"unwrapped", 0),
        ],
    )
    def test_an_explanation_takes_input_and_target_of_the_first_request(
        self, handler, context, row, inputs, target
    ):
        context.start_batch({"explain": "True"})
        assert handler.explain is False
        assert handler.handle([row], context) == [([0.0], inputs, target)]
        assert handler.explain is True

    def test_a_target_that_is_no_number_is_the_clients_fault(self, handler, context):
        context.start_batch({"explain": "True"})
        with pytest.raises(PredictionException, match="target must be an integer") as caught:
            handler.handle([{"data": 1, "target": bytearray(b"\xffcat")}], context)
        assert caught.value.error_code == 400

    def test_false_headers_are_false(self, handler, context):
        context.start_batch({"explain": "False", "describe": "False"})
        assert handler.handle([{"data": 1}], context) == [0.0]

    def test_the_profiler_writes_a_trace_per_model(self, handler, context, monkeypatch, tmp_path):
        monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
        monkeypatch.setattr(base_handler, "PROFILER_OUTPUT_DIR", str(tmp_path))
        handler.manifest = context.manifest
        assert handler.handle([{"data": 1}], context) == [0.0]
        assert os.listdir(tmp_path / "tiny")
        assert handler.profiler_args == {}

    def test_profiler_arguments_can_be_preset(self, handler, context, monkeypatch):
        monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
        profiles = []
        handler.profiler_args = {"on_trace_ready": profiles.append, "record_shapes": False}
        handler.handle([{"data": 1}], context)
        assert len(profiles) == 1
        names = {event.key for event in profiles[0].key_averages()}
        assert {"preprocess", "inference", "postprocess"} <= names


def test_a_new_handler_is_empty():
    assert vars(BaseHandler()) == {
        "model": None,
        "mapping": None,
        "device": None,
        "map_location": None,
        "model_pt_path": None,
        "manifest": None,
        "initialized": False,
        "context": None,
        "explain": False,
        "target": 0,
        "profiler_args": {},
    }


@pytest.mark.gpu
def test_a_gpu_is_used(tmp_path, make_context):
    (tmp_path / "double.py").write_text(DOUBLE)
    handler = BaseHandler()
    context = make_context(gpu_id=0, modelFile="double.py")
    handler.initialize(context)
    assert (handler.map_location, handler.device) == ("cuda", torch.device("cuda:0"))
    assert handler.handle([[1.0]], context) == [[2.0]]
