"""What a model's own file changes of the server's settings."""

from __future__ import annotations

import pytest

from ts_frontend.archive.model_config import ModelFileConfig
from ts_frontend.control_plane import Defaults, _with_file
from ts_frontend.core.model import ModelConfig, WorkerCare

SERVER = WorkerCare(death_retries=3, max_requests=1000, max_memory_bytes=1 << 30)


def care_of(**stated: object) -> WorkerCare:
    file = ModelFileConfig(**stated)
    return _with_file(ModelConfig(care=SERVER), file, Defaults()).care


def test_what_a_file_does_not_say_is_the_servers() -> None:
    assert care_of() == SERVER


def test_what_a_file_says_counts_also_where_it_is_nothing() -> None:
    assert care_of(
        idempotent=False,
        worker_death_retries=0,
        isolate_batch_failures=False,
        ping_timeout_s=9,
        cancel_grace_s=5,
        max_worker_requests=0,
        max_worker_age_s=60,
        max_worker_memory_mb=2048,
    ) == WorkerCare(
        is_idempotent=False,
        death_retries=0,
        is_isolating=False,
        ping_timeout_s=9,
        cancel_grace_s=5,
        max_requests=0,
        max_age_s=60,
        max_memory_bytes=2 << 30,
    )


@pytest.mark.parametrize(
    ("stated", "sequences"),
    [
        ({}, 4),
        ({"min_workers": 2}, 8),
        ({"max_num_sequence": 3, "min_workers": 2}, 3),
    ],
)
def test_unless_a_file_says_how_many_sequences_they_fill_the_batches(
    stated: dict[str, int], sequences: int
) -> None:
    config, file = ModelConfig(batch_size=4), ModelFileConfig(sequence_batching=True, **stated)
    assert _with_file(config, file, Defaults()).max_num_sequence == sequences
    as_torchserve = _with_file(config, file, Defaults(is_torchserve_compatible=True))
    assert as_torchserve.max_num_sequence == stated.get("max_num_sequence", 1)
