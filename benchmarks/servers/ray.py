"""Ray Serve: an HTTP proxy and replicas as actors of a one-machine Ray cluster."""

from __future__ import annotations

from benchmarks.servers.base import NETWORKS, AppServer


class RayServe(AppServer):
    app = "serve_ray.py"
    distribution = "ray"
    requirements = ("ray[serve]", *NETWORKS)
    variables = {  # noqa: RUF012  (ClassVar of the base)
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    first_warmup_s = 5.0
