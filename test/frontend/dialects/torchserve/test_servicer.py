"""TorchServe's gRPC services as its clients see them (contract, gRPC sections 2 and 3)."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

import grpc
import pytest
from fake_planes import answers, fails, holds, streams
from fakes import wait_until
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo

from ts_frontend.core import errors
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.job import JobState
from ts_frontend.grpc.stubs.inference_pb2 import PredictionResponse, PredictionsRequest
from ts_frontend.grpc.stubs.management_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    RegisterModelRequest,
    ScaleWorkerRequest,
    SetDefaultRequest,
    UnregisterModelRequest,
)

Code = grpc.StatusCode
AS_TORCHSERVE = pytest.mark.parametrize(
    "fakes", [{"has_torchserve_grpc_errors": True}], indirect=True
)
NO_WORKER = errors.NoWorker.to_predict("echo", None)


def asking(name: str = "echo", body: bytes = b"x", **more) -> PredictionsRequest:
    return PredictionsRequest(model_name=name, input={"data": body}, **more)


async def failure_of(call) -> tuple[Code, str | None]:
    answer = drain(call) if hasattr(call, "__aiter__") else call
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await answer
    return failed.value.code(), failed.value.details()


async def drain(call) -> None:
    async for _ in call:
        pass


# Inference.


@pytest.mark.parametrize(("healthy", "word"), [(1, "Healthy"), (0, "Unhealthy")])
async def test_ping_succeeds_whatever_it_says(grpc_api, fakes, healthy: int, word: str) -> None:
    fakes.add("echo").healthy_count = healthy
    answer = await grpc_api.inference.Ping(Empty())
    assert answer.health == f'{{\n  "status": "{word}"\n}}'


async def test_each_input_is_a_part(grpc_api, fakes) -> None:
    model = fakes.add("echo", does=answers(b"done"))
    request = PredictionsRequest(model_name="echo", input={"data": b"\x00\xff", "target": b"1"})
    answer = await grpc_api.inference.Predictions(request)
    assert answer == PredictionResponse(prediction=b"done")
    assert model.requests == [{"data": b"\x00\xff", "target": b"1"}]
    assert model.headers == [{}]
    assert len(model.jobs[0].request.id) == 36


METADATA = (
    ("x-tenant", "blue"),
    ("x-trace-bin", b"\x00\xff"),
    ("authorization", "Bearer mine"),
    # Not the caller's to give: gRPC's own, and the commands of the frontend to a handler.
    ("grpc-tags-bin", b"t"),
    ("explain", "True"),
    ("describe", "True"),
)


@pytest.mark.parametrize("name", ["Predictions", "StreamPredictions", "StreamPredictions2"])
async def test_metadata_becomes_headers(grpc_api, fakes, name: str) -> None:
    model = fakes.add("echo")
    request = asking(sequence_id="s")
    what = iter([request]) if name == "StreamPredictions2" else request
    call = getattr(grpc_api.inference, name)(what, metadata=METADATA)
    await (drain(call) if hasattr(call, "__aiter__") else call)
    (headers,) = model.headers
    own = {
        key: headers.pop(key)
        for key in ("ts_request_sequence_id", "ts_request_sequence_start")
        if key in headers
    }
    assert headers == {
        "x-tenant": "blue",
        "x-trace-bin": "AP8=",
        "authorization": "Bearer mine",
    }
    assert bool(own) == (name == "StreamPredictions2")


@pytest.mark.parametrize("fakes", [{"has_grpc_metadata": False}], indirect=True)
async def test_metadata_stays_outside_in_torchserve(grpc_api, fakes) -> None:
    model = fakes.add("echo")
    await grpc_api.inference.Predictions(asking(), metadata=METADATA)
    assert model.headers == [{}]


@pytest.mark.parametrize("fakes", [{"tokens": object()}], indirect=True)
async def test_the_key_to_the_server_is_not_for_the_handler(grpc_api, fakes) -> None:
    model = fakes.add("echo")
    await grpc_api.inference.Predictions(asking(), metadata=METADATA)
    assert set(model.headers[0]) == {"x-tenant", "x-trace-bin"}


async def test_a_streams_sequences_are_those_of_its_messages(grpc_api, fakes) -> None:
    model = fakes.add("echo")
    metadata = (("ts_request_sequence_id", "false"), ("ts_request_sequence_end", "true"))
    await drain(
        grpc_api.inference.StreamPredictions2(iter([asking(sequence_id="s")]), metadata=metadata)
    )
    (job,) = model.jobs
    assert job.request.headers == [
        (b"ts_request_sequence_id", b"s"),
        (b"ts_request_sequence_start", b"true"),
    ]


async def test_the_version_may_be_named(grpc_api, fakes) -> None:
    fakes.add("echo", "1.0", answers(b"one"))
    fakes.add("echo", "2.0", answers(b"two"))
    assert (await grpc_api.inference.Predictions(asking())).prediction == b"one"
    second = await grpc_api.inference.Predictions(asking(model_version="2.0"))
    assert second.prediction == b"two"


@pytest.mark.parametrize(
    ("status", "code"), [(400, Code.INVALID_ARGUMENT), (418, Code.FAILED_PRECONDITION)]
)
async def test_a_handlers_own_status_is_the_calls(grpc_api, fakes, status: int, code: Code) -> None:
    fakes.add("echo", does=answers(b"short and stout" + bytes(2000), status=status))
    for method in (grpc_api.inference.Predictions, grpc_api.inference.StreamPredictions):
        told = await failure_of(method(asking()))
        assert told[0] is code
        assert told[1].startswith("short and stout")
    call = grpc_api.inference.StreamPredictions2(iter([asking(sequence_id="s")]))
    (message,) = [message async for message in call]
    assert message.status.code == code.value[0]


@AS_TORCHSERVE
async def test_a_handlers_own_status_is_not_the_calls_in_torchserve(grpc_api, fakes) -> None:
    fakes.add("echo", does=answers(b"short and stout", status=418))
    assert (await grpc_api.inference.Predictions(asking())).prediction == b"short and stout"
    call = grpc_api.inference.StreamPredictions(asking())
    assert [message.prediction async for message in call] == [b"short and stout"]


async def test_a_plain_call_of_a_streaming_handler_gets_all_of_it(grpc_api, fakes) -> None:
    fakes.add("echo", does=streams(b"a", b"", b"b"))
    assert (await grpc_api.inference.Predictions(asking())).prediction == b"ab"


@pytest.mark.parametrize("parts", [[b"only"], [b"a", b"", b"c"]])
async def test_a_stream_has_a_message_for_each_piece(grpc_api, fakes, parts) -> None:
    fakes.add("echo", does=streams(*parts))
    call = grpc_api.inference.StreamPredictions(asking())
    assert [message.prediction async for message in call] == parts


FAILURES = {
    errors.InvalidArgument("bad"): (Code.INVALID_ARGUMENT, "bad\nBadRequestException.()"),
    NO_WORKER: (Code.UNAVAILABLE, f"{NO_WORKER}\nInternalServerException.()"),
    errors.QueueFull("full"): (Code.UNAVAILABLE, "full\nInternalServerException.()"),
    errors.QueueFull("full", errors.ErrorKind.THROTTLED): (
        Code.RESOURCE_EXHAUSTED,
        "full\nInternalServerException.()",
    ),
    errors.DeadlineUnreachable("late"): (
        Code.UNAVAILABLE,
        "late\nInternalServerException.()",
    ),
    errors.WorkerDied(): (
        Code.INTERNAL,
        "Worker died.\norg.pytorch.serve.http.InternalServerException",
    ),
    errors.WorkerDied(out_of_memory=True): (
        Code.RESOURCE_EXHAUSTED,
        "Worker died.\norg.pytorch.serve.http.InternalServerException",
    ),
    errors.ModelError(503, "Prediction failed"): (
        Code.UNAVAILABLE,
        "Prediction failed\norg.pytorch.serve.http.InternalServerException",
    ),
    errors.ModelError(507, "Out of resources"): (
        Code.INTERNAL,
        "Out of resources\norg.pytorch.serve.http.InternalServerException",
    ),
    errors.ModelError(413, "m"): (
        Code.RESOURCE_EXHAUSTED,
        "m\norg.pytorch.serve.http.InternalServerException",
    ),
    errors.DeadlineExceeded("late"): (
        Code.DEADLINE_EXCEEDED,
        "late\norg.pytorch.serve.http.InternalServerException",
    ),
}


@pytest.mark.parametrize(
    ("error", "told"), FAILURES.items(), ids=[f"{type(e).__name__}-{e}"[:30] for e in FAILURES]
)
async def test_failures_have_standard_codes_and_torchserves_texts(
    grpc_api, fakes, error, told
) -> None:
    fakes.add("echo", does=fails(error))
    assert await failure_of(grpc_api.inference.Predictions(asking())) == told
    assert await failure_of(grpc_api.inference.StreamPredictions(asking())) == told


INTERNAL_IN_TORCHSERVE = (errors.InvalidArgument, errors.NoWorker)


@AS_TORCHSERVE
@pytest.mark.parametrize(
    ("error", "told"), FAILURES.items(), ids=[f"{type(e).__name__}-{e}"[:30] for e in FAILURES]
)
async def test_failures_have_torchserves_codes(grpc_api, fakes, error, told) -> None:
    fakes.add("echo", does=fails(error))
    code, text = told
    if isinstance(error, INTERNAL_IN_TORCHSERVE) and error.kind is not errors.ErrorKind.THROTTLED:
        code = Code.INTERNAL
    assert await failure_of(grpc_api.inference.Predictions(asking())) == (code, text)


UNKNOWN = [
    (
        asking(""),
        Code.INVALID_ARGUMENT,
        "Parameter model_name is required.\nBadRequestException.()",
    ),
    (
        asking("zz"),
        Code.NOT_FOUND,
        "Model not found: zz\norg.pytorch.serve.archive.model.ModelNotFoundException",
    ),
    (
        asking(model_version="9"),
        Code.NOT_FOUND,
        "Model version: 9 does not exist for model: echo\n"
        "org.pytorch.serve.archive.model.ModelVersionNotFoundException",
    ),
]


@pytest.mark.parametrize(("request_", "code", "text"), UNKNOWN)
async def test_unknown_models_are_not_found(grpc_api, fakes, request_, code, text) -> None:
    fakes.add("echo")
    assert await failure_of(grpc_api.inference.Predictions(request_)) == (code, text)
    assert await failure_of(grpc_api.inference.StreamPredictions(request_)) == (code, text)


@AS_TORCHSERVE
@pytest.mark.parametrize(("request_", "code", "text"), UNKNOWN)
async def test_unknown_models_are_an_internal_error_in_torchserve(
    grpc_api, fakes, request_, code, text
) -> None:
    fakes.add("echo")
    assert await failure_of(grpc_api.inference.Predictions(request_)) == (Code.INTERNAL, text)


async def test_a_stream_that_breaks_keeps_what_came_before(grpc_api, fakes) -> None:
    def breaks(job) -> None:
        job.push(ResponseChunk(200, b"", b"", [], b"first", False))
        job.fail(errors.WorkerDied())

    fakes.add("echo", does=breaks)
    call = grpc_api.inference.StreamPredictions(asking())
    assert (await call.read()).prediction == b"first"
    assert (await failure_of(call.read()))[0] is Code.INTERNAL


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
async def test_the_clients_deadline_is_the_jobs(grpc_api, fakes, method: str) -> None:
    model = fakes.add("echo", does=holds)
    call = getattr(grpc_api.inference, method)(asking(), timeout=0.3)
    job = (await wait_until(lambda: model.jobs))[0]
    assert job.deadline_s is not None
    assert 0 < job.deadline_s - time.monotonic() <= 1.3  # the wire rounds it up
    assert (await failure_of(call))[0] is Code.DEADLINE_EXCEEDED
    await wait_until(lambda: job.state >= JobState.FINISHED)


async def test_without_a_deadline_there_is_none(grpc_api, fakes) -> None:
    model = fakes.add("echo")
    await grpc_api.inference.Predictions(asking())
    assert model.jobs[0].deadline_s is None


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions", "StreamPredictions2"])
async def test_a_client_that_leaves_cancels_its_job(grpc_api, fakes, method: str) -> None:
    model = fakes.add("echo", does=holds)
    call = getattr(grpc_api.inference, method)
    call = call() if method == "StreamPredictions2" else call(asking())
    if method == "StreamPredictions2":
        await call.write(asking(sequence_id="s"))
    job = (await wait_until(lambda: model.jobs))[0]
    call.cancel()
    await wait_until(lambda: job.state is JobState.CANCELLED)


async def test_a_waiting_job_of_a_client_that_left_leaves_the_queue(grpc_api, fakes) -> None:
    model = fakes.add("echo").model
    model.queue.on_put = None  # no worker is free
    call = grpc_api.inference.Predictions(asking())
    await wait_until(lambda: len(model.queue) == 1)
    call.cancel()
    await wait_until(lambda: len(model.queue) == 0)


# Sequences.


async def test_the_requests_of_a_stream_run_one_after_the_other(grpc_api, fakes) -> None:
    model = fakes.add("echo", does=holds)
    call = grpc_api.inference.StreamPredictions2()
    for number in range(3):
        await call.write(asking(body=b"%d" % number, sequence_id="s"))
    await call.done_writing()
    for number in range(3):
        await wait_until(lambda: len(model.jobs) == number + 1)  # noqa: B023
        assert model.requests[number] == {"data": b"%d" % number}
        answers(b"answer %d" % number)(model.jobs[number])
        assert (await call.read()).prediction == b"answer %d" % number
    # The client closed its side long ago; nothing that was pending is lost.
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK


async def test_handlers_get_the_sequence_and_its_start(grpc_api, fakes) -> None:
    model = fakes.add("echo")
    ids = ["a", "a", "b", "a", "b"]
    call = grpc_api.inference.StreamPredictions2(
        asking(sequence_id=sequence_id) for sequence_id in ids
    )
    assert [message async for message in call] == [PredictionResponse(prediction=b"x")] * 5
    assert [headers["ts_request_sequence_id"] for headers in model.headers] == ids
    starts = [headers.get("ts_request_sequence_start") for headers in model.headers]
    assert starts == ["true", None, "true", None, None]


async def test_a_stream_cannot_make_the_server_remember_without_end(
    grpc_api, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ts_frontend.dialects.torchserve.servicer.MAX_SEQUENCES", 2)
    fakes.add("echo")
    ids = ["a", "b", "c", "a"]
    call = grpc_api.inference.StreamPredictions2(
        asking(sequence_id=sequence_id) for sequence_id in ids
    )
    messages = [message async for message in call]
    assert [message.HasField("status") for message in messages] == [False, False, True, False]


async def test_each_piece_of_a_streamed_answer_comes_in_order(grpc_api, fakes) -> None:
    fakes.add("echo", does=streams(b"1", b"2"))
    requests = [asking(sequence_id="s")] * 2
    call = grpc_api.inference.StreamPredictions2(iter(requests))
    assert [message.prediction async for message in call] == [b"1", b"2", b"1", b"2"]


async def test_failures_are_told_in_band_and_the_stream_goes_on(grpc_api, fakes) -> None:
    fakes.add("echo")
    fakes.add("broken", does=fails(errors.ModelError(503, "Prediction failed")))
    requests = [
        asking(),
        asking("", sequence_id="s"),
        asking("zz", sequence_id="s"),
        asking("broken", sequence_id="s"),
        asking(sequence_id="s"),
    ]
    call = grpc_api.inference.StreamPredictions2(iter(requests))
    messages = [message async for message in call]
    assert await call.code() is Code.OK
    told = []
    for message in messages[:-1]:
        assert message.prediction == b""
        info = ErrorInfo()
        assert message.status.details[0].Unpack(info)
        told.append((message.status.code, message.status.message, info.reason))
    assert told == [
        (3, "Parameter sequenceId is required.", "BadRequestException.()"),
        (3, "Parameter model_name is required.", "BadRequestException.()"),
        (
            5,
            "Model not found: zz",
            "org.pytorch.serve.archive.model.ModelNotFoundException",
        ),
        (14, "Prediction failed", "org.pytorch.serve.http.InternalServerException"),
    ]
    assert messages[-1] == PredictionResponse(prediction=b"x")


async def test_a_fast_client_is_held_back(grpc_api, fakes) -> None:
    """What has not been taken waits in the client, not in the server's memory."""
    model = fakes.add("echo", does=holds)
    call = grpc_api.inference.StreamPredictions2()
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await call.write(asking(body=bytes(1_000_000), sequence_id="s"))
            written += 1

    writing = asyncio.ensure_future(write())
    await wait_until(lambda: model.jobs)
    # How much sockets and grpc's windows hold differs by machine. That writing comes to a stop
    # long before a client that is not held back would, which writes hundreds a second, does not.
    seen: deque[int] = deque(maxlen=100)

    def has_come_to_a_stop() -> bool:
        seen.append(written)
        return len(seen) == 100 and len(set(seen)) == 1

    await wait_until(has_come_to_a_stop)
    assert written < 100
    writing.cancel()
    call.cancel()


