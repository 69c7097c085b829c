"""Requests and answers of both wire forms, there and back."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.model import Model, ModelConfig, ModelId, TensorSpec
from ts_frontend.dialects.open_inference import convert, tensors
from ts_frontend.dialects.open_inference.convert import InferCall, WantedOutput
from ts_frontend.dialects.open_inference.errors import InvalidAnswer
from ts_frontend.dialects.open_inference.grpc_convert import read_message, write_message
from ts_frontend.dialects.open_inference.schema import DATATYPES
from ts_frontend.grpc.stubs.open_inference_pb2 import InferParameter, ModelInferRequest

MODEL = Model(ModelId("m", "1.0"), ModelConfig(), path="/", handler="h.py")
WHOLE = InferCall("", b"", (), False)

FLOATS = {"FP16": 16, "FP32": 32, "FP64": 64}


def values_of(datatype: str) -> st.SearchStrategy:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.binary(max_size=20)
    if datatype == "BF16":
        return st.sampled_from([0.0, 1.0, -2.5, math.inf])
    if datatype in FLOATS:
        return st.floats(width=FLOATS[datatype])
    bits = 8 * DATATYPES[datatype].size
    low = 0 if datatype.startswith("U") else -(2 ** (bits - 1))
    return st.integers(low, low + 2**bits - 1)


@st.composite
def named_tensors(draw, datatypes=tuple(DATATYPES)) -> list[tuple[str, str, list[int], list]]:
    names = draw(st.lists(st.text(max_size=8), unique=True, max_size=4))
    made = []
    for name in names:
        datatype = draw(st.sampled_from(datatypes))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = math.prod(shape)
        values = draw(st.lists(values_of(datatype), min_size=count, max_size=count))
        made.append((name, datatype, shape, values))
    return made


def raw_of(datatype: str, values: list) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return tensors.to_raw(datatype, values)


def same(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        a == b or (a != a and b != b) for a, b in zip(left, right, strict=True)
    )


def check_body(body: Any, made: list[tuple[str, str, list[int], list]]) -> None:
    """That the worker's JSON holds these tensors."""
    inputs = json.loads(bytes(body))["inputs"]
    assert [tensor["name"] for tensor in inputs] == [name for name, *_ in made]
    for tensor, (_, datatype, shape, values) in zip(inputs, made, strict=True):
        assert (tensor["datatype"], tensor["shape"]) == (datatype, shape)
        data = tensor["data"]
        if datatype == "BYTES":
            data = [base64.b64decode(text) for text in data]
        assert same(data, values)


def add_input(request: ModelInferRequest, name: str, datatype: str, shape: list[int]) -> Any:
    return request.inputs.add(name=name, datatype=datatype, shape=shape)


# gRPC requests.


@given(named_tensors())
def test_raw_inputs_reach_the_worker(made) -> None:
    request = ModelInferRequest(model_name="m", id="7")
    for name, datatype, shape, values in made:
        add_input(request, name, datatype, shape)
        request.raw_input_contents.append(raw_of(datatype, values))
    call = read_message(request)
    check_body(call.body, made)
    assert json.loads(call.body)["id"] == call.id == "7"
    assert call.is_binary is bool(made)


@given(named_tensors([name for name, kind in DATATYPES.items() if kind.contents]))
def test_contents_reach_the_worker(made) -> None:
    request = ModelInferRequest(model_name="m")
    for name, datatype, shape, values in made:
        tensor = add_input(request, name, datatype, shape)
        getattr(tensor.contents, DATATYPES[datatype].contents).extend(values)
    call = read_message(request)
    check_body(call.body, made)
    assert call.takes_answer_as_it_is


