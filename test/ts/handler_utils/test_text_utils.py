import pytest

from ts.handler_utils.text_utils import get_tokenizer, ngrams_iterator


@pytest.mark.parametrize(
    ("tokens", "ngrams", "result"),
    [
        (["a", "b", "c"], 1, ["a", "b", "c"]),
        (["a", "b", "c"], 2, ["a", "b", "c", "a b", "b c"]),
        (["a", "b", "c"], 3, ["a", "b", "c", "a b", "b c", "a b c"]),
        (["a"], 3, ["a"]),
        ([], 2, []),
    ],
)
def test_ngrams(tokens, ngrams, result):
    assert list(ngrams_iterator(tokens, ngrams)) == result


def test_without_a_name_text_is_split_at_white_space():
    assert get_tokenizer(None)("A b\n c") == ["A", "b", "c"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('Hello, "World"!', ["hello", ",", "world", "!"]),
        ("It's (fine).", ["it", "'", "s", "(", "fine", ")", "."]),
        ("a-b; c:d<br />e? f\n\tG", ["a-b", "c", "d", "e", "?", "f", "g"]),
        ("[x]", ["[x]"]),
        ("", []),
    ],
)
def test_basic_english(text, tokens):
    assert get_tokenizer("basic_english")(text) == tokens


def test_other_tokenizers_are_unknown():
    assert get_tokenizer("spacy", language="de") is None