# Management.


async def message_of(call) -> str:
    return (await call).msg


async def test_register_maps_every_field(grpc_api, fakes) -> None:
    request = RegisterModelRequest(
        batch_size=4,
        handler="h.py",
        initial_workers=2,
        max_batch_delay=50,
        model_name="new",
        response_timeout=7,
        runtime="python",
        synchronous=True,
        url="new.mar",
        s3_sse_kms=True,
        startup_timeout=8,
    )
    text = await message_of(grpc_api.management.RegisterModel(request))
    assert text == 'Model "new" Version: 1.0 registered with 2 initial workers'
    (wanted,) = fakes.control.registered
    assert wanted.url == "new.mar"
    assert wanted.model_name == "new"
    assert wanted.handler == "h.py"
    assert wanted.runtime == "python"
    assert (wanted.batch_size, wanted.max_batch_delay_ms) == (4, 50)
    assert (wanted.response_timeout_s, wanted.startup_timeout_s) == (7, 8)
    assert (wanted.initial_workers, wanted.is_synchronous) == (2, True)
    assert wanted.s3_sse_kms


async def test_what_is_unset_is_not_said(grpc_api, fakes) -> None:
    request = RegisterModelRequest(url="new.mar", batch_size=-1, initial_workers=0)
    text = await message_of(grpc_api.management.RegisterModel(request))
    assert text == (
        'Model "new.mar" Version: 1.0 registered with 0 initial workers. '
        "Use scale workers API to add workers for the model."
    )
    (wanted,) = fakes.control.registered
    assert wanted.model_name is wanted.handler is wanted.runtime is None
    assert wanted.batch_size is wanted.max_batch_delay_ms is wanted.initial_workers is None
    assert wanted.response_timeout_s is wanted.startup_timeout_s is None
    assert not wanted.is_synchronous


