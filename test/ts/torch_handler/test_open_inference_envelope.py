"""The envelope between the Open Inference Protocol and handlers: what they get, what they give."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.protocol.tensors import BINARY_CONTENT_TYPE, JSON_LENGTH_HEADER
from ts.torch_handler.request_envelope.open_inference import OpenInferenceEnvelope, _elements
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import PredictionException

MANIFEST = {"model": {"modelName": "archived", "modelVersion": "2.0"}}


def context_of(requests: int = 1, **config: Any) -> Context:
    context = Context("m", "/", MANIFEST, 1, None, "0", model_yaml_config=config)
    context.request_processor = [RequestProcessor({}) for _ in range(requests)]
    context.request_ids = {index: f"request-{index}" for index in range(requests)}
    return context


def request(*inputs: dict[str, Any], raw: dict[int, bytes] | None = None, **more: Any) -> dict:
    """A row as the worker makes it of the request's parts."""
    parts = {f"tensor:{index}": bytearray(value) for index, value in (raw or {}).items()}
    return {"body": {"inputs": list(inputs), **more}, **parts}


def tensor(name: str, datatype: str, shape: list[int], *data: Any) -> dict[str, Any]:
    described = {"name": name, "datatype": datatype, "shape": shape}
    return {**described, "data": data[0]} if data else described


class Recorder:
    """A handler of one's own: answers what the test says, and keeps what it got."""

    def __init__(self, answer: Any = lambda rows: [0] * len(rows)) -> None:
        self.answer = answer
        self.rows: list[Any] = []

    def handle(self, data: Any, context: Any) -> Any:
        self.rows = data
        return self.answer(data)


class Vision(VisionHandler):
    """A handler that inherits how images are read."""

    def __init__(self, answer: Any = lambda rows: [0] * len(rows)) -> None:
        super().__init__()
        self.answer = answer
        self.rows: list[Any] = []

    def handle(self, data: Any, context: Any) -> Any:
        self.rows = data
        return self.answer(data)


def run(handler: Any, rows: list[Any], context: Context | None = None) -> Any:
    return OpenInferenceEnvelope(handler.handle).handle(rows, context or context_of(len(rows)))


def outputs_of(answer: bytes) -> list[dict[str, Any]]:
    return json.loads(answer)["outputs"]


# What is not for the envelope.


@pytest.mark.parametrize(
    "row",
    [
        {"data": b"x"},
        {"body": bytearray(b"{}")},
        {"body": {"inputs": "text"}},
        {"body": {"inputs": [{"name": "a"}]}},
        {"body": {"inputs": [{"name": "a", "datatype": "FP8", "shape": [1], "data": [1]}]}},
        {"body": {"inputs": [{"name": "a", "datatype": "FP32", "shape": "1", "data": [1]}]}},
        {},
    ],
)
def test_other_requests_pass_untouched(row: dict[str, Any]) -> None:
    handler = Recorder(lambda rows: ["as it is"])
    assert run(handler, [row], context_of(tensorInputs="torch")) == ["as it is"]
    assert handler.rows == [row]


def test_an_own_handler_gets_the_json_of_torchserve_and_answers_for_itself() -> None:
    handler = Recorder(lambda rows: [{"mine": 1}])
    asked = request(tensor("a", "FP32", [2], [1.0, 2.0]))
    assert run(handler, [asked]) == [{"mine": 1}]
    assert handler.rows == [asked]


def test_raw_elements_become_json_for_an_own_handler() -> None:
    handler = Recorder()
    asked = request(
        {**tensor("a", "FP32", [2]), "parameters": {"binary_data_size": 8, "x": 1}},
        tensor("b", "BYTES", [2]),
        tensor("c", "INT8", [1], [5]),
        raw={0: struct.pack("<2f", 1.5, math.inf), 1: b"\x01\0\0\0\xff\0\0\0\0"},
        id="7",
    )
    run(handler, [asked])
    assert handler.rows == [
        {
            "body": {
                "id": "7",
                "inputs": [
                    {**tensor("a", "FP32", [2], [1.5, math.inf]), "parameters": {"x": 1}},
                    tensor("b", "BYTES", [2], [base64.b64encode(b"\xff").decode(), ""]),
                    tensor("c", "INT8", [1], [5]),
                ],
            }
        }
    ]


def test_data_of_any_depth_is_read_once() -> None:
    class Leaf:
        looks = 0

        @property
        def __class__(self) -> type:  # what isinstance asks
            Leaf.looks += 1
            return int

    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    _elements(tensor("a", "FP32", [2], [Leaf(), deep]))
    assert Leaf.looks < 5