def test_the_body_is_torchserves() -> None:
    request = ModelInferRequest(model_name="m")
    add_input(request, "a", "FP32", [2]).contents.fp32_contents.extend([0.5, 2])
    add_input(request, "b", "BYTES", [1]).contents.bytes_contents.append(b"hello\xff")
    assert json.loads(read_message(request).body) == {
        "model_name": "m",
        "id": "",
        "inputs": [
            {"name": "a", "shape": [2], "datatype": "FP32", "data": [0.5, 2.0]},
            {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG//"]},
        ],
    }


def test_parameters_and_requested_outputs_go_along() -> None:
    request = ModelInferRequest(model_name="m")
    request.parameters["flag"].bool_param = False
    request.parameters["number"].int64_param = -5
    request.parameters["text"].string_param = "t"
    request.parameters["real"].double_param = 0.5
    request.parameters["large"].uint64_param = 2**64 - 1
    request.parameters["empty"].CopyFrom(InferParameter())
    add_input(request, "a", "FP32", [0]).parameters["x"].int64_param = 1
    request.outputs.add(name="o").parameters["classification"].int64_param = 3
    call = read_message(request)
    body = json.loads(call.body)
    assert body["parameters"] == {
        "flag": False,
        "number": -5,
        "text": "t",
        "real": 0.5,
        "large": 2**64 - 1,
        "empty": None,
    }
    assert body["inputs"][0]["parameters"] == {"x": 1}
    assert body["outputs"] == [{"name": "o", "parameters": {"classification": 3}}]
    assert call.outputs == [WantedOutput("o", False)]


def _contents_and_raw(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [1]).contents.fp32_contents.append(1)
    request.raw_input_contents.append(bytes(4))


def _too_few_raw(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [1])
    add_input(request, "b", "FP32", [1])
    request.raw_input_contents.append(bytes(4))


def _raw_without_inputs(request: ModelInferRequest) -> None:
    request.raw_input_contents.append(b"")


def _raw_of_another_size(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [2])
    request.raw_input_contents.append(bytes(4))


def _huge_raw(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [2**40])
    request.raw_input_contents.append(bytes(4))


def _overflow(request: ModelInferRequest) -> None:
    # 2**62 * 4 elements of 4 bytes are 0 bytes, modulo 2**64.
    add_input(request, "a", "FP32", [2**62, 4])
    request.raw_input_contents.append(b"")


def _huge_bytes(request: ModelInferRequest) -> None:
    add_input(request, "a", "BYTES", [2**40])
    request.raw_input_contents.append(bytes(4))


def _bytes_beyond_the_end(request: ModelInferRequest) -> None:
    add_input(request, "a", "BYTES", [1])
    request.raw_input_contents.append(b"\xff\xff\xff\xffabc")


def _negative(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [-1]).contents.fp32_contents.append(1)


def _negative_twice(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [-1, -1]).contents.fp32_contents.append(1)


def _wrong_length(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [3]).contents.fp32_contents.append(1)


def _no_contents(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [3])


def _wrong_field(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [1]).contents.int_contents.append(1)


def _two_fields(request: ModelInferRequest) -> None:
    contents = add_input(request, "a", "FP32", [1]).contents
    contents.int_contents.append(1)
    contents.fp32_contents.append(1)


def _half_floats_in_contents(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP16", [1]).contents.fp32_contents.append(1)


def _unknown_datatype(request: ModelInferRequest) -> None:
    add_input(request, "a", "STRING", [1])


def _out_of_range(request: ModelInferRequest) -> None:
    add_input(request, "a", "INT8", [1]).contents.int_contents.append(128)


def _out_of_range_unsigned(request: ModelInferRequest) -> None:
    add_input(request, "a", "UINT16", [1]).contents.uint_contents.append(65536)


def _twice(request: ModelInferRequest) -> None:
    for _ in range(2):
        add_input(request, "a", "FP32", [0])


def _output_twice(request: ModelInferRequest) -> None:
    for _ in range(2):
        request.outputs.add(name="o")


def _too_many_inputs(request: ModelInferRequest) -> None:
    for number in range(1001):
        add_input(request, str(number), "FP32", [0])


def _too_many_outputs(request: ModelInferRequest) -> None:
    for number in range(1001):
        request.outputs.add(name=str(number))


def _too_many_dimensions(request: ModelInferRequest) -> None:
    add_input(request, "a", "FP32", [1] * 65).contents.fp32_contents.append(1)


@pytest.mark.parametrize(
    "spoil",
    [
        _contents_and_raw,
        _too_few_raw,
        _raw_without_inputs,
        _raw_of_another_size,
        _huge_raw,
        _overflow,
        _huge_bytes,
        _bytes_beyond_the_end,
        _negative,
        _negative_twice,
        _wrong_length,
        _no_contents,
        _wrong_field,
        _two_fields,
        _half_floats_in_contents,
        _unknown_datatype,
        _out_of_range,
        _out_of_range_unsigned,
        _twice,
        _output_twice,
        _too_many_inputs,
        _too_many_outputs,
        _too_many_dimensions,
    ],
)
def test_a_message_that_claims_what_is_not_so_is_refused(spoil) -> None:
    request = ModelInferRequest(model_name="m")
    spoil(request)
    with pytest.raises(InvalidArgument):
        read_message(request)


# REST requests.


@given(named_tensors(), st.data())
def test_binary_and_json_tensors_reach_the_worker(made, data) -> None:
    inputs, blobs = [], []
    for name, datatype, shape, values in made:
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        is_json = datatype != "BYTES" and all(math.isfinite(value) for value in values)
        if is_json and data.draw(st.booleans()):
            tensor["data"] = values
        else:
            blobs.append(raw_of(datatype, values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1]), "kept": 1}
        inputs.append(tensor)
    head = json.dumps({"id": "7", "inputs": inputs}).encode()
    call = convert.read_http(head + b"".join(blobs), str(len(head)).encode())
    check_body(call.body, made)
    assert call.id == "7"
    for before, after in zip(inputs, json.loads(bytes(call.body))["inputs"], strict=True):
        if "parameters" in before:
            assert after["parameters"] == {"kept": 1}


def test_a_json_body_goes_on_as_it_is() -> None:
    body = (
        b'{"extra": {"any": [1]}, "inputs": [{"name": "a", "shape": [1], '
        b'"datatype": "FP32", "data": [1.50], "x": 1}] }'
    )
    for header in (None, str(len(body)).encode()):
        assert convert.read_http(body, header).body is body


def http_body(*inputs: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def fp32(**members: Any) -> dict[str, Any]:
    return {"name": "a", "shape": [1], "datatype": "FP32", **members}


BINARY = fp32(parameters={"binary_data_size": 4})
HEAD = http_body(BINARY)


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"inputs": {}}', None),
        (b'{"inputs": [{}]}', None),
        (b'{"inputs": [1]}', None),
        (b"\xff\xfe", None),
        (http_body(fp32(data=[1]))[:-1] + b', "\xb2": 1}', None),
        (http_body(BINARY)[:-1] + b', "\xb2": 1}' + bytes(4), str(len(HEAD) + 8)),
        (b"[" * 200_000, None),
        (b'{"inputs": ' + b"[" * 200_000, None),
        (http_body(fp32()), None),
        (http_body(fp32(data=[1, 2])), None),
        (http_body(fp32(data=[1], shape=[2**40])), None),
        (http_body(fp32(data=[1], shape=[-1])), None),
        (http_body(fp32(data=[1], shape=["1"])), None),
        (http_body(fp32(data=[1], shape=[10**400])), None),
        (http_body(fp32(data=[1], shape=[1.5])), None),
        (http_body(fp32(data=[1]), fp32(data=[1])), None),
        (http_body(fp32(data=[1]), outputs=[{"name": "o"}, {"name": "o"}]), None),
        (http_body(fp32(data=[1]), parameters={"binary_data_output": 1}), None),
        (http_body(fp32(data=[1]), parameters=[1]), None),
        (http_body(fp32(data=[1]), id=7), None),
        (b'{"inputs": [{"name":"a","shape":[1],"datatype":"FP32","data":[NaN]}]}', None),
        # The binary extension.
        (HEAD, None),
        (HEAD + bytes(4), None),
        (HEAD + bytes(3), str(len(HEAD))),
        (HEAD + bytes(5), str(len(HEAD))),
        (HEAD, str(len(HEAD))),
        (HEAD + bytes(4), str(len(HEAD) - 1)),
        (HEAD + bytes(4), str(len(HEAD) + 5)),
        (HEAD + bytes(4), "-1"),
        (HEAD + bytes(4), "x"),
        (HEAD + bytes(4), ""),
        (HEAD + bytes(4), "9" * 5000),
        (HEAD + bytes(4), "٣"),
    ],
)
def test_a_body_that_claims_what_is_not_so_is_refused(body: bytes, header: str | None) -> None:
    with pytest.raises(InvalidArgument):
        convert.read_http(body, None if header is None else header.encode())