async def test_registering_does_not_wait_unless_asked(grpc_api, fakes) -> None:
    request = RegisterModelRequest(url="new.mar", initial_workers=1)
    text = await message_of(grpc_api.management.RegisterModel(request))
    assert text == "Processing worker updates..."


@pytest.mark.parametrize(
    ("request_", "bounds", "text"),
    [
        (ScaleWorkerRequest(), (1, 1), "Workers scaled to 1 for model: echo"),
        (ScaleWorkerRequest(min_worker=3), (3, 3), "Workers scaled to 3 for model: echo"),
        (ScaleWorkerRequest(max_worker=3), (1, 3), "Workers scaled to 1 for model: echo"),
        (ScaleWorkerRequest(min_worker=-1), (1, 1), "Workers scaled to 1 for model: echo"),
        # Said, not left out, by a client of stubs that can say it.
        (ScaleWorkerRequest(min_worker=0), (0, 0), "Workers scaled to 0 for model: echo"),
        (
            ScaleWorkerRequest(model_version="1.0", min_worker=2),
            (2, 2),
            "Workers scaled to 2 for model: echo, version: 1.0",
        ),
    ],
)
async def test_scale(grpc_api, fakes, request_, bounds, text) -> None:
    fakes.add("echo")
    request_.model_name = "echo"
    request_.synchronous = True
    assert await message_of(grpc_api.management.ScaleWorker(request_)) == text
    assert fakes.control.scaled == [("echo", request_.model_version or None, *bounds, True)]