# Tensors on request.

NUMBERS = [
    ("BOOL", torch.bool, [True, False]),
    ("UINT8", torch.uint8, [0, 255]),
    ("UINT16", torch.uint16, [0, 65535]),
    ("UINT32", torch.uint32, [0, 2**32 - 1]),
    ("UINT64", torch.uint64, [0, 2**64 - 1]),
    ("INT8", torch.int8, [-128, 127]),
    ("INT16", torch.int16, [-(2**15), 2**15 - 1]),
    ("INT32", torch.int32, [-(2**31), 2**31 - 1]),
    ("INT64", torch.int64, [-(2**63), 2**63 - 1]),
    ("FP16", torch.float16, [1.5, -2.0]),
    ("BF16", torch.bfloat16, [1.5, -2.0]),
    ("FP32", torch.float32, [1.5, -2.0]),
    ("FP64", torch.float64, [1.5, -2.0]),
]


def raw_of(value: torch.Tensor) -> bytes:
    return bytes(value.contiguous().view(torch.uint8).numpy()) if value.numel() else b""


@pytest.mark.parametrize(("datatype", "dtype", "values"), NUMBERS)
@pytest.mark.parametrize("is_raw", [True, False])
def test_torch_tensors(datatype: str, dtype: torch.dtype, values: list, is_raw: bool) -> None:
    wanted = torch.tensor([values], dtype=dtype)
    handler = Recorder(lambda rows: [row["a"] for row in rows])
    if is_raw:
        asked = request(tensor("a", datatype, [1, 2]), raw={0: raw_of(wanted)})
    else:
        asked = request(tensor("a", datatype, [1, 2], [values]))
    (answer,) = run(handler, [asked], context_of(tensorInputs="torch"))
    (row,) = handler.rows
    assert row["a"].dtype is dtype
    assert row["a"].shape == (1, 2)
    assert torch.equal(row["a"], wanted)
    (output,) = outputs_of(answer)
    assert output == {"name": "output_0", "datatype": datatype, "shape": [1, 2], "data": values}


@pytest.mark.parametrize(("datatype", "dtype", "values"), NUMBERS)
@pytest.mark.parametrize("is_raw", [True, False])
def test_numpy_arrays(datatype: str, dtype: torch.dtype, values: list, is_raw: bool) -> None:
    handler = Recorder(lambda rows: [row["a"] for row in rows])
    raw = {0: raw_of(torch.tensor(values, dtype=dtype))}
    asked = request(tensor("a", datatype, [2], *([] if is_raw else [values])))
    asked = {**asked, **(request(raw=raw) if is_raw else {}), "body": asked["body"]}
    (answer,) = run(handler, [asked], context_of(tensorInputs="numpy"))
    (row,) = handler.rows
    assert isinstance(row["a"], np.ndarray)
    assert row["a"].tolist() == values
    (output,) = outputs_of(answer)
    assert output["data"] == values
    # numpy has no BF16
    assert output["datatype"] == ("FP32" if datatype == "BF16" else datatype)


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_raw_tensors_are_not_copied(form: str) -> None:
    raw = bytearray(8)
    handler = Recorder()
    row = {"body": {"inputs": [tensor("a", "FP32", [2])]}, "tensor:0": raw}
    run(handler, [row], context_of(tensorInputs=form))
    raw[:] = struct.pack("<2f", 1.5, -2)
    assert handler.rows[0]["a"].tolist() == [1.5, -2]


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_odd_shapes(form: str) -> None:
    handler = Recorder()
    asked = request(
        tensor("none", "FP32", [0, 3]),
        tensor("scalar", "INT64", []),
        tensor("text", "BYTES", [1, 2]),
        tensor("word", "BYTES", [1], ["é"]),
        raw={0: b"", 1: struct.pack("<q", 7), 2: b"\x01\0\0\0a\0\0\0\0"},
    )
    run(handler, [asked], context_of(tensorInputs=form))
    (row,) = handler.rows
    assert tuple(row["none"].shape) == (0, 3)
    assert (tuple(row["scalar"].shape), row["scalar"].item()) == ((), 7)
    assert row["text"] == [b"a", b""]
    assert row["word"] == ["é".encode()]


