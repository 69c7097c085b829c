"""Serve an LLM with vLLM behind its OpenAI endpoints.

The model needs `asyncCommunication: true` and a batch size of 1: requests run side by side as tasks
of one event loop, and vLLM batches them itself. The path after the model's name selects the
endpoint: `/predictions/{model}/{version}/v1/chat/completions` and so on.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ts.torch_handler.base_handler import BaseHandler, request_payload
from ts.utils.util import PredictionException


class VLLMHandler(BaseHandler):
    """Answers `v1/models`, `v1/completions` and `v1/chat/completions`.

    Configuration (`handler`): `model_path`, `vllm_engine_config` (fields of AsyncEngineArgs),
    `adapters` (name to path of LoRA weights), `chat_template`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vllm_engine: Any = None
        self.adapters: dict[str, str] = {}
        self.chat_template: str | None = None
        self.served_model_names: list[str] = []
        # Started by the first request, because they need the running event loop.
        self._services: SimpleNamespace | None = None

    def initialize(self, ctx: Any) -> None:
        """Start the engine.

        Raises RuntimeError without vLLM, ValueError for a field the engine does not have.
        """
        # A forked process would inherit the CUDA context of this one, which CUDA does not support.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        try:
            from vllm import AsyncEngineArgs, AsyncLLMEngine
        except ImportError as error:
            raise RuntimeError(
                "this handler needs vLLM; install it with: pip install vllm"
            ) from error

        section = ctx.model_yaml_config.get("handler") or {}
        self.model_dir = ctx.system_properties.get("model_dir")
        self.adapters = section.get("adapters") or {}
        self.chat_template = section.get("chat_template")
        engine_args = self._engine_args(AsyncEngineArgs, section)
        named = getattr(engine_args, "served_model_name", None)
        self.served_model_names = [named] if isinstance(named, str) else list(named or ())
        if not self.served_model_names:
            self.served_model_names = [engine_args.model]
        self.vllm_engine = AsyncLLMEngine.from_engine_args(engine_args)
        self.initialized = True

    def _engine_args(self, args_class: Any, section: dict[str, Any]) -> Any:
        fields = dict(section.get("vllm_engine_config") or {})
        model = fields.pop("model", None) or section.get("model_path")
        if not model:
            raise ValueError("the model configuration needs handler.model_path")
        known = inspect.signature(args_class).parameters
        unknown = sorted(fields.keys() - known.keys())
        if unknown:
            raise ValueError(f"handler.vllm_engine_config has unknown fields: {unknown}")
        return args_class(model=self._in_archive(model), **fields)

    def _in_archive(self, path: str) -> str:
        """The path inside the archive if it exists there, else as it is (a hub name, a mount)."""
        inside = Path(self.model_dir, path)
        return str(inside) if inside.exists() else path

    async def handle(self, data: list[Any], context: Any) -> list[Any]:
        """The endpoint's answer to the one request; a streamed answer's last chunk.

        Chunks before the last are sent while the engine generates.
        """
        start_s = time.perf_counter()
        request = await self.preprocess(data, context)
        answer = await self.inference(request, context)
        output = await self.postprocess(answer, context)
        handler_ms = round((time.perf_counter() - start_s) * 1000, 2)
        context.metrics.add_time("HandlerTime", handler_ms, None, "ms")
        return output

    async def preprocess(self, requests: list[Any], context: Any) -> dict[str, Any]:
        """The JSON body of the request."""
        if len(requests) != 1:
            raise PredictionException("vllm_handler serves one request at a time: batchSize 1", 500)
        body = request_payload(requests[0])
        if isinstance(body, str | bytes | bytearray) and body:
            try:
                body = json.loads(body)
            except ValueError as error:
                raise PredictionException(f"the request body is not JSON: {error}", 400) from error
        return body if isinstance(body, dict) else {}

    async def inference(self, request: dict[str, Any], context: Any) -> Any:
        """What vLLM's endpoint gives: a response object, or an iterator over text chunks.

        Raises PredictionException 404 for a path that is none of the endpoints.
        """
        if self._services is None:
            self._services = await self._start_services()
        services = self._services
        url_path = (context.get_request_header(0, "url_path") or "").strip("/")
        if url_path == "v1/models":
            return await services.show_models()
        if url_path == "v1/completions":
            create, request_class = services.create_completion, services.CompletionRequest
        elif url_path == "v1/chat/completions":
            create, request_class = services.create_chat, services.ChatCompletionRequest
        else:
            raise PredictionException(f"Unknown API endpoint: {url_path}", 404)
        try:
            parsed = request_class.model_validate(request)
        except ValueError as error:
            raise PredictionException(f"the request is not valid: {error}", 400) from error
        return await create(parsed, _raw_request())

    async def postprocess(self, answer: Any, context: Any) -> list[Any]:
        """The answer as one item; sends all chunks of a stream but the last, which it returns."""
        if hasattr(answer, "__aiter__"):
            return [await _stream(answer, context)]
        return [answer.model_dump()]

    async def _start_services(self) -> SimpleNamespace:
        from vllm.entrypoints.openai import protocol, serving_chat, serving_completion

        known: dict[str, Any] = {
            "engine_client": self.vllm_engine,
            "async_engine_client": self.vllm_engine,
            "engine": self.vllm_engine,
            "model_config": await self.vllm_engine.get_model_config(),
            "served_model_names": self.served_model_names,
            "response_role": "assistant",
            "prompt_adapters": None,
            "request_logger": None,
            "chat_template": self.chat_template,
            "chat_template_content_format": "auto",
        }
        try:  # from vLLM 0.7 on the models are an object of their own
            from vllm.entrypoints.openai import serving_models
        except ImportError:
            from vllm.entrypoints.openai import serving_engine

            known["lora_modules"] = self._lora_modules(serving_engine.LoRAModulePath)
        else:
            known["lora_modules"] = self._lora_modules(serving_models.LoRAModulePath)
            known["base_model_paths"] = [
                serving_models.BaseModelPath(name=name, model_path=name)
                for name in self.served_model_names
            ]
            known["models"] = _construct(serving_models.OpenAIServingModels, known)
            await known["models"].init_static_loras()
        chat = _construct(serving_chat.OpenAIServingChat, known)
        completion = _construct(serving_completion.OpenAIServingCompletion, known)
        return SimpleNamespace(
            show_models=known.get("models", completion).show_available_models,
            create_completion=completion.create_completion,
            create_chat=chat.create_chat_completion,
            CompletionRequest=protocol.CompletionRequest,
            ChatCompletionRequest=protocol.ChatCompletionRequest,
        )

    def _lora_modules(self, path_class: Callable[..., Any]) -> list[Any]:
        return [
            path_class(name=name, path=self._in_archive(path))
            for name, path in self.adapters.items()
        ]


def _construct(service_class: Any, known: dict[str, Any]) -> Any:
    """The service, with those of the `known` arguments that this version of vLLM takes."""
    parameters = inspect.signature(service_class).parameters
    return service_class(**{name: value for name, value in known.items() if name in parameters})


def _raw_request() -> SimpleNamespace:
    """What vLLM asks of an HTTP request; watching the client is the frontend's work."""

    async def is_disconnected() -> bool:
        return False

    return SimpleNamespace(headers={}, state=SimpleNamespace(), is_disconnected=is_disconnected)


async def _stream(chunks: AsyncIterator[str], context: Any) -> str:
    """Send each chunk once its successor is known; the last one is the answer."""
    from ts.handler_utils.utils import send_intermediate_predict_response

    last = ""
    is_first = True
    async for chunk in chunks:
        if not is_first:
            send_intermediate_predict_response([last], context.request_ids, "Result", 200, context)
        last, is_first = chunk, False
    return last
