"""Everything is declared in pyproject.toml, but for the compiled build.

`TS_COMPILE=1` has mypyc (of the mypy project) translate the modules that every request runs through
to C. They are ordinary Python, checked by mypy as ever, and run the same without it; a worker on
another Python finds the sources beside the libraries and takes those. Wants mypy, the types of the
dependencies and a C compiler in the environment, so pip is to be told `--no-build-isolation`.
docs/performance.md has the figures; `scripts/compile` does it for a working tree.
"""

import os

from setuptools import setup

# What mypyc 2.4 cannot take or gets wrong is not in here: ctypes (workers/connections/
# shared_memory.py), subclasses of named tuples (core/inference.py), exceptions with attributes of
# their class (core/errors.py), `super()` in subclasses of other libraries' classes (dialects/
# torchserve/convert.py), whole numbers in variables of type float (metrics/server_metrics.py),
# classes that others subclass (workers/pool.py, http/router.py), data classes with slots,
# constructors that pass on `*args`. What is known of an attribute's type must not be outdated by a
# call (HttpConnection.has_place). Subclasses of classes in here have to be in here too.
COMPILED = [
    "frontend/ts_frontend/core/admission.py",
    "frontend/ts_frontend/core/batch_queue.py",
    "frontend/ts_frontend/core/batch_times.py",
    "frontend/ts_frontend/core/batching.py",
    "frontend/ts_frontend/core/clock.py",
    "frontend/ts_frontend/core/deadline.py",
    "frontend/ts_frontend/core/fair_order.py",
    "frontend/ts_frontend/core/job.py",
    "frontend/ts_frontend/core/response_stream.py",
    "frontend/ts_frontend/core/sequence_queue.py",
    "frontend/ts_frontend/data_plane.py",
    "frontend/ts_frontend/dialects/inference_http.py",
    "frontend/ts_frontend/dialects/torchserve/routes.py",
    "frontend/ts_frontend/http/connection.py",
    "frontend/ts_frontend/http/request.py",
    "frontend/ts_frontend/workers/batch_worker.py",
    "frontend/ts_frontend/workers/concurrent_worker.py",
    "frontend/ts_frontend/workers/connections/base.py",
    "frontend/ts_frontend/workers/connections/ranks.py",
    "frontend/ts_frontend/workers/connections/tcp.py",
    "frontend/ts_frontend/workers/connections/unix.py",
    "frontend/ts_frontend/workers/continuous_worker.py",
    "frontend/ts_frontend/workers/session.py",
    "frontend/ts_frontend/workers/worker.py",
    "ts/protocol/frames.py",
    "ts/protocol/messages.py",
]


def extensions() -> list:
    if os.environ.get("TS_COMPILE", "0") in ("", "0"):
        return []
    from mypyc.build import mypycify

    # One library for all of them, so that they call each other without a look-up. Its name is not
    # made from its contents, so that a new build takes the place of the last one.
    return mypycify(
        ["--config-file=pyproject.toml", *COMPILED], group_name="ts.compiled", debug_level="0"
    )


setup(ext_modules=extensions())
