"""Serve one LLM by a command: `python -m ts.llm_launcher --model_id HUB_NAME_OR_PATH`.

The command writes a model that consists of `vllm_handler` and its configuration into the model
store, starts a server with it, and stops the server when it is itself interrupted or terminated.
The engine is vLLM. TensorRT-LLM engines are built outside and packed with `trt_llm_handler`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ts import launcher

RESPONSE_TIMEOUT_S = 1200


class CannotLaunch(RuntimeError):
    """`str(error)` is for the person at the terminal."""


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, by default of this process; flags are TorchServe's."""
    parser = argparse.ArgumentParser(prog="python -m ts.llm_launcher", description=__doc__)
    add = parser.add_argument
    add("--model_name", default="model")
    add("--model_store", default="model_store", help="folder of models; made if it is missing")
    add(
        "--model_id",
        default="meta-llama/Meta-Llama-3.1-8B-Instruct",
        help="name at the Hugging Face hub, or a folder",
    )
    add("--disable_token_auth", action="store_true")
    add("--engine", default="vllm", help="only vllm")
    add("--vllm_engine.max_num_seqs", dest="max_num_seqs", type=int, default=256)
    add("--vllm_engine.max_model_len", dest="max_model_len", type=int)
    add("--vllm_engine.download_dir", dest="download_dir")
    add("--startup_timeout", type=int, default=1200, help="seconds for the load of the model")
    add("--dtype", default="bfloat16")
    # Taken, so that who comes with them hears of the engine and not of a flag.
    add("--trt_llm_engine.max_batch_size", help=argparse.SUPPRESS)
    add("--trt_llm_engine.kv_cache_free_gpu_memory_fraction", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def model_config(arguments: argparse.Namespace, gpu_count: int) -> dict[str, Any]:
    """What model-config.yaml says. All GPUs serve the one model, tensor-parallel."""
    engine = {
        "max_num_seqs": arguments.max_num_seqs,
        "max_model_len": arguments.max_model_len,
        "download_dir": arguments.download_dir,
        "tensor_parallel_size": max(gpu_count, 1),
        "dtype": arguments.dtype,
    }
    return {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "startupTimeout": arguments.startup_timeout,
        "deviceType": "gpu",
        "asyncCommunication": True,
        "handler": {
            "model_path": arguments.model_id,
            "vllm_engine_config": {k: value for k, value in engine.items() if value is not None},
        },
    }


def check_engine(engine: str) -> None:
    """Raises CannotLaunch if the engine cannot be used here."""
    if engine == "trt_llm":
        raise CannotLaunch(
            "engine trt_llm: engines are not built here. Build one with trtllm-build, pack it with "
            "torch-model-archiver --handler trt_llm_handler and start it with torchserve; or use "
            "--engine vllm"
        )
    if engine != "vllm":
        raise CannotLaunch(f"Unsupported LLM Engine {engine!r}: there is vllm")
    if not is_installed("vllm"):
        raise CannotLaunch("engine vllm is not installed; install it with: pip install vllm")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def packed_model(name: str, store: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The model's folder in the store, removed afterwards; one that was there stays as it is."""
    import yaml

    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging import generate_model_archive

    store.mkdir(parents=True, exist_ok=True)
    folder = store / name
    if folder.exists():
        print(f"{folder} exists and is served as it is; remove it to have it written anew.")
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        config_file = Path(scratch, "model-config.yaml")
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        generate_model_archive(
            ModelArchiverConfig(
                model_name=name,
                handler="vllm_handler",
                version="1.0",
                export_path=str(store),
                archive_format="no-archive",
                config_file=str(config_file),
            )
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until the server ends, or an interrupt or a termination comes; then stop it.

    Raises CannotLaunch, and RuntimeError if the server does not start.
    """
    check_engine(arguments.engine)
    import torch

    config = model_config(arguments, torch.cuda.device_count())
    store = Path(arguments.model_store).resolve()
    signal.signal(signal.SIGTERM, _interrupt)
    with packed_model(arguments.model_name, store, config), contextlib.suppress(KeyboardInterrupt):
        try:
            lines = launcher.start(
                model_store=str(store),
                no_config_snapshots=True,
                disable_token=arguments.disable_token_auth,
                models=f"{arguments.model_name}={arguments.model_name}",
            )
            while lines.get() is not None:
                pass  # the launcher prints them
        finally:
            launcher.stop()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> None:
    try:
        serve(arguments_of(words))
    except CannotLaunch as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
