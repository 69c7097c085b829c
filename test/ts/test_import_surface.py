"""What handlers, archives and helper scripts import: the table `import_surface.txt`."""

from __future__ import annotations

import enum
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ts.metrics.metric_type_enum import MetricTypes

TABLE = Path(__file__).with_name("import_surface.txt")
METRICS_FILE = str(Path(__file__).parents[2] / "ts" / "configs" / "metrics.yaml")


def read_table() -> Iterator[tuple[str, str, str | None]]:
    """Module, dotted name in it ("" for the module itself), parameters (None: any object)."""
    module = ""
    for line in TABLE.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if not line.startswith(" "):
            module = line
            yield module, "", None
            continue
        name, bracket, parameters = line.strip().partition("(")
        yield module, name, parameters.removesuffix(")") if bracket else None


ENTRIES = list(read_table())


def parameters_of(found: object) -> str:
    def show(parameter: inspect.Parameter) -> str:
        text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
        default = parameter.default
        if default is parameter.empty:
            return text
        is_named = isinstance(default, type | enum.Enum)
        if is_named:
            return f"{text}={default.__name__ if isinstance(default, type) else default.name}"
        return f"{text}={default!r}"

    return ", ".join(map(show, inspect.signature(found).parameters.values()))


@pytest.mark.parametrize(
    ("module", "name", "parameters"), ENTRIES, ids=[f"{m}:{n}" for m, n, _ in ENTRIES]
)
def test_entry(module: str, name: str, parameters: str | None) -> None:
    found = importlib.import_module(module)
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    if parameters is not None:
        assert parameters_of(found) == parameters


