"""Build an NVIDIA DALI pipeline from the model's configuration."""

from __future__ import annotations

import os
from typing import Any

INPUT_NAME = "my_source"  # of the external source that the handler feeds

_REQUIRED = ("batch_size", "num_threads", "device_id", "seed")
# The pixel scale of the usual ImageNet statistics: DALI normalizes before scaling to [0, 1].
_MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
_STD = [0.229 * 255, 0.224 * 255, 0.225 * 255]


def get_dali_pipeline(ctx: Any) -> Any:
    """The pipeline that section `dali` of the model's configuration describes, not yet built.

    With `dali.pipeline_file` it is that serialized pipeline of the archive, otherwise one that
    decodes images and prepares them for ImageNet models (224 x 224). `batch_size`, `num_threads`,
    `device_id` and `seed` are required (ValueError). Raises RuntimeError without DALI.
    """
    section = ctx.model_yaml_config.get("dali") or {}
    missing = [f"dali.{key}" for key in _REQUIRED if section.get(key) is None]
    if missing:
        raise ValueError(f"the model configuration needs {', '.join(missing)}")
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError as error:
        raise RuntimeError(
            "this handler needs NVIDIA DALI; install it with: "
            "pip install --extra-index-url https://pypi.nvidia.com nvidia-dali-cuda120"
        ) from error

    options = {key: section[key] for key in _REQUIRED}
    # One run per batch that was fed: no batch is prefetched.
    options.update(prefetch_queue_depth=1, exec_pipelined=False, exec_async=False)
    if section.get("pipeline_file"):
        path = os.path.join(ctx.system_properties.get("model_dir"), section["pipeline_file"])
        return Pipeline.deserialize(filename=path, **options)

    has_gpu = section["device_id"] >= 0
    pipeline = Pipeline(**options)
    with pipeline:
        encoded = fn.external_source(device="cpu", name=INPUT_NAME)
        images = fn.decoders.image(
            encoded, device="mixed" if has_gpu else "cpu", output_type=types.RGB
        )
        images = fn.resize(images, resize_shorter=256, interp_type=types.INTERP_LINEAR)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", crop=(224, 224), mean=_MEAN, std=_STD
        )
        pipeline.set_outputs(images)
    return pipeline
