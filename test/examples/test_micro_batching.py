"""examples/micro_batching: the digits through the pipeline."""

from collections.abc import Callable
from pathlib import Path


def test_the_answers_come_in_the_order_of_the_requests(
    examples: Path, load_example: Callable
) -> None:
    loaded = load_example("micro_batching")
    folder = examples / "image_classifier" / "mnist" / "test_data"
    rows = [{"body": bytearray((folder / f"{digit}.png").read_bytes())} for digit in range(10)]
    pipeline = loaded.service._entry_point
    assert (pipeline.micro_batch_size, pipeline.parallelism["preprocess"]) == (4, 2)
    try:
        answers = loaded.handle(rows)
    finally:
        pipeline.shutdown()
    assert [max(answer, key=answer.__getitem__) for answer in answers] == list("0123456789")
