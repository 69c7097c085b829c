"""The public APIs. `DIALECTS` names them; one that is not served is not imported."""

from __future__ import annotations

DIALECTS = {
    "kserve_v1": "ts_frontend.dialects.kserve_v1:KServeV1Dialect",
    "torchserve": "ts_frontend.dialects.torchserve:TorchServeDialect",
}
