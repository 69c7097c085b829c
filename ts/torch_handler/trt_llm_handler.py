"""Serve an LLM with TensorRT-LLM.

The model needs `asyncCommunication: true` and a batch size of 1: requests run side by side as tasks
of one event loop, and the engine batches them itself.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ts.torch_handler.base_handler import BaseHandler, request_payload
from ts.utils.util import PredictionException


class TRTLLMHandler(BaseHandler):
    """Generates text for `{"prompt": ..., "streaming": ..., <sampling parameters>}`.

    Configuration (`handler`): `engine_dir`, `tokenizer_dir`, `kv_cache_config` (fields of
    KvCacheConfig).
    """

    def __init__(self) -> None:
        super().__init__()
        self.trt_llm_engine: Any = None
        self._sampling_params: Any = None

    def initialize(self, ctx: Any) -> None:
        """Start the engine; RuntimeError without TensorRT-LLM."""
        try:
            from tensorrt_llm import LLM, SamplingParams
            from tensorrt_llm.llmapi import KvCacheConfig
        except ImportError as error:
            raise RuntimeError(
                "this handler needs TensorRT-LLM; install it with: "
                "pip install --extra-index-url https://pypi.nvidia.com tensorrt-llm"
            ) from error
        section = ctx.model_yaml_config.get("handler") or {}
        if not section.get("engine_dir"):
            raise ValueError("the model configuration needs handler.engine_dir")
        model_dir = ctx.system_properties.get("model_dir")
        options: dict[str, Any] = {"model": _in_archive(model_dir, section["engine_dir"])}
        if section.get("tokenizer_dir"):
            options["tokenizer"] = _in_archive(model_dir, section["tokenizer_dir"])
        if section.get("kv_cache_config"):
            options["kv_cache_config"] = KvCacheConfig(**section["kv_cache_config"])
        self.trt_llm_engine = LLM(**options)
        self._sampling_params = SamplingParams
        self.initialized = True

    async def handle(self, data: list[Any], context: Any) -> list[Any]:
        """One `{"text": ...}` item; of a streamed answer, the last piece."""
        start_s = time.perf_counter()
        request = await self.preprocess(data, context)
        output = await self.inference(request, context)
        handler_ms = round((time.perf_counter() - start_s) * 1000, 2)
        context.metrics.add_time("HandlerTime", handler_ms, None, "ms")
        return await self.postprocess(output)

    async def preprocess(self, requests: list[Any], context: Any) -> dict[str, Any]:
        """The JSON body of the request; PredictionException 400 if it has no prompt."""
        if len(requests) != 1:
            raise PredictionException("trt_llm_handler serves one request at a time: batchSize 1")
        body = request_payload(requests[0])
        if isinstance(body, str | bytes | bytearray):
            try:
                body = json.loads(body)
            except ValueError as error:
                raise PredictionException(f"the request body is not JSON: {error}", 400) from error
        if not isinstance(body, dict) or "prompt" not in body:
            raise PredictionException('the request body must be an object with a "prompt"', 400)
        return body

    async def inference(self, request: dict[str, Any], context: Any) -> str:
        """The generated text; while streaming, each piece is sent but the last, the answer."""
        from ts.handler_utils.utils import send_intermediate_predict_response

        fields = dict(request)
        prompt = fields.pop("prompt")
        is_streaming = bool(fields.pop("streaming", False))
        result = self.trt_llm_engine.generate_async(
            prompt, self._sampling_params(**fields), streaming=is_streaming
        )
        if not is_streaming:
            return (await result).outputs[0].text
        sent = 0
        piece = None
        async for step in result:
            if piece is not None:
                send_intermediate_predict_response(
                    [json.dumps({"text": piece})], context.request_ids, "Result", 200, context
                )
            text = step.outputs[0].text  # all the text so far
            piece, sent = text[sent:], len(text)
        return piece or ""

    async def postprocess(self, output: str) -> list[dict[str, str]]:
        """The text as the answer of the one request."""
        return [{"text": output}]


def _in_archive(model_dir: str, path: str) -> str:
    """The path inside the archive if it exists there, else as it is (a hub name, a mount)."""
    inside = Path(model_dir, path)
    return str(inside) if inside.exists() else path