async def test_a_field_that_was_never_sent_is_one_worker(grpc_api, fakes) -> None:
    """The bytes of TorchServe's own stubs: an int32 without presence."""
    fakes.add("echo")
    request = ScaleWorkerRequest.FromString(b"\x0a\x04echo")
    text = await message_of(grpc_api.management.ScaleWorker(request))
    assert text == "Processing worker updates..."
    assert fakes.control.scaled == [("echo", None, 1, 1, False)]


@pytest.mark.parametrize(
    ("limit", "token", "names", "next_token"),
    [
        (0, 0, ["a", "b", "c"], None),  # TorchServe lists nothing here
        (2, 0, ["a", "b"], "2"),
        (2, 2, ["c"], None),
        (-1, -5, ["a", "b", "c"], None),
        (101, 0, ["a", "b", "c"], None),
    ],
)
async def test_list(grpc_api, fakes, limit, token, names, next_token) -> None:
    for name in ("c", "a", "b"):
        fakes.add(name)
    request = ListModelsRequest(limit=limit, next_page_token=token)
    listed = json.loads(await message_of(grpc_api.management.ListModels(request)))
    assert [model["modelName"] for model in listed["models"]] == names
    assert listed.get("nextPageToken") == next_token


async def test_describe(grpc_api, fakes) -> None:
    fakes.add("echo", "1.0", batch_size=4)
    fakes.add("echo", "2.0")
    describe = grpc_api.management.DescribeModel

    async def described(**fields) -> list[dict]:
        text = await message_of(describe(DescribeModelRequest(model_name="echo", **fields)))
        assert text.startswith('[\n  {\n    "modelName": "echo",')
        assert text.endswith("]")
        return json.loads(text)

    (default,) = await described()
    assert (default["modelVersion"], default["batchSize"]) == ("1.0", 4)
    assert "customizedMetadata" not in default
    assert [model["modelVersion"] for model in await described(model_version="2.0")] == ["2.0"]
    both = await described(model_version="all", customized=True)
    assert [model["modelVersion"] for model in both] == ["1.0", "2.0"]