@pytest.mark.parametrize("form", ["torch", "numpy"])
@pytest.mark.parametrize(
    "asked",
    [
        request(tensor("a", "FP32", [2**40]), raw={0: b"1234"}),
        request(tensor("a", "FP32", [2**40], [1])),
        request(tensor("a", "INT8", [1], [1000])),
        request(tensor("a", "INT8", [1], ["x"])),
        request(tensor("a", "FP32", [1, -1]), raw={0: b"1234"}),
        request(tensor("a", "BYTES", [2**40]), raw={0: b"1234"}),
        request(tensor("a", "BYTES", [1]), raw={0: b"\xff\0\0\0"}),
    ],
)
def test_what_does_not_fit_is_the_clients_fault(form: str, asked: dict[str, Any]) -> None:
    with pytest.raises(PredictionException, match='input "a"') as refused:
        run(Recorder(), [asked], context_of(tensorInputs=form))
    assert refused.value.error_code == 400


def test_a_form_that_does_not_exist_is_the_archives_fault() -> None:
    with pytest.raises(PredictionException, match="tensorInputs") as refused:
        run(Recorder(), [request(tensor("a", "FP32", [1], [1]))], context_of(tensorInputs="jax"))
    assert refused.value.error_code == 500


def test_text_is_read_as_json_where_the_worker_does_not_decode() -> None:
    handler = Recorder()
    row = request(tensor("a", "UINT8", [1]), raw={0: b"\x05"})
    row["body"] = bytearray(json.dumps(row["body"]).encode())
    run(handler, [row], context_of(tensorInputs="torch"))
    assert handler.rows[0]["a"].tolist() == [5]


# What a handler returns.


@pytest.mark.parametrize(
    ("result", "datatype", "shape", "data"),
    [
        ([[1, 2], [3, 4]], "INT64", [2, 2], [1, 2, 3, 4]),
        ([1, 2.5], "FP64", [2], [1, 2.5]),
        ([True], "BOOL", [1], [True]),
        (3, "INT64", [1], [3]),
        (2**70, "FP64", [1], [float(2**70)]),
        ("word", "BYTES", [1], ["word"]),
        ([["a"], ["b"]], "BYTES", [2, 1], ["a", "b"]),
        ([b"\xff"], "BYTES", [1], ["ÿ"]),
        ([{"a": 1}, [1, "x"]], "BYTES", [2], ['{"a": 1}', '[1, "x"]']),
        ([], "FP64", [0], []),
        (torch.zeros(0, 2), "FP32", [0, 2], []),
        (torch.tensor(5), "INT64", [], [5]),
        (torch.arange(4).reshape(2, 2).t(), "INT64", [2, 2], [0, 2, 1, 3]),
        (np.float32(1.5), "FP32", [], [1.5]),
        (np.array([["a", "b"]]), "BYTES", [1, 2], ["a", "b"]),
        (np.arange(4, dtype=">i2")[::2], "INT16", [2], [0, 2]),
    ],
)
def test_results_become_tensors(result: Any, datatype: str, shape: list, data: list) -> None:
    asked = request(tensor("a", "INT8", [1], [1]), id="7")
    (answer,) = run(Recorder(lambda rows: [result]), [asked], context_of(tensorInputs="torch"))
    assert json.loads(answer) == {
        "id": "7",
        "model_name": "m",
        "model_version": "2.0",
        "outputs": [{"name": "output_0", "datatype": datatype, "shape": shape, "data": data}],
    }


