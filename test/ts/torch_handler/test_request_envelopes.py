import asyncio
import json
from types import SimpleNamespace

import pytest
import torch

from ts.torch_handler.request_envelope.body import BodyEnvelope
from ts.torch_handler.request_envelope.json import JSONEnvelope
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope
from ts.utils.util import PredictionException


class Context(SimpleNamespace):
    def __init__(self, requests, **header):
        super().__init__(
            manifest={"model": {"modelName": "tiny", "modelVersion": "2.0"}},
            header=header,
            ids={index: f"r{index}" for index in range(requests)},
        )

    def get_request_header(self, idx, key):
        return self.header.get(key)

    def get_request_id(self, idx=0):
        return self.ids.get(idx)


def run(envelope, data, handler=lambda rows: rows, **header):
    """What the handler got, and what the envelope answered."""
    seen = []

    def handle(rows, context):
        seen.append(rows)
        return handler(rows)

    answer = envelope(handle).handle(data, Context(len(data), **header))
    return seen[0], answer


def as_bytes(value):
    return bytearray(json.dumps(value).encode())


def test_body():
    rows = [{"data": 1}, {"body": 2}, {"data": "", "body": "x"}, {}]
    assert run(BodyEnvelope, rows) == ([1, 2, "x", None], [1, 2, "x", None])
    assert run(BodyEnvelope, []) == ([], [])


def pieces():
    yield "a"
    yield "b"


async def pieces_later():
    yield "a"


@pytest.mark.parametrize("make", [pieces, pieces_later])
def test_body_lets_streams_through(make):
    made = make()
    assert run(BodyEnvelope, [{"data": 1}], lambda rows: made)[1] is made


def test_body_gives_the_answers_of_an_asynchronous_handler():
    async def handle(rows, context):
        return rows

    assert asyncio.run(BodyEnvelope(handle).handle([{"data": 1}], Context(1))) == [1]


@pytest.mark.parametrize("make", [pieces, pieces_later])
def test_an_envelope_for_whole_answers_says_that_it_takes_no_other(make):
    with pytest.raises(TypeError, match=r"JSONEnvelope .* service_envelope=body or none"):
        run(JSONEnvelope, [{"body": {"instances": [1]}}], lambda rows: make())


B64 = {"b64": "aGk="}


class TestJson:
    @pytest.mark.parametrize(
        ("request_", "instances"),
        [
            ({"body": {"instances": [1, 2]}}, [1, 2]),
            ({"data": {"instances": [[1], [2]]}}, [[1], [2]]),
            ({"instances": [5]}, [5]),
            ({"body": as_bytes({"instances": [1, 2]})}, [1, 2]),
            ({"body": '{"instances": [1, 2]}'}, [1, 2]),
            ({"body": {"instances": [B64, B64]}}, [b"hi", b"hi"]),
            ({"body": {"instances": [{"x": B64, "y": 1}]}}, [{"x": b"hi", "y": 1}]),
            # The first instance decides.
            ({"body": {"instances": [1, B64]}}, [1, B64]),
            ({"body": {"instances": [{"b64": "aGk=", "k": 2}]}}, [{"b64": "aGk=", "k": 2}]),
        ],
    )
    def test_instances(self, request_, instances):
        count = len(instances)
        seen, answer = run(JSONEnvelope, [request_], lambda rows: list(range(count)))
        assert seen == instances
        assert answer == [json.dumps({"predictions": list(range(count))})]

    def test_a_batch_is_joined_and_split(self):
        rows = [{"body": {"instances": [1, 2]}}, {"body": {"instances": [3]}}]
        seen, answer = run(JSONEnvelope, rows, lambda rows: [row * 10 for row in rows])
        assert seen == [1, 2, 3]
        assert answer == ['{"predictions": [10, 20]}', '{"predictions": [30]}']

    def test_a_wrong_number_of_results_never_reaches_other_clients(self):
        rows = [{"body": {"instances": [1, 2]}}, {"body": {"instances": [3]}}]
        with pytest.raises(ValueError, match="2 results for 3 rows"):
            run(JSONEnvelope, rows, lambda rows: rows[:2])


