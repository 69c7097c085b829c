"""Measures of the server, its machine and its models: counted, logged, scraped."""

from ts_frontend.metrics.catalog import CatalogError, MetricCatalog, read_catalog
from ts_frontend.metrics.prometheus import CONTENT_TYPE
from ts_frontend.metrics.server_metrics import MetricsMode, ServerMetrics
from ts_frontend.metrics.system import SystemMetrics

__all__ = [
    "CONTENT_TYPE",
    "CatalogError",
    "MetricCatalog",
    "MetricsMode",
    "ServerMetrics",
    "SystemMetrics",
    "read_catalog",
]
