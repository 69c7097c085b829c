"""Build a PiPPy pipeline over several ranks from the model's configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import rpc


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Any) -> None:
    """Connect this rank's RPC worker with those of the others.

    `pippy.rpc_timeout` (seconds) and `pippy.num_worker_threads` of the model's configuration are
    required; KeyError without them.
    """
    section = ctx.model_yaml_config["pippy"]
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=section["num_worker_threads"], rpc_timeout=section["rpc_timeout"]
    )
    devices = torch.cuda.device_count()
    if devices:
        # Tensors on this rank's device arrive on the device of the rank they are sent to.
        for rank in range(world_size):
            options.set_device_map(f"worker{rank}", {local_rank % devices: rank % devices})
    rpc.init_rpc(
        f"worker{local_rank}",
        rank=local_rank,
        world_size=world_size,
        rpc_backend_options=options,
    )


def get_pipeline_driver(model: Any, world_size: int, ctx: Any) -> Any:
    """The driver of a pipeline that has one equal part of `model` per rank.

    Configuration: `pippy.input_names`, `pippy.model_type` and `handler.model_path` are required
    (ValueError), `pippy.chunks` (1) and `handler.index_filename` optional. For the model type "HF"
    the answer is the model itself, with its forward going through the pipeline, so that `generate`
    works. Raises RuntimeError without PiPPy.
    """
    pippy_section = _section(ctx, "pippy", ("input_names", "model_type"))
    handler_section = _section(ctx, "handler", ("model_path",))
    try:
        import pippy
        import pippy.fx
        from pippy.hf import PiPPyHFTracer, inject_pipeline_forward
    except ImportError as error:
        raise RuntimeError(
            "this model needs PiPPy; install it with: pip install torchpippy transformers"
        ) from error

    is_hf = pippy_section["model_type"] == "HF"
    pippy.fx.Tracer.proxy_buffer_attributes = True
    model.eval()
    if is_hf:
        # The past keys and values of one step are not an output a pipeline can pass on.
        model.config.use_cache = False
    concrete_args = pippy.create_default_args(model, except_keys=pippy_section["input_names"])
    driver, _ = pippy.all_compile(
        model,
        num_ranks=world_size,
        num_chunks=pippy_section.get("chunks") or 1,
        split_policy=pippy.split_into_equal_size(world_size),
        tracer=PiPPyHFTracer() if is_hf else None,
        concrete_args=concrete_args,
        index_filename=_index_path(handler_section),
        checkpoint_prefix=None,
    )
    if not is_hf:
        return driver
    inject_pipeline_forward(model, driver)
    return model


def _section(ctx: Any, name: str, required: tuple[str, ...]) -> dict[str, Any]:
    section = ctx.model_yaml_config.get(name) or {}
    missing = [f"{name}.{key}" for key in required if not section.get(key)]
    if missing:
        raise ValueError(f"the model configuration needs {', '.join(missing)}")
    return section


def _index_path(handler_section: dict[str, Any]) -> str | None:
    index = handler_section.get("index_filename")
    return f"{handler_section['model_path']}/{index}" if index else None