# What objects carry from the start: handlers read it, and some set it. `...` stands for any value.
INSTANCES = {
    "ts.context:Context": (
        ("net", "/models/net", {"model": {}}, 4, 1, "0.12.0"),
        {
            "model_name": "net",
            "manifest": {"model": {}},
            "model_yaml_config": None,
            "metrics": None,
            "request_ids": None,
            "request_processor": [],
            "cl_socket": None,
            "stopping_criteria": None,
            "header_key_sequence_id": "ts_request_sequence_id",
            "header_key_sequence_start": "ts_request_sequence_start",
            "header_key_sequence_end": "ts_request_sequence_end",
            "system_properties": {
                "model_dir": "/models/net",
                "gpu_id": 1,
                "batch_size": 4,
                "server_name": "MMS",
                "server_version": "0.12.0",
                "limit_max_image_pixels": True,
            },
        },
    ),
    "ts.torch_handler.base_handler:BaseHandler": (
        (),
        {
            **dict.fromkeys(("model", "mapping", "device", "context", "model_pt_path")),
            **dict.fromkeys(("manifest", "map_location")),
            "initialized": False,
            "explain": False,
            "target": 0,
            "profiler_args": {},
        },
    ),
    "ts.torch_handler.image_classifier:ImageClassifier": ((), {"topk": 5}),
    "ts.torch_handler.object_detector:ObjectDetector": ((), {"threshold": 0.5}),
    "ts.torch_handler.text_classifier:TextClassifier": ((), {"ngrams": 2, "tokenizer": ...}),
    "ts.torch_handler.densenet_handler:DenseNetHandler": ((), {"initialized": False}),
    "ts.handler_utils.micro_batching:MicroBatching": (
        (object(), 3, {"preprocess": 0, "inference": 0, "postprocess": 0}),
        {
            "micro_batch_size": 3,
            "parallelism": {"preprocess": 0, "inference": 0, "postprocess": 0},
            "thread_groups": {"preprocess": [], "inference": [], "postprocess": []},
        },
    ),
    "ts.metrics.metric_cache_yaml_impl:MetricsCacheYamlImpl": (
        (METRICS_FILE,),
        {
            "cache": {},
            "store": [],
            "request_ids": None,
            "model_name": ...,
            "config_file_path": METRICS_FILE,
        },
    ),
    "ts.metrics.caching_metric:CachingMetric": (
        ("Time", "ms"),
        {
            "metric_name": "Time",
            "unit": "Milliseconds",
            "dimension_names": [],
            "metric_type": MetricTypes.COUNTER,
        },
    ),
    "ts.metrics.dimension:Dimension": (("Level", "Model"), {"name": "Level", "value": "Model"}),
    "ts.metrics.metric:Metric": (("Time", 1, "ms", []), {"name": "Time", "value": 1}),
    "ts.utils.util:PredictionException": (
        ("no picture", 415),
        {"message": "no picture", "error_code": 415},
    ),
    "ts.torch_handler.unit_tests.test_utils.mock_context:MockContext": (
        ("net.pt", "/models/net", "net.py"),
        {
            "manifest": {"model": {"serializedFile": "net.pt", "modelFile": "net.py"}},
            "system_properties": ...,
            "explain": False,
            "metrics": ...,
            "model_yaml_config": ...,
        },
    ),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_attributes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ID", "START", "END"):
        monkeypatch.delenv(f"TS_REQUEST_SEQUENCE_{variable}", raising=False)
    module, _, class_name = name.partition(":")
    arguments, attributes = INSTANCES[name]
    made = getattr(importlib.import_module(module), class_name)(*arguments)
    for attribute, value in attributes.items():
        found = getattr(made, attribute)
        assert value is ... or found == value, attribute
    made.of_a_handlers_own = 1  # nothing has slots


CONSTANTS = {
    "ts.service:PREDICTION_METRIC": "PredictionTime",
    "ts.model_service_worker:SOCKET_ACCEPT_TIMEOUT": 30.0,
    "ts.handler_utils.micro_batching:HANDLER_METHODS": ("preprocess", "inference", "postprocess"),
    "model_archiver.model_packaging_utils:archiving_options": (
        *("tgz", "no-archive", "zip-store", "default"),
    ),
    "model_archiver.model_packaging_utils:model_handlers": (
        *("base_handler", "text_classifier", "image_classifier", "object_detector"),
        *("image_segmenter", "dali_image_classifier", "vllm_handler", "trt_llm_handler"),
    ),
    "ts.utils.util:PT2Backend": (
        *("eager", "aot_eager", "inductor", "nvfuser", "aot_nvfuser", "aot_cudagraphs", "ofi"),
        *("fx2trt", "onnxrt", "ipex", "torchxla_trace_once", "openvino", "tensorrt"),
        "hpu_backend",
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    module, _, constant = name.partition(":")
    found = getattr(importlib.import_module(module), constant)
    if isinstance(found, enum.EnumMeta):
        found = [member.value for member in found]
    expected = CONSTANTS[name]
    assert (sorted(found) if isinstance(expected, tuple) else found) == (
        sorted(expected) if isinstance(expected, tuple) else expected
    )


def test_one_prediction_exception():
    from ts.service import PredictionException as of_service
    from ts.utils.util import PredictionException as of_util

    assert of_service is of_util


# Handlers import these before they know whether they need torch, and workers start the faster.
LIGHT = [
    "ts",
    "ts.version",
    "ts.context",
    "ts.service",
    "ts.async_service",
    "ts.model_loader",
    "ts.model_service_worker",
    "ts.arg_parser",
    "ts.protocol.otf_message_handler",
    "ts.handler_utils.utils",
    "ts.handler_utils.timer",
    "ts.handler_utils.micro_batching",
    "ts.handler_utils.hf_batch_streamer",
    "ts.handler_utils.text_utils",
    "ts.utils.util",
    "ts.utils.timeit_decorator",
    "ts.utils.hf_utils",
    "ts.utils.setup_model_venv",
    "ts.model_service.model_service",
]


def test_importing_the_worker_runtime_loads_nothing_heavy():
    code = (
        f"import importlib, sys\n"
        f"for name in {LIGHT!r}: importlib.import_module(name)\n"
        f"sys.exit(str([m for m in ('torch', 'numpy', 'psutil') if m in sys.modules] or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stderr.strip() in ("", "[]"), result.stderr


# Packages that a plain install does not have: whoever imports a handler module does not need them,
# whoever uses it is told what to install.
OPTIONAL = [
    "captum",
    "deepspeed",
    "huggingface_hub",
    "nvidia.dali",
    "onnxruntime",
    "pippy",
    "safetensors",
    "tensorrt_llm",
    "torchvision",
    "transformers",
    "vllm",
]


def test_no_module_of_the_surface_needs_an_optional_package():
    modules = [module for module, name, _ in ENTRIES if not name and module != "ts.launcher"]
    code = (
        "import importlib, sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
