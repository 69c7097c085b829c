"""Triton's own client, unmodified, against a server of ours: `python triton.py GRPC HTTP IMAGE`.

Run by test_clients.py with a Python that has `tritonclient[all]` (PyPI). The server has the models
`torch` (each input twice) and `digits`. Prints one line per check; the exit status is the number of
those that failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

NUMBERS = ("UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
failures = 0


def check(name: str, function: Callable[[], object]) -> None:
    global failures
    try:
        seen = function()
    except Exception as error:
        failures += 1
        print(f"FAILED {name}: {type(error).__name__}: {error}")
    else:
        print(f"ok     {name} {'' if seen is None else str(seen)[:100]}")


def expect(condition: bool, told: object = "") -> None:
    if not condition:
        raise AssertionError(told)


class Lane:
    """The same questions through either of the two clients."""

    def __init__(self, label: str, module: object, address: str) -> None:
        self.label = label
        self.module = module
        self.client = module.InferenceServerClient(address)

    def tensor(self, name: str, value: np.ndarray, datatype: str, **more: object) -> object:
        tensor = self.module.InferInput(name, value.shape, datatype)
        tensor.set_data_from_numpy(value, **more)
        return tensor

    def run(self, image: bytes) -> None:
        client, label = self.client, self.label
        check(f"{label} live", lambda: expect(client.is_server_live()))
        check(f"{label} ready", lambda: expect(client.is_server_ready()))
        for version in ("", "1.0"):
            check(
                f"{label} model ready {version}",
                lambda version=version: expect(client.is_model_ready("digits", version)),
            )
        check(f"{label} an unknown model is not ready", self.unknown_is_not_ready)
        check(f"{label} server metadata", lambda: client.get_server_metadata())
        check(f"{label} model metadata", lambda: client.get_model_metadata("digits"))
        forms = (True, False) if label == "http" else (True,)
        for is_binary in forms:
            check(f"{label} digits binary={is_binary}", lambda b=is_binary: self.digits(image, b))
            for datatype in NUMBERS:
                name = f"{label} {datatype} binary={is_binary}"
                check(name, lambda d=datatype, b=is_binary: self.twice(d, b))
        check(f"{label} BOOL", self.booleans)
        check(f"{label} BYTES", self.words)
        check(f"{label} BF16", self.bf16)
        check(f"{label} two inputs, one output, version, id, parameters", self.two_inputs)
        check(f"{label} an unknown output", lambda: self.refused(outputs="nobody"))
        check(f"{label} an unknown model", lambda: self.refused(model="nobody"))
        check(f"{label} an unknown version", lambda: self.refused(model_version="9"))
        for algorithm in ("gzip", "deflate"):
            check(f"{label} {algorithm}", lambda a=algorithm: self.compressed(a))
        check(f"{label} six megabytes", self.large)
        check(f"{label} asynchronous", self.asynchronous)

    def unknown_is_not_ready(self) -> None:
        try:
            expect(not self.client.is_model_ready("nobody"))
        except InferenceServerException as error:
            expect(error.status() == "StatusCode.NOT_FOUND", error)

    def digits(self, image: bytes, is_binary: bool) -> str:
        more = {"binary_data": is_binary} if self.label == "http" else {}
        value = np.array([image if is_binary else __import__("base64").b64encode(image).decode()])
        tensor = self.tensor("image", value.astype(object), "BYTES", **more)
        (answer,) = self.client.infer("digits", [tensor]).as_numpy("output_0")
        probabilities = json.loads(answer)
        best = max(probabilities, key=probabilities.get)
        expect(best == "3", probabilities)
        return best

    def twice(self, datatype: str, is_binary: bool) -> None:
        value = np.array([[1, 2], [3, 4]], dtype=triton_to_np_dtype(datatype))
        more, outputs = {}, None
        if self.label == "http":
            more = {"binary_data": is_binary}
            outputs = [self.module.InferRequestedOutput("a", binary_data=is_binary)]
        tensor = self.tensor("a", value, datatype, **more)
        answer = self.client.infer("torch", [tensor], outputs=outputs).as_numpy("a")
        expect(answer.dtype == value.dtype, answer.dtype)
        expect(answer.shape == value.shape and (answer == value * 2).all(), answer)

    def booleans(self) -> None:
        value = np.array([True, False])
        answer = self.client.infer("torch", [self.tensor("a", value, "BOOL")]).as_numpy("a")
        expect((answer == value).all(), answer)

    def words(self) -> None:
        value = np.array([b"ab\xff", b""], dtype=object)
        answer = self.client.infer("torch", [self.tensor("a", value, "BYTES")]).as_numpy("a")
        expect(list(answer) == [b"ab\xffab\xff", b""], answer)

    def bf16(self) -> None:
        value = np.array([1.5, -2], dtype=np.float32)
        try:
            import ml_dtypes

            value = value.astype(ml_dtypes.bfloat16)
        except ImportError:
            pass
        answer = self.client.infer("torch", [self.tensor("a", value, "BF16")]).as_numpy("a")
        expect(list(answer.astype(np.float32)) == [3, -4], answer)

    def two_inputs(self) -> None:
        inputs = [
            self.tensor("a", np.array([1, 2], dtype=np.int64), "INT64"),
            self.tensor("b", np.array([1.5], dtype=np.float32), "FP32"),
        ]
        answer = self.client.infer(
            "torch",
            inputs,
            model_version="1.0",
            request_id="7",
            outputs=[self.module.InferRequestedOutput("b")],
            parameters={"x": 1},
        )
        expect(list(answer.as_numpy("b")) == [3])
        expect(answer.as_numpy("a") is None)
        response = answer.get_response()
        expect((response["id"] if self.label == "http" else response.id) == "7", response)

    def refused(self, model: str = "torch", outputs: str = "", **more: str) -> str:
        wanted = [self.module.InferRequestedOutput(outputs)] if outputs else None
        try:
            self.client.infer(model, [self.one()], outputs=wanted, **more)
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"
        raise AssertionError("not refused")

    def one(self) -> object:
        return self.tensor("a", np.array([1], dtype=np.int64), "INT64")

    def compressed(self, algorithm: str) -> None:
        value = np.zeros(10_000, dtype=np.float32)
        if self.label == "grpc":
            more = {"compression_algorithm": algorithm}
        else:
            more = {
                "request_compression_algorithm": algorithm,
                "response_compression_algorithm": algorithm,
            }
        answer = self.client.infer("torch", [self.tensor("a", value, "FP32")], **more)
        expect((answer.as_numpy("a") == value).all())

    def large(self) -> None:
        value = np.arange(1_500_000, dtype=np.float32)
        answer = self.client.infer("torch", [self.tensor("a", value, "FP32")])
        expect((answer.as_numpy("a") == value * 2).all())

    def asynchronous(self) -> None:
        if self.label == "http":
            answer = self.client.async_infer("torch", [self.one()]).get_result()
        else:
            import queue

            answers: queue.Queue[object] = queue.Queue()
            self.client.async_infer(
                "torch", [self.one()], callback=lambda result, error: answers.put(result or error)
            )
            answer = answers.get(timeout=20)
        expect(list(answer.as_numpy("a")) == [2])


def main() -> int:
    grpc_address, http_address, image_path = sys.argv[1:]
    with open(image_path, "rb") as file:
        image = file.read()
    for label, module, address in (
        ("grpc", tritonclient.grpc, grpc_address),
        ("http", tritonclient.http, http_address.removeprefix("http://")),
    ):
        Lane(label, module, address).run(image)
    print(f"{failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(main())
