"""The Open Inference Protocol (KServe v2), REST and gRPC; served with
`ts_open_inference_protocol`.

On the way to the worker every request is the protocol's JSON in one part named `body`, as
TorchServe's workers have always got it: `service_envelope=kservev2` unpacks it there. A REST body
without binary tensors is that JSON already and goes on unchanged once it has been checked; binary
and gRPC tensors become JSON here. The answer is the JSON that the envelope made.
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
