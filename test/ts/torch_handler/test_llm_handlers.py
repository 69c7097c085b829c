"""The LLM handlers with engines that answer from a script.

The fakes have the constructors and methods that the handlers use of vLLM and TensorRT-LLM.
"""

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ts.torch_handler.trt_llm_handler import TRTLLMHandler
from ts.torch_handler.vllm_handler import VLLMHandler
from ts.utils.util import PredictionException


@pytest.fixture
def sent(monkeypatch):
    """The intermediate answers that a handler sends."""
    answers = []
    module = ModuleType("ts.handler_utils.utils")

    def send(ret, req_id_map, message, code, context):
        assert req_id_map == context.request_ids
        answers.extend(ret)

    module.send_intermediate_predict_response = send
    monkeypatch.setitem(sys.modules, "ts.handler_utils.utils", module)
    return answers


def install(monkeypatch, **modules):
    """Put fake modules in place: install(vllm={...}, vllm__entrypoints={...})."""
    for name, members in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__path__ = []
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


class EngineArgs:
    def __init__(self, model, served_model_name=None, max_model_len=None):
        self.model = model
        self.served_model_name = served_model_name
        self.max_model_len = max_model_len


class Engine:
    @classmethod
    def from_engine_args(cls, args):
        engine = cls()
        engine.args = args
        return engine

    async def get_model_config(self):
        return "model-config"


class Request(SimpleNamespace):
    @classmethod
    def model_validate(cls, body):
        if "model" not in body:
            raise ValueError("Field required: model")
        return cls(**body)


class Answer(SimpleNamespace):
    def model_dump(self):
        return vars(self)


class Lora(SimpleNamespace):
    pass


async def answer_request(service, kind, request, raw_request):
    assert not await raw_request.is_disconnected()
    if request.model not in service.names:
        return Answer(object="error", message="model not found", code=404)
    if not getattr(request, "stream", False):
        return Answer(kind=kind, lora=[vars(lora) for lora in service.lora_modules])

    async def chunks():
        for text in ("one", "two"):
            yield f"data: {text}\n\n"
        yield "data: [DONE]\n\n"

    return chunks()


class OldChat:
    def __init__(self, async_engine_client, model_config, served_model_names, response_role,
                 *, lora_modules, prompt_adapters, request_logger, chat_template):  # fmt: skip
        assert isinstance(async_engine_client, Engine)
        assert (model_config, response_role) == ("model-config", "assistant")
        self.names, self.lora_modules = served_model_names, lora_modules
        self.chat_template = chat_template

    async def create_chat_completion(self, request, raw_request):
        return await answer_request(self, f"chat {self.chat_template}", request, raw_request)


class OldCompletion:
    def __init__(self, async_engine_client, model_config, served_model_names,
                 *, lora_modules, prompt_adapters, request_logger):  # fmt: skip
        self.names, self.lora_modules = served_model_names, lora_modules

    async def create_completion(self, request, raw_request):
        return await answer_request(self, "completion", request, raw_request)

    async def show_available_models(self):
        return Answer(data=self.names)


class NewModels:
    def __init__(self, engine_client, base_model_paths, *, lora_modules=None):
        self.base = [path.name for path in base_model_paths]
        self.lora_modules = lora_modules
        self.names = []

    async def init_static_loras(self):
        self.names = [*self.base, *(lora.name for lora in self.lora_modules)]

    async def show_available_models(self):
        return Answer(data=self.names)


class NewChat:
    def __init__(self, engine_client, models, response_role, *, request_logger, chat_template,
                 chat_template_content_format):  # fmt: skip
        assert chat_template_content_format == "auto"
        self.names, self.lora_modules = models.names, models.lora_modules
        self.chat_template = chat_template

    create_chat_completion = OldChat.create_chat_completion


class NewCompletion:
    def __init__(self, engine_client, models, *, request_logger):
        self.names, self.lora_modules = models.names, models.lora_modules

    create_completion = OldCompletion.create_completion


