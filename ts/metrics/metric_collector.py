"""Print the host's metrics and the memory of given processes, for the frontend to read.

    python ts/metrics/metric_collector.py --gpu <number of GPUs>   < one line of pids

Output: one line per metric, an empty line, one `<pid>:<bytes>` line per pid.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys


def main() -> None:
    """Collect once."""
    parser = argparse.ArgumentParser(description="Collects system metrics.")
    parser.add_argument("--gpu", type=int, default=0, help="number of GPUs to report on")
    num_of_gpu = parser.parse_args().gpu

    from ts.metrics import system_metrics
    from ts.metrics.process_memory_metric import check_process_mem_usage

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    system_metrics.collect_all(system_metrics, num_of_gpu)
    check_process_mem_usage(sys.stdin)


if __name__ == "__main__":
    # Run as a script, the first entry of sys.path is this folder; `ts` lies two above.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main()
