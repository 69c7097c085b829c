"""The public APIs. `DIALECTS` names them; one that is not served is not imported."""

from __future__ import annotations

DIALECTS = {
    # Before torchserve, which serves `/v2/models/{m}/infer` too, where this one is switched off.
    "open_inference": "ts_frontend.dialects.open_inference:OpenInferenceDialect",
    "kserve_v1": "ts_frontend.dialects.kserve_v1:KServeV1Dialect",
    "torchserve": "ts_frontend.dialects.torchserve:TorchServeDialect",
}
