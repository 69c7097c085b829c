"""examples/text_classification: the committed model through the default text handler."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def folder(examples: Path) -> Path:
    return examples / "text_classification"


@pytest.fixture
def topics(folder: Path, load_example: Callable):
    return load_example(
        "topics",
        handler="text_classifier",
        model_file=str(folder / "topic_model.py"),
        serialized_file=str(folder / "topic_model.pt"),
        extra_files=f"{folder / 'index_to_name.json'},{folder / 'source_vocab.pt'}",
        config_file=str(folder / "model-config.yaml"),
    )


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("The striker scored in the last minute of the match!", "sport"),
        ("Bake the bread in a very hot oven.", "cooking"),
        ("Heavy rain and thunder along the coast", "weather"),
        ("You need a visa and a passport for this island", "travel"),
    ],
)
def test_a_sentence_gets_its_topic(topics, text: str, topic: str) -> None:
    (answer,) = topics.handle([{"body": text}])
    assert max(answer, key=answer.__getitem__) == topic
    assert sum(answer.values()) == pytest.approx(1, abs=1e-3)


def test_bytes_are_taken_as_text(topics) -> None:
    (answer,) = topics.handle([{"data": bytearray(b"fry the onions with butter")}])
    assert max(answer, key=answer.__getitem__) == "cooking"


def test_words_that_training_never_saw_are_no_error(topics) -> None:
    (answer,) = topics.handle([{"body": "zyzzyva quokka"}])
    assert set(answer) == {"weather", "cooking", "sport", "travel"}


def test_the_vocabulary_loads_without_running_code(folder: Path) -> None:
    vocabulary = torch.load(folder / "source_vocab.pt", weights_only=True)
    assert vocabulary["<unk>"] == 0
