"""What needs packages that most servers do not have: configuration checks, and what to install."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.distributed import rpc

from ts.handler_utils.distributed.deepspeed import create_checkpoints_json, get_ds_engine
from ts.handler_utils.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers
from ts.handler_utils.preprocess.dali import get_dali_pipeline
from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler
from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler


@pytest.fixture
def make_context(tmp_path):
    def make(**config):
        return SimpleNamespace(
            model_yaml_config=config, system_properties={"model_dir": str(tmp_path)}
        )

    return make


@pytest.fixture
def without(monkeypatch):
    """Make a package look as if it were not installed."""

    def remove(name):
        monkeypatch.setitem(sys.modules, name, None)

    return remove


class TestDeepSpeed:
    def test_weight_files_are_listed(self, tmp_path):
        weights = tmp_path / "weights"
        (weights / "deep").mkdir(parents=True)
        for name in ("b.bin", "a.bin", "deep/c.bin", "config.json", "x.pt"):
            (weights / name).touch()
        create_checkpoints_json(str(weights), str(tmp_path / "list.json"))
        assert json.loads((tmp_path / "list.json").read_text()) == {
            "type": "ds_model",
            "checkpoints": [str(weights / name) for name in ("a.bin", "b.bin", "deep/c.bin")],
            "version": 1.0,
        }

    def test_the_engine_gets_configuration_and_checkpoint(
        self, tmp_path, make_context, monkeypatch
    ):
        (tmp_path / "ds.json").write_text('{"dtype": "fp16"}')
        package = ModuleType("deepspeed")
        package.init_inference = lambda model, **options: (model, options)
        monkeypatch.setitem(sys.modules, "deepspeed", package)
        section = {"config": "ds.json"}
        context = make_context(deepspeed=section, handler={"model_path": str(tmp_path)})
        assert get_ds_engine("model", context) == ("model", {"config": {"dtype": "fp16"}})

        section["checkpoint"] = "list.json"
        _, options = get_ds_engine("model", context)
        assert options["checkpoint"] == str(tmp_path / "list.json")
        assert (tmp_path / "list.json").is_file()

    def test_configuration_is_checked(self, make_context):
        with pytest.raises(ValueError, match="deepspeed"):
            get_ds_engine("model", make_context())
        with pytest.raises(ValueError, match=r"absent\.json"):
            get_ds_engine("model", make_context(deepspeed={"config": "absent.json"}))

    def test_what_to_install(self, tmp_path, make_context, without):
        (tmp_path / "ds.json").write_text("{}")
        without("deepspeed")
        with pytest.raises(RuntimeError, match="pip install deepspeed"):
            get_ds_engine("model", make_context(deepspeed={"config": "ds.json"}))

    def test_the_handlers_device_is_its_rank(self, make_context, monkeypatch):
        class Handler(BaseDeepSpeedHandler):
            pass

        monkeypatch.setenv("LOCAL_RANK", "3")
        handler = Handler()
        handler.initialize(make_context())
        assert handler.device == 3


class TestPippy:
    PIPPY = {"input_names": ["input_ids"], "model_type": "HF"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("config", "missing"),
        [
            ({}, "pippy.input_names, pippy.model_type"),
            ({"pippy": {"input_names": ["x"]}}, "pippy.model_type"),
            ({"pippy": PIPPY}, "handler.model_path"),
        ],
    )
    def test_configuration_is_checked(self, make_context, config, missing):
        with pytest.raises(ValueError, match=missing):
            get_pipeline_driver("model", 2, make_context(**config))

    def test_what_to_install(self, make_context, without):
        without("pippy")
        context = make_context(pippy=self.PIPPY, handler={"model_path": "x"})
        with pytest.raises(RuntimeError, match="pip install torchpippy"):
            get_pipeline_driver("model", 2, context)

    @pytest.mark.parametrize("model_type", ["HF", "other"])
    def test_the_pipeline_is_built(self, make_context, monkeypatch, model_type):
        calls = {}

        def all_compile(model, **options):
            calls.update(options)
            return "driver", "stage"

        package = ModuleType("pippy")
        package.fx = ModuleType("pippy.fx")
        package.fx.Tracer = SimpleNamespace()
        package.hf = ModuleType("pippy.hf")
        package.hf.PiPPyHFTracer = lambda: "tracer"
        package.hf.inject_pipeline_forward = lambda model, driver: setattr(model, "driver", driver)
        package.create_default_args = lambda model, except_keys: {"except": except_keys}
        package.split_into_equal_size = lambda count: f"split {count}"
        package.all_compile = all_compile
        for module in (package, package.fx, package.hf):
            monkeypatch.setitem(sys.modules, module.__name__, module)

        model = SimpleNamespace(eval=lambda: None, config=SimpleNamespace(use_cache=True))
        context = make_context(
            pippy={"input_names": ["x"], "model_type": model_type, "chunks": 4},
            handler={"model_path": "path", "index_filename": "index.json"},
        )
        result = get_pipeline_driver(model, 2, context)
        assert calls == {
            "num_ranks": 2,
            "num_chunks": 4,
            "split_policy": "split 2",
            "tracer": "tracer" if model_type == "HF" else None,
            "concrete_args": {"except": ["x"]},
            "index_filename": "path/index.json",
            "checkpoint_prefix": None,
        }
        if model_type == "HF":
            assert result is model
            assert (model.driver, model.config.use_cache) == ("driver", False)
        else:
            assert result == "driver"

    def test_the_handler_starts_its_rank(self, make_context, monkeypatch):
        class Handler(BasePippyHandler):
            pass

        started = []
        monkeypatch.setattr(
            rpc, "init_rpc", lambda name, **options: started.append((name, options))
        )
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        handler = Handler()
        context = make_context(pippy={"rpc_timeout": 60, "num_worker_threads": 16})
        handler.initialize(context)
        ((name, options),) = started
        assert (name, options["rank"], options["world_size"]) == ("worker1", 1, 2)
        assert options["rpc_backend_options"].rpc_timeout == 60
        assert (handler.local_rank, handler.world_size) == (1, 2)
        assert handler.device == 1 % max(1, torch.cuda.device_count())

    def test_the_timeout_is_required(self, make_context):
        with pytest.raises(KeyError, match="pippy"):
            initialize_rpc_workers(0, 1, make_context())


class TestDali:
    SECTION = {"batch_size": 2, "num_threads": 1, "device_id": 0, "seed": 5}  # noqa: RUF012

    def test_configuration_is_checked(self, make_context):
        with pytest.raises(ValueError, match=r"dali\.num_threads, dali\.device_id, dali\.seed"):
            get_dali_pipeline(make_context(dali={"batch_size": 1}))

    def test_what_to_install(self, make_context, without):
        without("nvidia.dali")
        with pytest.raises(RuntimeError, match=r"pip install .* nvidia-dali"):
            get_dali_pipeline(make_context(dali=self.SECTION))

    def test_a_pipeline_file_is_read_from_the_archive(self, make_context, monkeypatch, tmp_path):
        nvidia, dali = ModuleType("nvidia"), ModuleType("nvidia.dali")
        pipeline = ModuleType("nvidia.dali.pipeline")
        dali.fn = dali.types = None
        pipeline.Pipeline = SimpleNamespace(deserialize=lambda **options: options)
        for module in (nvidia, dali, pipeline):
            module.__path__ = []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        context = make_context(dali={**self.SECTION, "pipeline_file": "p.dali"})
        assert get_dali_pipeline(context) == {
            "filename": str(tmp_path / "p.dali"),
            **self.SECTION,
            "prefetch_queue_depth": 1,
            "exec_pipelined": False,
            "exec_async": False,
        }
