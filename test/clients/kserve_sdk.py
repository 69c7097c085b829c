"""KServe's own client and a transformer made with its SDK, unmodified, before a server of ours.

`python kserve_sdk.py v1|v2 GRPC HTTP IMAGE [FOLDER]`, run by test_clients.py with a Python that has
`kserve` (PyPI). The server has the models `digits` and, for v2, `torch` (each input twice). With a
FOLDER the transformer's calls to its predictor and their answers are written there: the recorded
pairs that test/e2e/test_kserve_pairs.py replays.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    Model,
)
from kserve import context as kserve_context
from kserve.inference_client import RESTConfig
from kserve.predictor_config import PredictorConfig

SERVICE = "/inference.GRPCInferenceService/"


class Transformer(Model):
    """Makes the predictor's request of a picture's bytes, and one digit of its answer."""

    def preprocess(self, payload: dict, headers: dict | None = None) -> dict | InferRequest:
        image = payload["image"]
        if kserve_context.get_predictor_config().protocol == "v1":
            return {"instances": [{"data": base64.b64encode(image).decode()}]}
        tensor = InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], dtype=object), binary_data=True)
        return InferRequest(self.name, [tensor], request_id="digit-3")

    def postprocess(self, result: dict | InferResponse, *more: object, **kwargs: object) -> str:
        if isinstance(result, dict):
            probabilities = result["predictions"][0]
        else:
            (text,) = result.outputs[0].as_numpy().ravel()
            probabilities = json.loads(text)
        return max(probabilities, key=probabilities.get)


def written(body: bytes) -> dict[str, str]:
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


class HttpRecorder:
    """Hooks of httpx that keep each request and its answer."""

    KEPT = ("content-type", "inference-header-content-length")

    def __init__(self) -> None:
        self.pairs: list[dict] = []

    def attach(self, client: InferenceRESTClient) -> None:
        client._client.event_hooks = {"response": [self.on_response]}

    async def on_response(self, response: httpx.Response) -> None:
        request = response.request
        self.pairs.append(
            {
                "request": {
                    "method": request.method,
                    "path": request.url.raw_path.decode(),
                    "headers": self._kept(request.headers),
                    "body": written(await request.aread()),
                },
                "answer": {
                    "status": response.status_code,
                    "headers": self._kept(response.headers),
                    "body": written(await response.aread()),
                },
            }
        )

    def _kept(self, headers: httpx.Headers) -> dict[str, str]:
        return {name: headers[name] for name in self.KEPT if name in headers}


class GrpcRecorder(grpc.GenericRpcHandler):
    """Stands between a client and a server, and keeps the bytes of both."""

    def __init__(self, address: str) -> None:
        self.pairs: list[dict] = []
        self._channel = grpc.insecure_channel(address)
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers([self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def forward(request: bytes, context: grpc.ServicerContext) -> bytes:
            answer = self._channel.unary_unary(details.method)(request, timeout=60)
            self.pairs.append(
                {
                    "request": {"method": details.method, "body": written(request)},
                    "answer": {"body": written(answer)},
                }
            )
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)

    def close(self) -> None:
        self._server.stop(0)
        self._channel.close()


async def transform(protocol: str, address: str, image: bytes) -> list[dict]:
    """One call through a transformer; the pairs that its predictor saw."""
    recorder = GrpcRecorder(address) if protocol == "grpc-v2" else HttpRecorder()
    host = recorder.address if protocol == "grpc-v2" else address.removeprefix("http://")
    kserve_context.set_predictor_config(PredictorConfig(host, protocol))
    transformer = Transformer("digits")
    transformer.ready = True
    if isinstance(recorder, HttpRecorder):
        recorder.attach(transformer._http_client)
    request = transformer.preprocess({"image": image})
    answer = transformer.postprocess(await transformer.predict(request))
    if isinstance(recorder, GrpcRecorder):
        await transformer._grpc_client.close()
        recorder.close()
    assert answer == "3", answer
    assert len(recorder.pairs) == 1
    print(f"ok     transformer {protocol}: {answer}")
    return recorder.pairs


async def ask_v1(base: str, image: bytes) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await client.is_server_live(base)
    assert await client.is_model_ready(base, "digits")
    instances = {"instances": [{"data": base64.b64encode(image).decode()}]}
    answer = await client.infer(base, instances, model_name="digits")
    (probabilities,) = answer["predictions"]
    assert max(probabilities, key=probabilities.get) == "3"
    answer = await client.explain(base, "digits", instances)
    assert len(answer["explanations"][0][0]) == 28
    print("ok     v1 live, model ready, predict, explain")


async def ask_v2(base: str, address: str) -> None:
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(base)
    assert await rest.is_server_ready(base)
    assert await rest.is_model_ready(base, "digits")
    rpc = InferenceGRPCClient(address)
    assert await rpc.is_server_live()
    assert await rpc.is_server_ready()
    assert await rpc.is_model_ready("digits")
    print("ok     v2 live, ready, model ready over REST and gRPC")
    for datatype in ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"):
        for is_binary in (True, False):
            if datatype == "BOOL":
                value = np.array([[True, False]])
            else:
                name = datatype.lower().replace("fp", "float")
                value = np.array([[1, 2], [3, 4]], dtype=name)
            wanted = value if datatype == "BOOL" else value * 2
            for label in ("rest", "grpc"):
                if datatype == "FP16" and not is_binary:
                    continue  # the client refuses to, and gRPC has no field for it
                tensor = InferInput("a", list(value.shape), datatype)
                tensor.set_data_from_numpy(value, binary_data=is_binary)
                request = InferRequest("torch", [tensor], request_id="7")
                if label == "rest":
                    answer = await rest.infer(base, request, model_name="torch")
                else:
                    answer = await rpc.infer(request)
                got = answer.outputs[0].as_numpy()
                assert answer.id == "7"
                assert got.dtype == value.dtype, (datatype, got.dtype)
                assert (got == wanted).all(), (label, datatype, got)
        print(f"ok     v2 {datatype}")
    await rpc.close()


async def main() -> None:
    kind, address, base, image_path, *folder = sys.argv[1:]
    image = Path(image_path).read_bytes()  # noqa: ASYNC240  nothing else runs yet
    pairs = {}
    if kind == "v1":
        await ask_v1(base, image)
        pairs["v1_rest"] = await transform("v1", base, image)
    else:
        await ask_v2(base, address)
        pairs["v2_rest"] = await transform("v2", base, image)
        pairs["v2_grpc"] = await transform("grpc-v2", address, image)
    for name, (pair,) in pairs.items():
        if folder:
            text = json.dumps(pair, indent=2) + "\n"
            Path(folder[0], f"{name}.json").write_text(text)  # noqa: ASYNC240


if __name__ == "__main__":
    asyncio.run(main())
