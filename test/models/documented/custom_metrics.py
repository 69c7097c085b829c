"""All ways of the documentation to write metrics, and one that is bound in `initialize`."""

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes


class MetricsHandler:
    def initialize(self, context):
        self.context = context
        self.calls = context.metrics.add_metric_to_cache(
            metric_name="HandlerCalls",
            unit="count",
            dimension_names=["Level", "Kind"],
            metric_type=MetricTypes.COUNTER,
        )

    def handle(self, data, context):
        metrics = context.metrics
        metrics.add_counter("Requests", len(data))
        metrics.add_time("PreTime", 1.5, None, "ms", [Dimension("Step", "pre")])
        metrics.add_size("InputSize", sum(len(row.get("body") or b"") for row in data), None, "B")
        metrics.add_percent("Load", 50)
        metrics.add_metric("Depth", 3, "levels", metric_type=MetricTypes.GAUGE)
        metrics.add_error("Complaints", 1)
        self.calls.add_or_update(1, ["Model", "plain"])
        known = metrics.get_metric("HandlerCalls", MetricTypes.COUNTER)
        return [f"{known.metric_name} {known.unit} {known.dimension_names}"] * len(data)
