"""What handlers, archives and helper scripts import from the worker runtime.

Source of the table: the handler API contract, sections 1 and 9.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

NAMES = {
    "ts": ["__version__"],
    "ts.version": ["__version__"],
    "ts.context": ["Context", "RequestProcessor"],
    "ts.service": [
        "Service",
        "PREDICTION_METRIC",
        "emit_metrics",
        "PredictionException",
        "create_predict_response",
    ],
    "ts.async_service": ["AsyncService", "predict"],
    "ts.model_loader": ["ModelLoaderFactory", "ModelLoader", "TsModelLoader"],
    "ts.model_service_worker": [
        "TorchModelServiceWorker",
        "SOCKET_ACCEPT_TIMEOUT",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "WORLD_RANK",
        "LOCAL_WORLD_SIZE",
        "BENCHMARK",
        "DEBUG",
        "MAX_FAILURE_THRESHOLD",
    ],
    "ts.arg_parser": ["ArgParser"],
    "ts.protocol.otf_message_handler": [
        "retrieve_msg",
        "create_predict_response",
        "create_load_model_response",
        "encode_response_headers",
        "send_intermediate_predict_response",
    ],
    "ts.handler_utils.utils": [
        "send_intermediate_predict_response",
        "import_class",
        "create_predict_response",
    ],
    "ts.handler_utils.timer": ["timed"],
    "ts.utils.util": [
        "list_classes_from_module",
        "PredictionException",
        "check_valid_pt2_backend",
        "PT2Backend",
        "get_yaml_config",
        "CLEANUP_REGEX",
        "deprecated",
        "load_label_mapping",
        "map_class_to_label",
    ],
    "ts.model_service.model_service": ["ModelService", "SingleNodeService"],
}

SIGNATURES = {
    "ts.context:Context": "model_name, model_dir, manifest, batch_size, gpu, mms_version, "
    "limit_max_image_pixels=True, metrics=None, model_yaml_config=None",
    "ts.context:Context.set_response_status": "self, code=200, phrase='', idx=0",
    "ts.context:Context.set_all_response_status": "self, code=200, phrase=''",
    "ts.context:Context.get_request_id": "self, idx=0",
    "ts.service:Service": "model_name, model_dir, manifest, entry_point, gpu, batch_size, "
    "limit_max_image_pixels=True, metrics_cache=None",
    "ts.model_loader:TsModelLoader.load": "self, model_name, model_dir, handler=None, "
    "gpu_id=None, batch_size=None, envelope=None, limit_max_image_pixels=True, "
    "metrics_cache=None",
    "ts.protocol.otf_message_handler:create_predict_response": "ret, req_id_map, message, code, "
    "context=None, ts_stream_next=False",
    "ts.handler_utils.utils:import_class": "class_name, module_prefix=None",
    "ts.utils.util:PredictionException": "message, error_code=500",
    "ts.utils.util:map_class_to_label": "probs, mapping=None, lbl_classes=None",
    "ts.utils.util:list_classes_from_module": "module, parent_class=None",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("where", SIGNATURES)
def test_signatures(where):
    module, _, path = where.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    parameters = inspect.signature(found).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert ", ".join(map(str, plain)) == SIGNATURES[where]


def test_one_prediction_exception():
    from ts.service import PredictionException as of_service
    from ts.utils.util import PredictionException as of_util

    assert of_service is of_util


def test_importing_the_worker_runtime_loads_nothing_heavy():
    modules = [name for name in NAMES if name != "ts.handler_utils.timer"]
    code = (
        f"import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"sys.exit(str([m for m in ('torch', 'numpy', 'psutil') if m in sys.modules] or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stderr.strip() in ("", "[]"), result.stderr
