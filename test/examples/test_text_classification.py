"""examples/text_classification: the committed model through the default text handler."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def folder(examples: Path) -> Path:
    return examples / "text_classification"


@pytest.fixture
def topics(load_example: Callable):
    return load_example("text_classification")


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


def test_every_word_gets_its_share(topics) -> None:
    pytest.importorskip("captum")
    row = {"body": "The goalkeeper saved a shot"}
    (explanation,) = topics.handle([row], {"explain": "True"})
    assert explanation["words"] == ["the", "goalkeeper", "saved", "a", "shot"]
    assert explanation["target"] == 2  # sport
    shares = dict(zip(explanation["words"], explanation["importances"], strict=True))
    assert shares["goalkeeper"] > shares["a"]
    (page,) = topics.handle([row], {"explain": "True", "Accept": "text/html"})
    assert "goalkeeper</span>" in page
