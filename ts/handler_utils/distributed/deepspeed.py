"""Build a DeepSpeed inference engine from the model's configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CHECKPOINT_TYPE = "ds_model"
CHECKPOINT_VERSION = 1.0
WEIGHTS_PATTERN = "*.[bp][it][n]"  # .bin, and other endings of the kind


def get_ds_engine(model: Any, ctx: Any) -> Any:
    """The DeepSpeed engine for `model`, as `deepspeed` of the model's configuration says.

    `deepspeed.config` is a JSON file of the archive; with `deepspeed.checkpoint` a list of the
    weight files below `handler.model_path` is written under that name and loaded.
    Raises ValueError without that configuration or file, RuntimeError without DeepSpeed.
    """
    settings = ctx.model_yaml_config
    section = settings.get("deepspeed")
    if not section:
        raise ValueError("the model configuration has no section `deepspeed`")
    model_dir = ctx.system_properties.get("model_dir")
    config_path = os.path.join(model_dir, section.get("config") or "")
    if not os.path.isfile(config_path):
        raise ValueError(f"deepspeed.config: {config_path} does not exist")
    checkpoint = None
    if section.get("checkpoint"):
        checkpoint = os.path.join(model_dir, section["checkpoint"])
        create_checkpoints_json(settings["handler"]["model_path"], checkpoint)

    try:
        import deepspeed
    except ImportError as error:
        raise RuntimeError(
            "this model needs DeepSpeed; install it with: pip install deepspeed"
        ) from error
    config = json.loads(Path(config_path).read_text(encoding="utf-8"))
    if checkpoint is None:
        return deepspeed.init_inference(model, config=config)
    return deepspeed.init_inference(model, config=config, checkpoint=checkpoint)


def create_checkpoints_json(model_path: str, checkpoints_json: str) -> None:
    """Write the list of the weight files below `model_path` in DeepSpeed's checkpoint form."""
    files = sorted(str(path) for path in Path(model_path).rglob(WEIGHTS_PATTERN) if path.is_file())
    content = {"type": CHECKPOINT_TYPE, "checkpoints": files, "version": CHECKPOINT_VERSION}
    Path(checkpoints_json).write_text(json.dumps(content), encoding="utf-8")
