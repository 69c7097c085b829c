"""Which queue a configuration asks for."""

from __future__ import annotations

from ts_frontend.core.batching import AdaptiveBatching, DynamicBatching
from ts_frontend.core.fair_order import Fairness
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.job import Job
from ts_frontend.core.model import Batching, ModelConfig, new_queue
from ts_frontend.core.sequence_queue import SequenceQueue


def test_the_default_is_torchserve_s() -> None:
    queue = new_queue(ModelConfig(batch_size=4, max_batch_delay_ms=50, job_queue_size=7))
    assert queue.policy == DynamicBatching(4, 0.05)
    assert queue.capacity == 7
    assert queue.times is None  # nobody has asked for predictions


def test_adaptive_batching_learns_from_the_start() -> None:
    config = ModelConfig(batch_size=8, batching=Batching.ADAPTIVE, target_latency_ms=250)
    queue = new_queue(config)
    assert isinstance(queue.policy, AdaptiveBatching)
    assert (queue.policy.size, queue.policy.target_s) == (8, 0.25)
    assert queue.times is queue.policy.times


def test_with_fairness_keys_take_turns() -> None:
    queue = new_queue(ModelConfig(fairness=Fairness(key_header=b"tenant")))
    jobs = [
        Job(InferenceRequest(b"", [(b"tenant", tenant)], []), 0.0) for tenant in (b"a", b"a", b"b")
    ]
    for job in jobs:
        queue.put(job)
    batches = [queue.next_batch(0.0) for _ in range(3)]
    assert batches == [[jobs[0]], [jobs[2]], [jobs[1]]]


def test_sequences_have_a_queue_of_their_own() -> None:
    queue = new_queue(ModelConfig(sequence_batching=True, sequence_max_idle_ms=1000))
    assert isinstance(queue, SequenceQueue)