@pytest.fixture(params=["0.6", "0.8"])
def vllm(request, monkeypatch):
    """vLLM before and after it made the served models an object of their own."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    is_old = request.param == "0.6"
    install(
        monkeypatch,
        vllm={"AsyncEngineArgs": EngineArgs, "AsyncLLMEngine": Engine},
        vllm__entrypoints={},
        vllm__entrypoints__openai={},
        vllm__entrypoints__openai__protocol={
            "CompletionRequest": Request,
            "ChatCompletionRequest": Request,
        },
        vllm__entrypoints__openai__serving_chat={
            "OpenAIServingChat": OldChat if is_old else NewChat
        },
        vllm__entrypoints__openai__serving_completion={
            "OpenAIServingCompletion": OldCompletion if is_old else NewCompletion
        },
        vllm__entrypoints__openai__serving_engine={"LoRAModulePath": Lora},
    )
    if not is_old:
        install(
            monkeypatch,
            vllm__entrypoints__openai__serving_models={
                "OpenAIServingModels": NewModels,
                "BaseModelPath": SimpleNamespace,
                "LoRAModulePath": Lora,
            },
        )


class TestVllm:
    @pytest.fixture
    def start(self, vllm, make_context):
        """A started handler and its context: start(<section `handler`>)."""

        def run(**section):
            context = make_context(config={"handler": section})
            handler = VLLMHandler()
            handler.initialize(context)
            return handler, context

        return run

    async def ask(self, handler, context, url_path, body):
        context.start_batch({"url_path": url_path})
        return await handler.handle([{"body": body}], context)

    @pytest.mark.parametrize(
        ("url_path", "kind"),
        [("v1/completions", "completion"), ("v1/chat/completions", "chat hello")],
    )
    async def test_endpoints(self, start, url_path, kind):
        handler, context = start(model_path="org/model", chat_template="hello")
        (answer,) = await self.ask(handler, context, url_path, {"model": "org/model"})
        assert answer == {"kind": kind, "lora": []}
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"

    async def test_models_are_listed(self, start):
        handler, context = start(
            model_path="org/model", vllm_engine_config={"served_model_name": ["a", "b"]}
        )
        assert await self.ask(handler, context, "v1/models", {}) == [{"data": ["a", "b"]}]

    async def test_a_stream_sends_all_chunks_but_the_last(self, start, sent):
        handler, context = start(model_path="m")
        answer = await self.ask(handler, context, "v1/completions", {"model": "m", "stream": True})
        assert sent == ["data: one\n\n", "data: two\n\n"]
        assert answer == ["data: [DONE]\n\n"]

    async def test_an_error_of_the_engine_is_an_answer(self, start):
        handler, context = start(model_path="m")
        (answer,) = await self.ask(handler, context, "v1/completions", {"model": "other"})
        assert answer["code"] == 404

    async def test_adapters_and_models_of_the_archive(self, start, tmp_path):
        (tmp_path / "weights").mkdir()
        (tmp_path / "lora").mkdir()
        handler, context = start(model_path="weights", adapters={"tuned": "lora", "far": "org/l"})
        assert handler.vllm_engine.args.model == str(tmp_path / "weights")
        body = {"model": str(tmp_path / "weights")}
        handler.served_model_names = [body["model"]]
        (answer,) = await self.ask(handler, context, "v1/completions", body)
        assert answer["lora"] == [
            {"name": "tuned", "path": str(tmp_path / "lora")},
            {"name": "far", "path": "org/l"},
        ]

    def test_the_engine_configuration_is_passed_on(self, start):
        handler, _ = start(
            model_path="m", vllm_engine_config={"model": "other", "max_model_len": 5}
        )
        assert vars(handler.vllm_engine.args) == {
            "model": "other",
            "served_model_name": None,
            "max_model_len": 5,
        }

    def test_unknown_configuration_is_refused(self, start):
        with pytest.raises(ValueError, match="max_len"):
            start(model_path="m", vllm_engine_config={"max_len": 5})
        with pytest.raises(ValueError, match="model_path"):
            start()

    @pytest.mark.parametrize(
        ("url_path", "body", "message", "code"),
        [
            ("v1/unknown", {}, "Unknown API endpoint: v1/unknown", 404),
            ("", {}, "Unknown API endpoint: ", 404),
            ("v1/completions", {}, "Field required", 400),
            ("v1/completions", b"{", "not JSON", 400),
        ],
    )
    async def test_what_it_cannot_answer(self, start, url_path, body, message, code):
        handler, context = start(model_path="m")
        with pytest.raises(PredictionException, match=message) as caught:
            await self.ask(handler, context, url_path, body)
        assert caught.value.error_code == code

    async def test_one_request_at_a_time(self, start):
        handler, context = start(model_path="m")
        with pytest.raises(PredictionException, match="batchSize 1"):
            await handler.handle([{}, {}], context)


class Output(SimpleNamespace):
    def __init__(self, text):
        super().__init__(outputs=[SimpleNamespace(text=text)])


class Generation:
    """What TensorRT-LLM gives for a request: awaited, or iterated over."""

    def __init__(self, texts):
        self.texts = texts

    def __await__(self):
        return Output(self.texts[-1])
        yield  # makes this a generator, which an awaitable needs

    async def __aiter__(self):
        for text in self.texts:
            yield Output(text)


class TrtLlm:
    def __init__(self, **options):
        self.options = options

    def generate_async(self, prompt, sampling_params, streaming):
        self.sampling_params = sampling_params
        return Generation([prompt + end for end in (" a", " a b", " a b c")])


class TestTrtLlm:
    @pytest.fixture
    def start(self, monkeypatch, make_context):
        def run(**section):
            install(
                monkeypatch,
                tensorrt_llm={"LLM": TrtLlm, "SamplingParams": lambda **fields: fields},
                tensorrt_llm__llmapi={"KvCacheConfig": lambda **fields: fields},
            )
            context = make_context(config={"handler": section})
            handler = TRTLLMHandler()
            handler.initialize(context)
            return handler, context

        return run

    async def test_a_text_is_generated(self, start, sent, tmp_path):
        (tmp_path / "engine").mkdir()
        handler, context = start(
            engine_dir="engine", tokenizer_dir="org/t", kv_cache_config={"max_tokens": 9}
        )
        assert handler.trt_llm_engine.options == {
            "model": str(tmp_path / "engine"),
            "tokenizer": "org/t",
            "kv_cache_config": {"max_tokens": 9},
        }
        body = json.dumps({"prompt": "hi", "temperature": 0.5}).encode()
        assert await handler.handle([{"data": body}], context) == [{"text": "hi a b c"}]
        assert handler.trt_llm_engine.sampling_params == {"temperature": 0.5}
        assert sent == []

    async def test_a_stream_sends_what_is_new(self, start, sent):
        handler, context = start(engine_dir="e")
        rows = [{"body": {"prompt": "hi", "streaming": True}}]
        assert await handler.handle(rows, context) == [{"text": " c"}]
        assert sent == ['{"text": "hi a"}', '{"text": " b"}']

    @pytest.mark.parametrize("body", [b"{", {}, [1]])
    async def test_a_broken_request_is_the_clients_fault(self, start, body):
        handler, context = start(engine_dir="e")
        with pytest.raises(PredictionException) as caught:
            await handler.handle([{"body": body}], context)
        assert caught.value.error_code == 400

    def test_the_engine_must_be_named(self, start):
        with pytest.raises(ValueError, match="engine_dir"):
            start()


@pytest.mark.parametrize(
    ("handler", "package", "install_name"),
    [(VLLMHandler, "vllm", "vllm"), (TRTLLMHandler, "tensorrt_llm", "tensorrt-llm")],
)
def test_a_missing_package_says_what_to_install(
    monkeypatch, make_context, handler, package, install_name
):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=f"pip install.* {install_name}"):
        handler().initialize(make_context(config={}))
