"""When to come again, in trailing metadata."""

from __future__ import annotations

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ts_frontend.core.errors import QueueFull
from ts_frontend.grpc.retry import retry_metadata


def test_a_refusal_says_when_and_why() -> None:
    error = QueueFull("full")
    error.retry_after_s = 2.5
    metadata = dict(retry_metadata(error, grpc.StatusCode.UNAVAILABLE, "full"))
    assert metadata["grpc-retry-pushback-ms"] == "2500"
    status = RpcStatus.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (14, "full")
    retry, info = RetryInfo(), ErrorInfo()
    assert status.details[0].Unpack(retry)
    assert status.details[1].Unpack(info)
    assert retry.retry_delay.ToMilliseconds() == 2500
    assert (info.reason, info.domain) == ("queue_full", "torchserve")


def test_other_failures_say_nothing_of_it() -> None:
    assert retry_metadata(QueueFull("full"), grpc.StatusCode.UNAVAILABLE, "full") == ()
