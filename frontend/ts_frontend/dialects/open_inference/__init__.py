"""The Open Inference Protocol (KServe v2), REST and gRPC; served with
`ts_open_inference_protocol`.

With the default envelope (`ts.protocol.tensors`) a worker gets the protocol's JSON in the part
`body` and each tensor that came as bytes in a part of its own. With one of TorchServe's, as its
workers have always got it, every request is JSON in that one part: a REST body without binary
tensors is that already and goes on unchanged once it has been checked; binary and gRPC tensors
become JSON here. The answer is what the envelope made.
"""

from __future__ import annotations

from ts_frontend.dialects.base import GrpcServices, HttpRoutes, Planes


class OpenInferenceDialect:
    name = "open_inference"

    def http_routes(self, planes: Planes) -> HttpRoutes:
        if not planes.is_open_inference_enabled:
            return HttpRoutes()
        from ts_frontend.dialects.open_inference.routes import routes

        return routes(planes)

    def grpc_services(self, planes: Planes) -> GrpcServices:
        if not planes.is_open_inference_enabled:
            return GrpcServices()
        from ts_frontend.dialects.open_inference.servicer import services

        return services(planes)