class TestKServe:
    @pytest.mark.parametrize(
        "request_",
        [
            {"body": {"instances": [{"data": 1}]}},
            {"data": {"instances": [{"data": 1}]}},
            {"body": as_bytes({"instances": [{"data": 1}]})},
            {"body": bytes(as_bytes({"instances": [{"data": 1}]}))},
        ],
    )
    def test_one_request(self, request_):
        seen, answer = run(KServeEnvelope, [request_], lambda rows: ["cat", "dog"])
        assert seen == [{"data": 1}]
        assert answer == [{"predictions": ["cat", "dog"]}]

    @pytest.mark.parametrize(
        ("instances", "rows"),
        [
            ([{"b64": "aGk="}], [b"hi"]),
            ([{"data": {"b64": "aGk="}, "target": 0}], [{"data": b"hi", "target": 0}]),
            ([{"b64": "aGk=", "more": 1}], [{"b64": "aGk=", "more": 1}]),
            ([[1, 2], {"b64": "aGk="}], [[1, 2], {"b64": "aGk="}]),
        ],
    )
    def test_base64_and_the_other_name_of_the_instances(self, instances, rows):
        for key in ("instances", "inputs"):
            assert run(KServeEnvelope, [{"body": {key: instances}}])[0] == rows

    def test_explanations(self):
        row = {"body": {"instances": [1]}}
        assert run(KServeEnvelope, [row], explain="True")[1] == [{"explanations": [1]}]
        assert run(KServeEnvelope, [row], explain="False")[1] == [{"predictions": [1]}]

    def test_every_request_of_a_batch_is_answered(self):
        rows = [{"body": {"instances": [1, 2]}}, {"body": {"instances": [3]}}]
        seen, answer = run(KServeEnvelope, rows)
        assert seen == [1, 2, 3]
        assert answer == [{"predictions": [1, 2]}, {"predictions": [3]}]

    def test_a_handler_is_not_asked_about_no_rows(self):
        def handle(rows, context):
            raise AssertionError("a default handler fails without a row")

        empty = {"body": {"instances": []}}
        for envelope, answer in (
            (KServeEnvelope, {"predictions": []}),
            (JSONEnvelope, '{"predictions": []}'),
        ):
            assert envelope(handle).handle([empty, empty], Context(2)) == [answer, answer]

    def test_base64_may_have_lines(self):
        rows = [{"body": {"instances": [{"b64": "aG\nk=\r\n"}]}}]
        assert run(KServeEnvelope, rows)[0] == [b"hi"]

    def test_no_results_are_left_alone(self):
        row = {"body": {"instances": [1]}}
        assert run(KServeEnvelope, [row], lambda rows: [])[1] == []
        assert run(KServeEnvelope, [row], lambda rows: None)[1] is None