async def test_describe_asks_the_handler_where_it_is_wanted(grpc_api, fakes) -> None:
    fakes.add("echo", does=answers(b'{"made": "here"}'))
    request = DescribeModelRequest(model_name="echo", customized=True)
    (model,) = json.loads(await message_of(grpc_api.management.DescribeModel(request)))
    assert model["customizedMetadata"] == {"made": "here"}


async def test_set_default_and_unregister(grpc_api, fakes) -> None:
    fakes.add("echo", "1.0")
    fakes.add("echo", "2.0")
    text = await message_of(
        grpc_api.management.SetDefault(SetDefaultRequest(model_name="echo", model_version="2.0"))
    )
    assert text == 'Default version successfully updated for model "echo" to "2.0"'
    text = await message_of(
        grpc_api.management.UnregisterModel(
            UnregisterModelRequest(model_name="echo", model_version="1.0")
        )
    )
    assert text == 'Model "echo" unregistered'
    assert [model.id.version for model in fakes.registry.versions("echo")] == ["2.0"]


PACKAGE = "org.pytorch.serve"
MANAGEMENT_FAILURES = {
    errors.ModelNotFound("m"): (Code.NOT_FOUND, "archive.model.ModelNotFoundException"),
    errors.ModelVersionNotFound("m"): (
        Code.NOT_FOUND,
        "archive.model.ModelVersionNotFoundException",
    ),
    errors.InvalidArgument("m"): (Code.INVALID_ARGUMENT, "http.BadRequestException"),
    errors.InvalidModel("m"): (Code.INVALID_ARGUMENT, "archive.model.InvalidModelException"),
    errors.ModelSetupFailed("m"): (Code.INVALID_ARGUMENT, "archive.model.ModelException"),
    errors.ArchiveDownloadFailed("m"): (
        Code.INVALID_ARGUMENT,
        "archive.DownloadArchiveException",
    ),
    errors.ArchiveStorageFailed("m"): (Code.INTERNAL, "http.InternalServerException"),
    errors.WorkerStartFailed("m"): (Code.INTERNAL, "http.InternalServerException"),
    errors.WorkerStartFailed("m", out_of_memory=True): (
        Code.INTERNAL,
        "http.InternalServerException",
    ),
    errors.ModelConflict("m"): (Code.UNKNOWN, "http.ConflictStatusException"),
    errors.InvalidModelVersion("m"): (Code.UNKNOWN, "http.InvalidModelVersionException"),
    errors.DeadlineExceeded("m"): (Code.UNKNOWN, "http.RequestTimeoutException"),
}


