"""When to ask again, as gRPC clients read it.

`grpc-retry-pushback-ms` is what the retry policy of gRPC's own clients obeys; the details in
`grpc-status-details-bin` (google.rpc.RetryInfo, ErrorInfo) are for those that read them.
"""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ts_frontend.core.errors import ServingError

DOMAIN = "torchserve"  # of the reasons


def retry_metadata(
    error: ServingError, code: grpc.StatusCode, text: str
) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata of a call that was refused and may be tried again; none for others."""
    if error.retry_after_s is None:
        return ()
    wait_ms = max(1, round(error.retry_after_s * 1000))
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(wait_ms)
    details = []
    for message in (info, ErrorInfo(reason=error.reason, domain=DOMAIN)):
        detail = AnyMessage()
        detail.Pack(message)
        details.append(detail)
    status = RpcStatus(code=code.value[0], message=text, details=details)
    return (
        ("grpc-retry-pushback-ms", str(wait_ms)),
        ("grpc-status-details-bin", status.SerializeToString()),
    )