@pytest.mark.parametrize("size", [-1, 5, 2**40, 2**63, 10**30, True, "4", 4.0, 3, 0])
def test_a_binary_size_that_is_not_there_is_refused(size: Any) -> None:
    head = http_body(fp32(parameters={"binary_data_size": size}))
    with pytest.raises(InvalidArgument):
        convert.read_http(head + bytes(4), str(len(head)).encode())


def test_data_and_binary_size_exclude_each_other() -> None:
    head = http_body(fp32(data=[1], parameters={"binary_data_size": 4}))
    with pytest.raises(InvalidArgument, match="both"):
        convert.read_http(head + bytes(4), str(len(head)).encode())


@pytest.mark.parametrize(
    ("members", "wanted", "is_binary"),
    [
        ({}, [], False),
        ({"parameters": {"binary_data_output": True}}, [], True),
        ({"outputs": [{"name": "o"}]}, [("o", False)], False),
        ({"outputs": [{"name": "o", "parameters": {"binary_data": True}}]}, [("o", True)], False),
        (
            {
                "outputs": [{"name": "o"}, {"name": "p", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            [("o", True), ("p", False)],
            True,
        ),
    ],
)
def test_the_form_of_the_answer_is_chosen(members, wanted, is_binary) -> None:
    call = convert.read_http(http_body(fp32(data=[1]), **members), None)
    assert list(call.outputs) == wanted
    assert call.is_binary is is_binary


# What the model's archive declares.

DECLARED = Model(
    ModelId("m", "1.0"),
    ModelConfig(
        inputs=(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "BYTES", (1,))),
        outputs=(TensorSpec("o", "FP32", (-1,)),),
    ),
    path="/",
    handler="h.py",
)
GOOD_A = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
GOOD_B = {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["x"]}


def test_a_request_that_fits_the_declaration() -> None:
    for b in (GOOD_B, {**GOOD_B, "shape": [-1]}):
        convert.read_http(http_body(b, GOOD_A, outputs=[{"name": "o"}]), None, DECLARED)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (http_body(GOOD_A), "Missing inputs"),
        (http_body(GOOD_A, {**GOOD_B, "name": "c"}), 'no input "c"'),
        (http_body({**GOOD_A, "datatype": "FP64"}, GOOD_B), "FP32"),
        (http_body({**GOOD_A, "shape": [2]}, GOOD_B), "shape"),
        (http_body({**GOOD_A, "shape": [2, 1]}, GOOD_B), "shape"),
        (http_body(GOOD_A, GOOD_B, outputs=[{"name": "p"}]), 'no output "p"'),
    ],
)
def test_a_request_that_does_not_fit_the_declaration(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        convert.read_http(body, None, DECLARED)


# Answers.


def answer_of(made: list[tuple[str, str, list[int], list]], **members: Any) -> bytes:
    """What the worker's envelope sends: Python's JSON."""
    return json.dumps(
        {
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape, "data": values}
                for name, datatype, shape, values in made
            ],
            **members,
        }
    ).encode()