def tensor(data, shape, datatype="FP32", name="in0"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def v2(*inputs, **fields):
    return {"body": {"inputs": list(inputs), **fields}}


DEEP = [1]
for _ in range(5_000):
    DEEP = [DEEP]


class TestKServeV2:
    @pytest.mark.parametrize(
        ("data", "shape", "datatype", "result"),
        [
            ([1, 2, 3, 4], [2, 2], "FP32", [[1, 2], [3, 4]]),
            ([[1, 2], [3, 4]], [4], "INT64", [1, 2, 3, 4]),
            ([1, 2, 3, 4, 5, 6], [1, 3, 2], "INT64", [[[1, 2], [3, 4], [5, 6]]]),
            ([True, False], [2], "BOOL", [True, False]),
            ([7], [], "INT32", 7),
            (DEEP, [1], "FP32", [1]),
            ([], [0], "FP32", []),
            (["abc"], [1], "BYTES", "abc"),
            ("abc", [1], "BYTES", "abc"),
        ],
    )
    def test_inputs(self, data, shape, datatype, result):
        seen, _ = run(KServev2Envelope, [v2(tensor(data, shape, datatype))], lambda rows: [0])
        assert seen == [{"name": "in0", "shape": shape, "datatype": datatype, "data": result}]

    @pytest.mark.parametrize(
        ("result", "datatype", "data"),
        [
            (1, "INT64", [1]),
            (0.5, "FP64", [0.5]),
            ([1, 0.5], "FP64", [1.0, 0.5]),
            (True, "BOOL", [True]),
            ("a", "BYTES", ["a"]),
            (b"a", "BYTES", ["a"]),
            (b"\xff", "BYTES", ["/w=="]),
            ({"a": 1}, "BYTES", [{"a": 1}]),
            (None, "BYTES", [None]),
            ([0.1, "x"], "BYTES", ["0.1", "x"]),
            ([[1, 2], [3]], "INT64", [1, 2, 3]),
            (torch.tensor([[1.5, 2.0]]), "FP32", [1.5, 2.0]),
            (torch.tensor([1], dtype=torch.uint8), "UINT8", [1]),
            (torch.tensor([True]).numpy(), "BOOL", [True]),
            (torch.tensor(1.5, dtype=torch.float16).numpy(), "FP16", [1.5]),
        ],
    )
    def test_outputs(self, result, datatype, data):
        request = v2(tensor([1], [1]), id="u1")
        _, answer = run(KServev2Envelope, [request], lambda rows: [result])
        output = {"name": "in0", "datatype": datatype, "data": data, "shape": [len(data)]}
        assert answer == [
            {"id": "u1", "model_name": "tiny", "model_version": "2.0", "outputs": [output]}
        ]
        json.dumps(answer)

    def test_without_an_id_the_request_id_is_used(self):
        assert run(KServev2Envelope, [v2(tensor([1], [1]))], lambda rows: [1])[1][0]["id"] == "r0"

    def test_outputs_have_the_names_of_the_inputs(self):
        request = v2(tensor([1], [1], name="a"), tensor([2], [1], name="b"))
        _, (answer,) = run(KServev2Envelope, [request], lambda rows: [1, [2, 3], 4])
        assert [output["name"] for output in answer["outputs"]] == ["a", "b", "output_2"]

    def test_every_request_of_a_batch_is_answered(self):
        rows = [
            v2(tensor([1], [1], name="a"), tensor([2], [1], name="b"), id="first"),
            {"body": as_bytes({"inputs": [tensor([3], [1], name="c")]})},
        ]
        _, answers = run(KServev2Envelope, rows, lambda rows: [row["data"][0] for row in rows])
        assert [answer["id"] for answer in answers] == ["first", "r1"]
        assert [[(o["name"], o["data"]) for o in answer["outputs"]] for answer in answers] == [
            [("a", [1]), ("b", [2])],
            [("c", [3])],
        ]

    def test_the_handler_can_read_names_and_id(self):
        context = Context(1)
        seen = []

        def handle(rows, context):
            seen.append((context.input_names, context.input_request_id))
            return [1]

        KServev2Envelope(handle).handle([v2(tensor([1], [1]), id="u1")], context)
        assert seen == [(["in0"], "u1")]
        assert not hasattr(context, "input_names")


@pytest.mark.parametrize(
    ("envelope", "request_", "message"),
    [
        (JSONEnvelope, {}, '"instances"'),
        (JSONEnvelope, {"body": b"{"}, "not JSON"),
        (KServeEnvelope, {"body": {"instances": 5}}, '"instances"'),
        (KServeEnvelope, {"body": [1]}, '"instances"'),
        (KServeEnvelope, {"body": {"inputs": 5}}, '"inputs"'),
        (KServeEnvelope, {"body": {"instances": [{"b64": 5}]}}, "base64"),
        (JSONEnvelope, {"body": {"instances": [{"b64": "x"}]}}, "base64"),
        (KServeEnvelope, {"body": {"instances": [{"b64": "%%"}]}}, "base64"),
        (KServeEnvelope, {"body": {"instances": [{"b64": "aGk="[::-1]}]}}, "base64"),
        (KServeEnvelope, {"body": b"[" * 100_000}, "nested too deeply"),
        (KServev2Envelope, {"body": {}}, '"inputs"'),
        (KServev2Envelope, v2({"name": "a"}), '"shape"'),
        (KServev2Envelope, v2(5), '"name"'),
        (KServev2Envelope, v2(tensor([1, 2], [3])), r"2 elements, its shape \[3\] needs 3"),
        (KServev2Envelope, v2(tensor([1], [2**20, 2**20])), "needs 1099511627776"),
        (KServev2Envelope, v2(tensor([1, 2], [-1, -2])), "shape"),
        (KServev2Envelope, v2(tensor([1], [-1])), "no shape"),
        (KServev2Envelope, v2(tensor([1], "1")), "shape"),
        (KServev2Envelope, v2(tensor([1], [1.0])), "shape"),
        (KServev2Envelope, v2(tensor([1], [True])), "shape"),
    ],
)
def test_a_broken_request_is_the_clients_fault(envelope, request_, message):
    with pytest.raises(PredictionException, match=message) as caught:
        run(envelope, [request_])
    assert caught.value.error_code == 400


@pytest.mark.parametrize("envelope", [BodyEnvelope, JSONEnvelope, KServeEnvelope, KServev2Envelope])
def test_a_describe_call_passes_through(envelope):
    seen, answer = run(envelope, [{}], lambda rows: [{"author": "me"}], describe="True")
    assert seen == [{}]
    assert answer == [{"author": "me"}]


def test_the_load_time_call_has_no_context():
    assert JSONEnvelope(lambda data, context: data).handle(None, None) is None


def instances(*values):
    return {"body": {"instances": list(values)}}


class TestAnAsynchronousHandler:
    """It works on many batches at once, and each answer has the form of its own requests."""

    @pytest.mark.parametrize(
        ("envelope", "batches", "answers"),
        [
            (
                JSONEnvelope,
                [[instances(1), instances(2, 3)], [instances(4)]],
                [['{"predictions": [1]}', '{"predictions": [2, 3]}'], ['{"predictions": [4]}']],
            ),
            (
                KServeEnvelope,
                [[instances(1), instances(2, 3)], [instances(4)]],
                [[{"predictions": [1]}, {"predictions": [2, 3]}], [{"predictions": [4]}]],
            ),
        ],
    )
    def test_answers_many_batches_at_once(self, envelope, batches, answers):
        assert self.run_crosswise(envelope(self.handle), batches) == answers

    def test_is_not_asked_about_no_rows(self):
        answer = KServeEnvelope(self.handle).handle([instances()], Context(1))
        assert asyncio.run(asyncio.wait_for(answer, 20)) == [{"predictions": []}]

    def test_keeps_names_and_ids_apart(self):
        batches = [
            [v2(tensor([1], [1], name="a"), id="first")],
            [v2(tensor([2], [1], name="b"), tensor([3], [1], name="c"), id="second")],
        ]
        answers = self.run_crosswise(KServev2Envelope(self.handle), batches)
        assert [
            (answer["id"], [output["name"] for output in answer["outputs"]])
            for (answer,) in answers
        ] == [("first", ["a"]), ("second", ["b", "c"])]

    def test_explains_where_that_was_asked(self):
        envelope = KServeEnvelope(self.handle)
        answers = self.run_crosswise(envelope, [[instances(1)]] * 2, [{"explain": "True"}, {}])
        assert answers == [[{"explanations": [1]}], [{"predictions": [1]}]]

    async def handle(self, rows, context):
        self.waiting += 1
        if self.waiting == 2:
            self.both_wait.set()
        await self.both_wait.wait()
        return [row["data"] if isinstance(row, dict) else row for row in rows]

    def run_crosswise(self, envelope, batches, headers=({}, {})):
        """The answers to two batches that the handler has at the same time."""

        async def main():
            self.waiting = 0
            self.both_wait = asyncio.Event()
            contexts = [
                Context(len(batch), **header)
                for batch, header in zip(batches, headers, strict=True)
            ]
            calls = [
                envelope.handle(batch, context)
                for batch, context in zip(batches, contexts, strict=True)
            ]
            return await asyncio.gather(*calls)

        return asyncio.run(main())
