import io
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from ts import context
from ts.context import RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

METRICS_FILE = Path(__file__).parents[3] / "ts" / "configs" / "metrics.yaml"


class Context:
    """What a worker gives a handler, for one batch after the other."""

    def __init__(self, model_dir, manifest_model, config=None, gpu_id=None):
        self.manifest = {"model": {"modelName": "tiny", "modelVersion": "1.0", **manifest_model}}
        self.system_properties = {
            "model_dir": str(model_dir),
            "gpu_id": gpu_id,
            "batch_size": 1,
            "limit_max_image_pixels": True,
        }
        self.model_yaml_config = config
        self.metrics = MetricsCacheYamlImpl(str(METRICS_FILE))
        self.metrics.initialize_cache()
        self.start_batch({})

    def start_batch(self, *headers):
        self.request_processor = [RequestProcessor(each) for each in headers]
        self.request_ids = {index: f"r{index}" for index in range(len(headers))}
        self.metrics.set_request_ids(self.request_ids)

    get_request_id = context.Context.get_request_id
    get_request_header = context.Context.get_request_header
    get_all_request_header = context.Context.get_all_request_header
    get_response_status = context.Context.get_response_status
    get_response_content_type = context.Context.get_response_content_type
    set_response_content_type = context.Context.set_response_content_type
    set_response_header = context.Context.set_response_header
    set_response_status = context.Context.set_response_status

    @property
    def _request_processor(self):
        return self.request_processor


@pytest.fixture
def make_context(tmp_path):
    """A context for the model directory: make_context(serializedFile=..., config=...)."""

    def make(config=None, gpu_id=None, **manifest_model):
        return Context(tmp_path, manifest_model, config, gpu_id)

    return make


@pytest.fixture
def save_torchscript(tmp_path):
    """Save a module as TorchScript in the model directory."""

    def save(module, name="model.pt"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            torch.jit.save(torch.jit.script(module.eval()), tmp_path / name)
        return name

    return save


@pytest.fixture
def save_mapping(tmp_path):
    """Write index_to_name.json into the model directory."""

    def save(mapping):
        (tmp_path / "index_to_name.json").write_text(json.dumps(mapping))

    return save


class MeanColour(torch.nn.Module):
    """One logit per colour: the mean of its channel."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


@pytest.fixture
def mean_colour():
    return MeanColour()


@pytest.fixture
def picture():
    """Encoded picture of one colour: picture(mode, colour, size, format)."""

    def encode(mode="RGB", colour=(255, 0, 0), size=(32, 24), image_format="PNG"):
        file = io.BytesIO()
        Image.new(mode, size, colour).save(file, image_format)
        return bytearray(file.getvalue())

    return encode
