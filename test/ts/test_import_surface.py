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

TABLE = Path(__file__).with_name("import_surface.txt")


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