@pytest.mark.parametrize(
    ("error", "told"),
    MANAGEMENT_FAILURES.items(),
    ids=[type(error).__name__ for error in MANAGEMENT_FAILURES],
)
async def test_management_failures(grpc_api, fakes, error, told) -> None:
    code, marker = told
    fakes.control.error = error
    call = grpc_api.management.RegisterModel(RegisterModelRequest(url="x.mar"))
    assert await failure_of(call) == (code, f"m\n{PACKAGE}.{marker}")


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        ("RegisterModel", RegisterModelRequest(), Code.INVALID_ARGUMENT, "Parameter url is"),
        ("UnregisterModel", UnregisterModelRequest(), Code.INVALID_ARGUMENT, "Parameter url is"),
        ("DescribeModel", DescribeModelRequest(), Code.NOT_FOUND, "Model not found: \n"),
        (
            "DescribeModel",
            DescribeModelRequest(model_name="zz", model_version="all"),
            Code.NOT_FOUND,
            "Model not found: zz\n",
        ),
        ("ScaleWorker", ScaleWorkerRequest(model_name="zz"), Code.NOT_FOUND, "Model not found"),
        (
            "ScaleWorker",
            ScaleWorkerRequest(model_name="echo", min_worker=2, max_worker=1),
            Code.INVALID_ARGUMENT,
            "max_worker cannot be less than min_worker.",
        ),
        (
            "SetDefault",
            SetDefaultRequest(model_name="echo"),
            Code.NOT_FOUND,
            "Model version  does not exist for model echo",
        ),
    ],
)
async def test_refusals(grpc_api, fakes, method, request_, code, text) -> None:
    fakes.add("echo")
    told = await failure_of(getattr(grpc_api.management, method)(request_))
    assert told[0] is code
    assert told[1].startswith(text)


@pytest.mark.parametrize("fakes", [{"is_model_api_enabled": False}], indirect=True)
async def test_models_cannot_be_changed_unless_it_is_allowed(grpc_api, fakes) -> None:
    fakes.add("echo")
    told = (
        Code.PERMISSION_DENIED,
        "Model API disabled\norg.pytorch.serve.archive.model.ModelException",
    )
    api = grpc_api.management
    assert await failure_of(api.RegisterModel(RegisterModelRequest(url="x.mar"))) == told
    assert await failure_of(api.UnregisterModel(UnregisterModelRequest(model_name="echo"))) == told
    assert fakes.control.registered == []
    assert len(fakes.registry) == 1
    # What changes no model is not concerned.
    await api.ScaleWorker(ScaleWorkerRequest(model_name="echo"))


async def test_a_handler_without_a_worker_cannot_describe_itself(grpc_api, fakes) -> None:
    fakes.add("echo").can_serve = False
    request = DescribeModelRequest(model_name="echo", customized=True)
    code, text = await failure_of(grpc_api.management.DescribeModel(request))
    assert code is Code.INTERNAL
    assert text.endswith("InternalServerException.()")
