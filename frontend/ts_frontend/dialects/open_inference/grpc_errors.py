"""The protocol's gRPC codes: the standard ones, under both of its names. TorchServe answers
INTERNAL to most.
"""

from __future__ import annotations

from ts_frontend.core.errors import ModelError, ServingError
from ts_frontend.dialects.inference_grpc import CODE_OF_KIND, status_of_http
from ts_frontend.grpc.service import Status


def status_of(error: ServingError) -> Status:
    if isinstance(error, ModelError):
        return Status(status_of_http(error.code), error.message)
    return Status(CODE_OF_KIND[error.kind], error.message)
