"""The names that handlers of model archives import, and what the loader relies on."""

import importlib
import inspect

import pytest

SURFACE = {
    "base_handler.BaseHandler": "",
    "base_handler.BaseHandler.initialize": "self context",
    "base_handler.BaseHandler.preprocess": "self data",
    "base_handler.BaseHandler.inference": "self data args kwargs",
    "base_handler.BaseHandler.postprocess": "self data",
    "base_handler.BaseHandler.handle": "self data context",
    "base_handler.BaseHandler.explain_handle": "self data_preprocess raw_data",
    "base_handler.BaseHandler.describe_handle": "self",
    "base_handler.BaseHandler.get_device": "self",
    "base_handler.BaseHandler._infer_with_profiler": "self data",
    "base_handler.BaseHandler._is_explain": "self",
    "base_handler.BaseHandler._is_describe": "self",
    "base_handler.BaseHandler._load_pickled_model": "self model_dir model_file model_pt_path",
    "base_handler.BaseHandler._load_torchscript_model": "self model_pt_path",
    "base_handler.BaseHandler._load_torch_export_aot_compile": "self model_so_path",
    "base_handler.setup_ort_session": "model_pt_path map_location",
    "vision_handler.VisionHandler": "",
    "vision_handler.VisionHandler.get_insights": "self tensor_data _ target",
    "image_classifier.ImageClassifier": "",
    "image_classifier.ImageClassifier.set_max_result_classes": "self topk",
    "image_classifier.ImageClassifier.get_max_result_classes": "self",
    "object_detector.ObjectDetector": "",
    "image_segmenter.ImageSegmenter": "",
    "text_handler.TextHandler": "",
    "text_handler.TextHandler.get_source_vocab_path": "self ctx",
    "text_handler.TextHandler.get_word_token": "self input_tokens",
    "text_handler.TextHandler.summarize_attributions": "self attributions",
    "text_classifier.TextClassifier": "",
    "text_classifier.TextClassifier.get_insights": "self text_preprocess _ target",
    "dali_handler.DALIHandler": "",
    "dali_image_classifier.DALIImageClassifier": "",
    "densenet_handler.DenseNetHandler": "",
    "vllm_handler.VLLMHandler": "",
    "trt_llm_handler.TRTLLMHandler": "",
    "distributed.base_pippy_handler.BasePippyHandler": "",
    "distributed.base_deepspeed_handler.BaseDeepSpeedHandler": "",
    "request_envelope.base.BaseEnvelope": "handle_fn",
    "request_envelope.base.BaseEnvelope.handle": "self data context",
    "request_envelope.base.BaseEnvelope.parse_input": "self data",
    "request_envelope.base.BaseEnvelope.format_output": "self data",
    "request_envelope.body.BodyEnvelope": "handle_fn",
    "request_envelope.json.JSONEnvelope": "handle_fn",
    "request_envelope.kserve.KServeEnvelope": "handle_fn",
    "request_envelope.kservev2.KServev2Envelope": "handle_fn",
    "unit_tests.test_utils.mock_context.MockContext": (
        "model_pt_file model_dir model_file gpu_id model_name model_yaml_config_file"
    ),
    "unit_tests.test_utils.model_dir.download_model": "model_url model_dir",
    "unit_tests.test_utils.model_dir.copy_files": "src_dir dst_dir files",
}


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


@pytest.mark.parametrize(("name", "parameters"), SURFACE.items())
def test_name_and_parameters(name, parameters):
    assert list(inspect.signature(find(name)).parameters) == parameters.split()


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
