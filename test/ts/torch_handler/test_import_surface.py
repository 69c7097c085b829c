"""What the loader relies on in the modules of default handlers."""

import importlib
import inspect

import pytest


def find(name):
    """The object that `package.module.Class.method` names."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["ts.torch_handler", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module in {name}")


@pytest.mark.parametrize(
    "flag",
    [
        "PROFILER_AVAILABLE",
        "XLA_AVAILABLE",
        "PT2_AVAILABLE",
        "PT230_AVAILABLE",
        "IPEX_AVAILABLE",
        "ONNX_AVAILABLE",
    ],
)
def test_flags(flag):
    assert isinstance(find(f"base_handler.{flag}"), bool)


HANDLERS = [
    "base_handler",
    "image_classifier",
    "object_detector",
    "image_segmenter",
    "text_classifier",
    "densenet_handler",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
    "request_envelope.body",
    "request_envelope.json",
    "request_envelope.kserve",
    "request_envelope.kservev2",
]


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_module_defines_exactly_one_class(name):
    # The loader takes the one class that a module defines; a second one would make it fail.
    module = find(name)
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    assert len(classes) == 1
    assert callable(classes[0].handle)