def texts(made):
    """The same with text in place of bytes, which JSON has not."""
    return [
        (
            name,
            datatype,
            shape,
            [value.hex() for value in values] if datatype == "BYTES" else values,
        )
        for name, datatype, shape, values in made
    ]


@given(named_tensors().map(texts), st.booleans())
def test_answers_as_messages(made, is_raw) -> None:
    answer = convert.read_answer(answer_of(made, id="i", model_name="n", model_version="v"))
    response = write_message(answer, WHOLE._replace(is_binary=is_raw), MODEL)
    assert (response.id, response.model_name, response.model_version) == ("i", "n", "v")
    assert len(response.outputs) == len(made)
    only_raw = is_raw or any(not DATATYPES[datatype].contents for _, datatype, *_ in made)
    assert len(response.raw_output_contents) == (len(made) if only_raw else 0)
    for index, (name, datatype, shape, values) in enumerate(made):
        output = response.outputs[index]
        assert (output.name, output.datatype, list(output.shape)) == (name, datatype, shape)
        if only_raw:
            raw = response.raw_output_contents[index]
            got = list(tensors.from_raw(name, datatype, len(values), raw))
        else:
            got = list(getattr(output.contents, DATATYPES[datatype].contents))
        if datatype == "BYTES":
            got = [value.decode() for value in got]
        assert same(got, values)


@given(named_tensors().map(texts))
def test_answers_with_bytes_behind_the_json(made) -> None:
    answer = convert.read_answer(answer_of(made))
    body, json_bytes = convert.write_http(answer, WHOLE._replace(is_binary=True), MODEL)
    head = json.loads(body[:json_bytes])
    assert (head["model_name"], head["model_version"]) == ("m", "1.0")
    assert (json_bytes is None) == (not made)
    blob = body[json_bytes:] if made else b""
    for output, (name, datatype, shape, values) in zip(head["outputs"], made, strict=True):
        assert "data" not in output
        assert (output["name"], output["datatype"], output["shape"]) == (name, datatype, shape)
        size = output["parameters"]["binary_data_size"]
        got = list(tensors.from_raw(name, datatype, len(values), blob[:size]))
        if datatype == "BYTES":
            got = [value.decode() for value in got]
        assert same(got, values)
        blob = blob[size:]
    assert blob == b""


TWO = [("o", "FP32", [2], [1.0, 2.0]), ("p", "INT64", [1, 1], [[3]])]


