"""Metrics that a handler emits: one log line per value, added up by the frontend.

Handlers use the object behind `context.metrics`
(`ts.metrics.metric_cache_yaml_impl.MetricsCacheYamlImpl`). Importing this package imports neither
torch nor psutil, because every worker pays for it at start.
"""
