"""Pictures of words: they hold every word in order, and stay small whatever the text."""

import io

import pytest
from PIL import Image

from ts.torch_handler.attribution_view import draw_words


def drawn(words, importances=None, title="What speaks for it"):
    if importances is None:
        importances = [0.0] * len(words)
    return Image.open(io.BytesIO(draw_words(words, importances, title)))


def test_longer_texts_go_on_below():
    short, long = drawn(["word"] * 3), drawn(["word"] * 60)
    assert short.width == long.width
    assert long.height > short.height


@pytest.mark.parametrize("words", [["word"] * 100_000, ["w" * 1_000_000], ["w" * 50] * 5_000])
def test_a_picture_has_an_end(words):
    image = drawn(words)
    assert image.width <= 1000
    assert image.height <= 10_000


def test_no_words_are_no_error():
    assert drawn([]).height > 0


def test_the_strongest_word_has_the_strongest_colour():
    def is_red(colour):
        return colour[0] - colour[2] > 20

    weak = drawn(["same"], [1.0]).convert("RGB")
    both = drawn(["same", "same"], [1.0, 0.1]).convert("RGB")
    reds = [
        [is_red(image.getpixel((x, y))) for x in range(image.width) for y in range(image.height)]
        for image in (weak, both)
    ]
    # The second word's tenth of the colour is too pale to count.
    assert sum(reds[0]) == sum(reds[1]) > 0


@pytest.mark.parametrize("text", ["gr\u00fc\u00df", "\u4f60\u597d", "\x00\n\t", "\ud83d"])
def test_any_text_can_be_drawn(text):
    assert drawn([text], [1.0], title=text).height > 0
