"""A metric whose values go out as log lines.

Nothing is added up here: each value is one line on stdout, and the frontend, which reads the
worker's stdout, keeps the totals. The lines are written for every batch, so the only work done per
value is formatting it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils import worker_output

if TYPE_CHECKING:
    from ts.metrics.dimension import Dimension

logger = logging.getLogger(__name__)

HOSTNAME = socket.gethostname()  # asked once: a system call per line would be pure cost


class CachingMetric(MetricAbstract):
    """A metric that writes one `[METRICS]` line per value."""

    # The defaults for lists are tuples: TorchServe's `[]` defaults are shared between calls.

    def add_or_update(
        self, value: float, dimension_values: Sequence[Any] = (), request_id: str = ""
    ) -> None:
        """Write the line for one value.

        A value that does not fit the definition (negative counter, wrong number of dimension
        values) writes an error line instead and raises nothing: a metric must not fail a request.

        Raises TypeError for a counter value that is not a number.
        """
        names = self.dimension_names
        if len(names) != len(dimension_values):
            self._report_failure(
                value,
                "",
                f"Dimension values: {list(dimension_values)} should correspond to "
                f"Dimension names: {names}",
            )
            return
        dimensions = ",".join(
            [f"{name}:{text}" for name, text in zip(names, dimension_values)]  # noqa: B905 equal
        )
        if self.metric_type is MetricTypes.COUNTER and value < 0:
            reason = "Counter metric update value cannot be negative"
            self._report_failure(value, dimensions, reason)
            return
        self.emit_metrics(request_id, value, dimensions)

    def update(
        self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()
    ) -> None:
        """Write the line for one value under other dimensions, which replace the defined ones."""
        logger.warning("Overriding existing dimensions")
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.add_or_update(value, [dimension.value for dimension in dimensions], request_id)

    def emit_metrics(self, request_id: str, value: float, dimension_string: str) -> None:
        """Write the line, unchecked.

        dimension_string: `name:value` pairs joined by `,`.
        """
        if not logger.isEnabledFor(logging.INFO):
            return
        end = f",{request_id}" if request_id else ""
        worker_output.write_metrics_line(
            f"[METRICS]{self.metric_name}.{self.unit}:{value}|#{dimension_string}"
            f"|#type:{self.metric_type._name_}|#hostname:{HOSTNAME},{int(time.time())}{end}"
        )

    def _report_failure(self, value: float, dimensions: str, reason: str) -> None:
        logger.error(
            f"[METRICS]Failed to update metric with name:{self.metric_name} and "
            f"dimensions: {dimensions} with value: {value}: {reason}"
        )
