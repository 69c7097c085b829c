"""The handler that the others build on.

A handler turns a batch of requests into a list of answers: `preprocess` makes model input of the
requests, `inference` runs the model, `postprocess` makes one answer per request. `initialize` loads
the model once, before the first batch.
"""

from __future__ import annotations

import abc
import importlib.util
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.torch_version import TorchVersion

from ts.handler_utils.timer import timed
from ts.torch_handler.explanations import explain_target
from ts.torch_handler.model_files import (
    is_weights_only,
    load_pt2,
    load_torch_file,
    run_onnx,
    wanted_dtype,
)
from ts.utils.util import (
    check_valid_pt2_backend,
    list_classes_from_module,
    load_label_mapping,
)

logger = logging.getLogger(__name__)

PROFILER_OUTPUT_DIR = "/tmp/pytorch_profiler"  # noqa: S108 documented place of the traces


def _is_installed(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


# The optional packages are looked for here and imported where they are used: importing them takes
# seconds that models without a need for them should not wait.
PROFILER_AVAILABLE = True
XLA_AVAILABLE = _is_installed("torch_xla")
ONNX_AVAILABLE = _is_installed("onnxruntime")
PT2_AVAILABLE = TorchVersion(torch.__version__) >= "2.0"
PT230_AVAILABLE = TorchVersion(torch.__version__) > "2.2.2"

IPEX_AVAILABLE = False
if os.environ.get("TS_IPEX_ENABLE", "false") == "true":
    try:
        import intel_extension_for_pytorch as ipex

        IPEX_AVAILABLE = True
    except ImportError as error:
        logger.warning("IPEX is enabled but intel-extension-for-pytorch is missing: %s", error)

if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    torch.set_float32_matmul_precision("high")


def setup_ort_session(model_pt_path: str, map_location: str | None) -> Any:
    """An ONNX Runtime session for the model file.

    map_location: "cuda" asks for the CUDA provider first; anything else runs on the CPU.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            "serving an ONNX model needs ONNX Runtime; install it with: pip install onnxruntime "
            "(or the server's extra: pip install 'torchserve[onnx]')"
        ) from error
    providers = ["CPUExecutionProvider"]
    if map_location == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    return onnxruntime.InferenceSession(model_pt_path, sess_options=options, providers=providers)


def request_payload(row: Any) -> Any:
    """What the request carries: field `data`, else `body`, else the row itself (unwrapped)."""
    if not isinstance(row, dict):
        return row
    data = row.get("data")
    if data is None or (isinstance(data, str | bytes | bytearray) and not data):
        return row.get("body")
    return data


class BaseHandler(abc.ABC):  # noqa: B024  made to be derived from; no method is compulsory
    """Loads the archive's model and runs batches through it.

    Override what differs: `preprocess`, `inference`, `postprocess`, `get_insights`,
    `describe_handle`.
    """

    # Which requests of a mixed batch are being explained; None: all that are at hand.
    _explained: Sequence[int] | None = None
    # What `handler.dtype` names; None leaves weights and inputs as they are.
    _dtype: torch.dtype | None = None

    def __init__(self) -> None:
        # From the archive and the configuration.
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: torch.device | None = None
        self.map_location: str | None = None
        self.model_pt_path: str | None = None
        self.manifest: dict[str, Any] | None = None
        self.initialized = False
        # Per batch.
        self.context: Any = None
        self.explain = False
        self.target: Any = 0
        # Keyword arguments of torch.profiler.profile; a subclass may set them.
        self.profiler_args: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the model that the archive's manifest names onto the device given to this worker.

        Raises RuntimeError if the archive has no weights that can be loaded.
        """
        properties = context.system_properties
        self.map_location, self.device = self._select_device(properties.get("gpu_id"))
        self.manifest = context.manifest
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        model_dir = str(properties.get("model_dir"))
        model_entry = self.manifest["model"]
        self.model_pt_path = None
        if model_entry.get("serializedFile"):
            self.model_pt_path = os.path.join(model_dir, model_entry["serializedFile"])

        self._dtype = wanted_dtype(self.model_yaml_config)
        self._load_model(model_dir, model_entry.get("modelFile") or "")
        self._optimize_model()

        self.mapping = load_label_mapping(os.path.join(model_dir, "index_to_name.json"))
        self.initialized = True

    def _select_device(self, gpu_id: int | str | None) -> tuple[str | None, torch.device]:
        if gpu_id is not None:
            if torch.cuda.is_available():
                return "cuda", torch.device(f"cuda:{gpu_id}")
            wants_xpu = os.environ.get("TS_IPEX_GPU_ENABLE", "false") == "true"
            if wants_xpu and torch.xpu.is_available():
                return "xpu", torch.device(f"xpu:{gpu_id}")
            if torch.backends.mps.is_available():
                return "mps", torch.device("mps")
        if XLA_AVAILABLE:
            from torch_xla.core import xla_model

            return None, xla_model.xla_device()
        return "cpu", torch.device("cpu")

    def _load_model(self, model_dir: str, model_file: str) -> None:
        path = self.model_pt_path or ""
        if model_file:
            self.model = self._load_pickled_model(model_dir, model_file, self.model_pt_path)
            self.model.to(self.device, self._dtype)
            self.model.eval()
        elif path.endswith(".pt"):
            self.model = self._load_torchscript_model(path)
            self.model.to(self.device, self._dtype)
            self.model.eval()
        elif path.endswith((".onnx", ".pt2", ".so")):
            if self._dtype is not None:
                raise ValueError(
                    f"handler.dtype: {os.path.basename(path)} keeps the types it was exported with"
                )
            self.model = self._load_exported_model(path)
        elif path and not is_weights_only(self.model_yaml_config):
            self.model = self._load_whole_model(path)
            self.model.to(self.device, self._dtype)
            self.model.eval()
        else:
            raise _no_weights(path)

    def _load_exported_model(self, path: str) -> Any:
        if path.endswith(".onnx"):
            return setup_ort_session(path, self.map_location)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if path.endswith(".pt2"):
            return load_pt2(path, self.device, is_weights_only(self.model_yaml_config))
        if self._use_torch_export_aot_compile() and PT230_AVAILABLE:
            return self._load_torch_export_aot_compile(path)
        raise _no_weights(path)

    def _load_whole_model(self, path: str) -> torch.nn.Module:
        """A model that was saved with its class, by `torch.save(model, path)`."""
        model = load_torch_file(path, self.device, weights_only=False)
        if not isinstance(model, torch.nn.Module):
            raise RuntimeError(
                f"{os.path.basename(path)} holds a {type(model).__name__} and no model; weights "
                "need a model file with their class."
            )
        return model

    def _use_torch_export_aot_compile(self) -> bool:
        pt2 = self.model_yaml_config.get("pt2")
        export = pt2.get("export") if isinstance(pt2, dict) else None
        return bool(export.get("aot_compile")) if isinstance(export, dict) else False

    def _load_pickled_model(
        self, model_dir: str, model_file: str, model_pt_path: str | None
    ) -> torch.nn.Module:
        """The one model class of the model file, with the weights loaded if there are any.

        Raises RuntimeError if the file is missing and ValueError if it does not define exactly one
        class.
        """
        path = os.path.join(model_dir, model_file)
        if not os.path.isfile(path):
            raise RuntimeError(f"Missing the model.py file: {model_file} is not in the archive")
        module = _import_model_file(path)
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        model = classes[0]()
        if model_pt_path:
            trust = is_weights_only(getattr(self, "model_yaml_config", None))
            weights = load_torch_file(model_pt_path, self.device, trust)
            if isinstance(weights, torch.nn.Module):  # only where the archive trusts its pickles
                weights = weights.state_dict()
            model.load_state_dict(weights)
        return model

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        if _is_installed("torch_tensorrt"):
            import torch_tensorrt  # noqa: F401  registers the operators of TensorRT modules

        # torch deprecates its TorchScript entry points; serving such files is our contract, so the
        # advice is not for whoever reads this log.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            try:
                return torch.jit.load(model_pt_path, map_location=self.device)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{os.path.basename(model_pt_path)} is no TorchScript file; if it holds a "
                    "state dict, the archive needs a model file with the model's class. "
                    f"Cause: {error}"
                ) from error

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        return torch._export.aot_load(model_so_path, self.map_location)

    def _optimize_model(self) -> None:
        """Compile as the model's `pt2` configuration says, or else prepare the model for IPEX."""
        options = _compile_options(self.model_yaml_config.get("pt2"))
        if options is not None and PT2_AVAILABLE:
            backend = options.get("backend")
            if "backend" in options and not check_valid_pt2_backend(backend):
                logger.warning("%r is not a known torch.compile backend; not compiling", backend)
                return
            if backend == "openvino" and _is_installed("openvino"):
                import openvino.torch  # noqa: F401  registers the backend
            try:
                self.model = torch.compile(self.model, **options)
                logger.info("Compiled model with %s", options or "the default backend")
            except Exception:
                logger.warning("Compiling the model failed; serving it as it is", exc_info=True)
        elif IPEX_AVAILABLE:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.model = self.model.to(self.device)
            self.model = ipex.optimize(self.model)

    @timed
    def preprocess(self, data: Any) -> torch.Tensor:
        """The batch as one tensor on the device; `data` must be nested lists of numbers."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the batch."""
        with torch.inference_mode():
            return self._run_model(data, *args, **kwargs)

    def _run_model(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The output of whatever kind of model was loaded, for input of any device and type."""
        if hasattr(self.model, "get_inputs"):  # a session of ONNX Runtime
            return run_onnx(self.model, data, *args, **kwargs)
        return self.model(self._as_input(data), *args, **kwargs)

    def _as_input(self, data: torch.Tensor) -> torch.Tensor:
        """The data on the model's device, and in its type if the configuration names one."""
        data = data.to(self.device)
        if self._dtype is not None and data.is_floating_point():
            data = data.to(self._dtype)
        return data

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """One plain value per request."""
        return data.tolist()

    def handle(self, data: list[Any], context: Any) -> list[Any]:
        """One answer per request of the batch `data`."""
        start_s = time.perf_counter()
        self.context = context
        if os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = self._infer_with_profiler(data=data)
        elif self._is_describe():
            output = [self.describe_handle()]
        else:
            output = self._run_parts(data)
        handler_ms = round((time.perf_counter() - start_s) * 1000, 2)
        context.metrics.add_time("HandlerTime", handler_ms, None, "ms")
        return output

    def _run_parts(self, data: list[Any]) -> list[Any]:
        """The answers to a batch, in which some may want a prediction and some an explanation."""
        requests = self._request_indexes(data) or ()
        wants = [self._has_true_header("explain", index) for index in requests]
        if not any(wants) or all(wants):
            return self._run_part(data, self._is_explain())
        output: list[Any] = [None] * len(data)
        for is_explain in (False, True):
            indexes = [index for index, wanted in enumerate(wants) if wanted is is_explain]
            if is_explain:
                self.explain = True
                self._explained = indexes
            try:
                answers = self._run_part([data[index] for index in indexes], is_explain)
            finally:
                self._explained = None
            if not isinstance(answers, list) or len(answers) != len(indexes):
                return answers  # the service says what is wrong with it
            for index, answer in zip(indexes, answers, strict=True):
                output[index] = answer
        return output

    def _run_part(self, data: list[Any], is_explain: bool) -> Any:
        data_preprocess = self.preprocess(data)
        if is_explain:
            return self.explain_handle(data_preprocess, data)
        return self.postprocess(self.inference(data_preprocess))

    def _request_indexes(self, rows: list[Any]) -> Sequence[int] | None:
        """Where the requests of these rows are in the context's batch.

        None if rows are no requests: an envelope has made several of one, or there is no server.
        """
        if self._explained is not None:
            return self._explained
        requests = getattr(self.context, "request_processor", None)
        if requests is None or len(requests) != len(rows):
            return None
        return range(len(rows))

    def explain_handle(self, data_preprocess: Any, raw_data: list[Any]) -> Any:
        """The explanation of the batch, from `get_insights`, which a subclass defines.

        Input and target come from the first request. A form field is bytes, so digits in bytes
        count as an integer target.
        """
        row = raw_data[0]
        target = row.get("target") if isinstance(row, dict) else None
        return self.get_insights(data_preprocess, request_payload(row), explain_target(target))

    def describe_handle(self) -> Any:
        """Extra information for a describe call; override to return a dict."""
        return None

    def get_device(self) -> torch.device | None:
        """The device the model runs on."""
        return self.device

    def _is_explain(self) -> bool:
        if self._has_true_header("explain"):
            self.explain = True
            return True
        return False

    def _is_describe(self) -> bool:
        return self._has_true_header("describe")

    def _has_true_header(self, key: str, index: int = 0) -> bool:
        return bool(self.context) and self.context.get_request_header(index, key) == "True"

    def _infer_with_profiler(self, data: list[Any]) -> tuple[Any, Any]:
        """The batch's answers and the finished profile of how they were made."""
        profiler_args = dict(self.profiler_args)
        if not profiler_args:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            profiler_args = {"activities": activities, "record_shapes": True}
        if "on_trace_ready" not in profiler_args:
            model_name = (self.manifest or {}).get("model", {}).get("modelName", "model")
            profiler_args["on_trace_ready"] = torch.profiler.tensorboard_trace_handler(
                os.path.join(PROFILER_OUTPUT_DIR, model_name)
            )
        with profile(**profiler_args) as prof:
            with record_function("preprocess"):
                data_preprocess = self.preprocess(data)
            if self._is_explain():
                with record_function("explain"):
                    output = self.explain_handle(data_preprocess, data)
            else:
                with record_function("inference"):
                    result = self.inference(data_preprocess)
                with record_function("postprocess"):
                    output = self.postprocess(result)
        return output, prof


def _import_model_file(path: str) -> ModuleType:
    """The model file as a module.

    It is loaded from its path, so that neither sys.path nor another archive's module of the same
    name decides which file it is.
    """
    name = os.path.basename(path).split(".")[0]
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and inspect look classes up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _no_weights(path: str) -> RuntimeError:
    return RuntimeError(
        f"No model weights could be loaded: serialized file {path or 'none'!r}, model file none. "
        "Give a model file for a state dict, or a TorchScript .pt, an exported .pt2, an .onnx, a "
        ".so with pt2.export.aot_compile; or, for a model saved with its class, "
        "handler.weights_only: false."
    )


def _compile_options(pt2: Any) -> dict[str, Any] | None:
    """Keyword arguments for torch.compile, or None if the model is not to be compiled.

    pt2: `{compile: {enable: ..., ...}}`, or the older forms: a backend name, or the keyword
    arguments themselves. Raises KeyError if `compile` does not say `enable`.
    """
    if not pt2:
        return None
    if isinstance(pt2, str):
        return {"backend": pt2}
    if not isinstance(pt2, dict):
        raise ValueError("pt2 should be str or dict")
    if "compile" in pt2:
        options = dict(pt2["compile"])
        return options if options.pop("enable") else None
    if "export" in pt2:
        return None
    return dict(pt2)