def test_outputs_by_name_in_the_form_that_is_wanted() -> None:
    asked = request(
        tensor("a", "INT8", [1], [1]),
        parameters={"binary_data_output": True},
        outputs=[{"name": "x"}, {"name": "y", "parameters": {"binary_data": False}}],
    )
    result = {"x": torch.tensor([1.5]), "y": [1, 2], "z": ["ab"]}
    context = context_of(tensorInputs="torch", outputs=[{"name": "y", "datatype": "INT32"}])
    (answer,) = run(Recorder(lambda rows: [result]), [asked], context)
    headers = context.get_response_headers(0)
    assert headers["content-type"] == BINARY_CONTENT_TYPE
    length = int(headers[JSON_LENGTH_HEADER])
    assert outputs_of(answer[:length]) == [
        {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "y", "datatype": "INT32", "shape": [2], "data": [1, 2]},
        {"name": "z", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
    ]
    assert answer[length:] == struct.pack("<f", 1.5) + b"\x02\0\0\0ab"


@pytest.mark.parametrize(
    ("result", "outputs"),
    [
        (torch.zeros(1, dtype=torch.complex64), []),
        ({"y": [1.5]}, [{"name": "y", "datatype": "INT8"}]),
        ([{1, 2}], []),
    ],
)
def test_what_is_no_tensor_is_the_models_fault(result: Any, outputs: list) -> None:
    context = context_of(tensorInputs="torch", outputs=outputs)
    asked = request(tensor("a", "INT8", [1], [1]))
    with pytest.raises(PredictionException, match="is no tensor") as failed:
        run(Recorder(lambda rows: [result]), [asked], context)
    assert failed.value.error_code == 500


def test_answers_that_the_handler_made_itself_stay() -> None:
    own = {"outputs": [], "model_name": "mine"}
    context = context_of(2, tensorInputs="torch")
    context.set_response_status(404, "no", 1)
    asked = request(tensor("a", "INT8", [1], [1]))
    answers = run(Recorder(lambda rows: [own, "sorry"]), [asked, asked], context)
    assert answers == [own, "sorry"]


def test_a_batch_of_both_kinds_of_request() -> None:
    context = context_of(2, tensorInputs="torch")
    rows = [{"data": b"x"}, request(tensor("a", "INT8", [1], [1]))]
    first, second = run(Recorder(lambda rows: ["plain", 5]), rows, context)
    assert first == "plain"
    assert outputs_of(second)[0]["data"] == [5]
    assert context.infer_requests[0] is None


@pytest.mark.parametrize("results", [None, [], [1, 2, 3], "text"])
def test_a_wrong_number_of_results_is_left_to_the_worker(results: Any) -> None:
    asked = request(tensor("a", "INT8", [1], [1]))
    context = context_of(2, tensorInputs="torch")
    assert run(Recorder(lambda rows: results), [asked, asked], context) == results


async def test_asynchronous_handlers() -> None:
    class Asynchronous:
        async def handle(self, data: Any, context: Any) -> Any:
            await asyncio.sleep(0)
            return [row["a"] + 1 for row in data]

    asked = request(tensor("a", "INT8", [1], [1]))
    (answer,) = await run(Asynchronous(), [asked], context_of(tensorInputs="torch"))
    assert outputs_of(answer)[0]["data"] == [2]


# Handlers that read their rows as the default ones do.


def test_a_default_handler_gets_a_row_per_text_or_image() -> None:
    handler = Vision(lambda rows: [{"3": 0.5}] * len(rows))
    rows = [
        request(tensor("a", "BYTES", [2]), raw={0: b"\x01\0\0\0\xff\0\0\0\0"}),
        request(tensor("a", "BYTES", [1], ["aGk="])),
        {"data": b"plain"},
    ]
    first, second, third = run(handler, rows)
    assert handler.rows == [{"data": b"\xff"}, {"data": b""}, {"data": "aGk="}, {"data": b"plain"}]
    assert outputs_of(first) == [
        {"name": "output_0", "datatype": "BYTES", "shape": [2], "data": ['{"3": 0.5}'] * 2}
    ]
    assert outputs_of(second)[0]["shape"] == [1]
    assert third == {"3": 0.5}


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_default_handler_gets_a_row_per_index_of_a_tensor(is_raw: bool) -> None:
    handler = Vision(lambda rows: [row["data"].sum() for row in rows])
    asked = tensor("a", "FP32", [2, 1, 2], *([] if is_raw else [[1, 2, 3, 4]]))
    raw = {0: struct.pack("<4f", 1, 2, 3, 4)} if is_raw else {}
    (answer,) = run(handler, [request(asked, raw=raw)])
    assert [row["data"].shape for row in handler.rows] == [(1, 2), (1, 2)]
    assert outputs_of(answer) == [
        {"name": "output_0", "datatype": "FP32", "shape": [2], "data": [3, 7]}
    ]


def test_no_inputs_are_none() -> None:
    handler = Recorder(lambda rows: [1])
    (answer,) = run(handler, [request()], context_of(tensorInputs="torch"))
    assert handler.rows == [{}]
    assert outputs_of(answer)[0]["data"] == [1]
    with pytest.raises(PredictionException, match="one input, not none"):
        run(Vision(), [request()])


def test_a_default_handler_takes_one_input() -> None:
    one = tensor("a", "FP32", [1], [1])
    with pytest.raises(PredictionException, match="one input, not a, b") as refused:
        run(Vision(), [request(one, {**one, "name": "b"})])
    assert refused.value.error_code == 400


def test_a_preprocess_of_its_own_makes_a_handler_an_own_one() -> None:
    class Own(Vision):
        def preprocess(self, data: Any) -> Any:
            return data

    handler = Own(lambda rows: ["mine"])
    asked = request(tensor("a", "FP32", [1], [1]))
    assert run(handler, [asked]) == ["mine"]
    assert handler.rows == [asked]