def test_requested_outputs_come_in_their_order_and_form() -> None:
    answer = convert.read_answer(answer_of(TWO, id="i"))
    call = WHOLE._replace(outputs=[WantedOutput("p", False), WantedOutput("o", True)])
    body, json_bytes = convert.write_http(answer, call, MODEL)
    assert json.loads(body[:json_bytes])["outputs"] == [
        {"name": "p", "datatype": "INT64", "shape": [1, 1], "data": [[3]]},
        {
            "name": "o",
            "datatype": "FP32",
            "shape": [2],
            "parameters": {"binary_data_size": 8},
        },
    ]
    assert body[json_bytes:] == struct.pack("<2f", 1, 2)
    only = WHOLE._replace(outputs=[WantedOutput("p", False)])
    assert [output.name for output in write_message(answer, only, MODEL).outputs] == ["p"]


def test_an_output_that_the_model_did_not_give() -> None:
    answer = convert.read_answer(answer_of(TWO))
    call = WHOLE._replace(outputs=[WantedOutput("q", False)])
    with pytest.raises(InvalidArgument, match='no output "q"; it gave "o", "p"'):
        convert.write_http(answer, call, MODEL)
    with pytest.raises(InvalidArgument):
        write_message(answer, call, MODEL)


def test_numbers_that_json_has_not_survive_a_rewrite() -> None:
    made = [("o", "FP32", [3], [math.nan, math.inf, 1.0])]
    answer = convert.read_answer(answer_of(made))
    body, _ = convert.write_http(answer, WHOLE._replace(outputs=[WantedOutput("o", False)]), MODEL)
    assert same(json.loads(body)["outputs"][0]["data"], made[0][3])


def test_what_the_answer_leaves_out_is_filled_in() -> None:
    answer = convert.read_answer(b'{"outputs": [], "id": null, "model_name": null, "more": 1}')
    response = write_message(answer, WHOLE._replace(id="mine"), MODEL)
    assert (response.id, response.model_name, response.model_version) == ("mine", "m", "1.0")


def test_parameters_of_an_answer() -> None:
    parameters = {"b": True, "i": -1, "u": 2**63, "f": 0.5, "s": "t", "n": None, "l": [1]}
    answer = convert.read_answer(answer_of([], parameters=parameters))
    written = write_message(answer, WHOLE, MODEL).parameters
    assert {key: value.WhichOneof("parameter_choice") for key, value in written.items()} == {
        "b": "bool_param",
        "i": "int64_param",
        "u": "uint64_param",
        "f": "double_param",
        "s": "string_param",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"7",
        b"\xff",
        b"{}",
        b'{"outputs": 1}',
        b'{"outputs": [{"name": "o"}]}',
        b'{"outputs": [NaN]}',
        b'{"outputs": [{"name": 1, "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        convert.read_answer(body)


@pytest.mark.parametrize("datatype", ["INT8", "BYTES"])
def test_an_answer_whose_elements_are_no_text(datatype: str) -> None:
    body = b'{"outputs": [{"name": "o", "shape": [1], "datatype": "%b", "data": ["\xff"]}]}'
    answer = convert.read_answer(body % datatype.encode())
    with pytest.raises(InvalidAnswer):
        write_message(answer, WHOLE, MODEL)
    with pytest.raises(InvalidAnswer):
        convert.write_http(answer, WHOLE._replace(is_binary=True), MODEL)


@pytest.mark.parametrize(
    ("datatype", "shape", "values"),
    [
        ("FP32", [3], [1.0]),
        ("FP32", [2**40], [1.0]),
        ("FP32", [-1], [1.0]),
        ("FP32", [2**63], [1.0]),
        ("STRING", [1], ["a"]),
        ("INT8", [1], [300]),
        ("INT64", [1], ["a"]),
        ("INT64", [1], [1.5]),
        ("FP32", [1], [None]),
        ("FP16", [1], [1e6]),
        ("UINT64", [1], [-1]),
    ],
)
@pytest.mark.parametrize("is_raw", [True, False])
def test_an_answer_that_contradicts_itself(datatype, shape, values, is_raw) -> None:
    answer = convert.read_answer(answer_of([("o", datatype, shape, values)]))
    call = WHOLE._replace(is_binary=is_raw)
    if (datatype, is_raw) == ("INT8", False):
        return  # the message's field holds it
    with pytest.raises(InvalidAnswer):
        write_message(answer, call, MODEL)
    if is_raw:
        with pytest.raises(InvalidAnswer):
            convert.write_http(answer, call, MODEL)
