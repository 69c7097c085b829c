"""The names and parameters that handlers of model archives import."""

import importlib
import inspect

import pytest

SURFACE = {
    "micro_batching.MicroBatching": "parent_handler micro_batch_size parallelism",
    "micro_batching.MicroBatching.handle": "self data",
    "micro_batching.MicroBatching.get_micro_batch_idx": "self",
    "micro_batching.MicroBatching.shutdown": "self",
    "micro_batching.WorkerThread": "event thread",
    "micro_batching.execute_call": "in_queue out_queue handle thread_local_data event",
    "hf_batch_streamer.TextIteratorStreamerBatch": (
        "tokenizer batch_size skip_prompt timeout decode_kwargs"
    ),
    "text_utils.ngrams_iterator": "token_list ngrams",
    "text_utils.get_tokenizer": "tokenizer language",
    "distributed.pt_pippy.initialize_rpc_workers": "local_rank world_size ctx",
    "distributed.pt_pippy.get_pipeline_driver": "model world_size ctx",
    "distributed.deepspeed.get_ds_engine": "model ctx",
    "distributed.deepspeed.create_checkpoints_json": "model_path checkpoints_json",
    "preprocess.dali.get_dali_pipeline": "ctx",
}


def find(name):
    """The object that `package.module.Class.method` names."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["ts.handler_utils", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module in {name}")


@pytest.mark.parametrize(("name", "parameters"), SURFACE.items())
def test_name_and_parameters(name, parameters):
    assert list(inspect.signature(find(name)).parameters) == parameters.split()


def test_stages_of_micro_batching():
    assert find("micro_batching.HANDLER_METHODS") == ["preprocess", "inference", "postprocess"]
