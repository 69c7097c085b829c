import sys

import pytest
import torch
from captum.attr import LayerIntegratedGradients, TokenReferenceBase

from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.torch_handler.text_classifier import TextClassifier

WORDS = ["<unk>", "good", "bad", "film", "good film", "not"]

EAGER = """
import torch

class Opinion(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.EmbeddingBag(6, 4, mode="mean")
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, text, offsets):
        return self.fc(self.embedding(text, offsets))
"""


@pytest.fixture
def vocabulary():
    return {word: index for index, word in enumerate(WORDS)}


@pytest.fixture
def classifier(tmp_path, make_context, save_mapping, vocabulary):
    """A loaded classifier of opinions, and its context."""
    (tmp_path / "opinion.py").write_text(EAGER)
    torch.save(vocabulary, tmp_path / "source_vocab.pt")
    save_mapping({"0": "negative", "1": "positive"})
    context = make_context(modelFile="opinion.py")
    handler = TextClassifier()
    handler.initialize(context)
    return handler, context


def test_a_text_is_classified(classifier):
    handler, context = classifier
    (answer,) = handler.handle([{"data": bytearray(b"A <b>Good</b> film!")}], context)
    # Words, then pairs: a, good, film, "a good", "good film".
    ids = torch.tensor([0, 1, 3, 0, 4])
    expected = torch.softmax(handler.model(ids, torch.tensor([0])), dim=1)[0]
    assert list(answer) == ["negative", "positive"]
    assert list(answer.values()) == pytest.approx(expected.tolist())


def test_preprocessing_gives_ids_and_words(classifier):
    handler, _ = classifier
    ids, words = handler.preprocess([{"body": "It's NOT b\u00e1d &amp; good film."}])
    assert words == ["it", "is", "not", "bad", "good", "film"]
    assert ids.tolist()[2:6] == [5, 2, 1, 3]
    assert len(ids) == 11


def test_a_batch_gives_the_answers_of_its_texts(classifier):
    handler, context = classifier
    texts = ["good film", "bad", "a film not good"]
    single = [handler.handle([{"data": text}], context)[0] for text in texts]
    context.start_batch({}, {}, {})
    batch = handler.handle([{"data": text} for text in texts], context)
    assert len(batch) == 3
    for one, other in zip(single, batch, strict=True):
        assert one == pytest.approx(other)


def test_an_explanation_is_captums(classifier):
    handler, context = classifier
    context.start_batch({"explain": "True"})
    (answer,) = handler.handle([{"data": "good film", "target": 1}], context)
    ids, _ = handler.preprocess([{"data": "good film"}])
    baseline = TokenReferenceBase().generate_reference(3, torch.device("cpu")).squeeze(0)
    attributions = LayerIntegratedGradients(handler.model, handler.model.embedding).attribute(
        ids, baseline, additional_forward_args=(torch.tensor([0]),), target=1
    )
    assert answer["words"] == ["good", "film"]
    assert answer["importances"] == handler.summarize_attributions(attributions).tolist()
    assert torch.tensor(answer["importances"]).shape == (1, 4)


def test_a_batch_is_explained_text_by_text(classifier):
    handler, context = classifier
    context.start_batch({"explain": "True"}, {"explain": "True"})
    answers = handler.handle([{"data": "good film"}, {"data": "bad"}], context)
    context.start_batch({"explain": "True"})
    assert answers == [
        handler.handle([{"data": text}], context)[0] for text in ("good film", "bad")
    ]


def test_captum_is_imported_for_the_first_explanation(classifier, monkeypatch):
    handler, _ = classifier
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RuntimeError, match="pip install captum"):
        handler.get_insights(handler.preprocess([{"data": "good"}]), None, 0)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((1, 4), 0.0321),
        ((4,), 0.0321),
        ((3, 4), 0.0321 / 3**0.5),
        ((1, 3, 4), 1 / (4 * 3**0.5)),
    ],
)
def test_attributions_are_summarized_in_their_shape(shape, first):
    attributions = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    summary = TextClassifier().summarize_attributions(attributions)
    assert summary.shape == shape
    assert summary.flatten()[0].item() == pytest.approx(first, abs=1e-4)


def test_a_missing_vocabulary_is_refused(tmp_path, make_context):
    (tmp_path / "opinion.py").write_text(EAGER)
    with pytest.raises(Exception, match="source_vocab"):
        TextClassifier().initialize(make_context(modelFile="opinion.py"))


def test_the_manifest_may_name_the_vocabulary(tmp_path, make_context, vocabulary, monkeypatch):
    (tmp_path / "opinion.py").write_text(EAGER)
    torch.save(vocabulary, tmp_path / "words.pt")
    monkeypatch.chdir(tmp_path)  # a worker's working directory is the model directory
    handler = TextClassifier()
    handler.initialize(make_context(modelFile="opinion.py", sourceVocab="words.pt"))
    assert handler.source_vocab == vocabulary


@pytest.mark.parametrize(
    ("method", "text", "result"),
    [
        ("_expand_contractions", "I can't, it's", "I cannot, it is"),
        ("_expand_contractions", "Y'all don't DON'T", "You all do not Do not"),
        ("_expand_contractions", "he'd've shouldn't've", "he would have should not have"),
        ("_expand_contractions", "Bob's 'word' gait's", "Bobs word gaits"),
        ("_remove_accented_characters", "caf\u00e9 na\u00efve \u00df", "cafe naive "),
        ("_remove_html_tags", "<b>hi</b> &amp; x<br/>", "hi  x"),
        ("_remove_punctuation", "a,b! c-d x_y", "ab cd xy"),
        ("_remove_puncutation", "a,b!", "ab"),
        ("_tokenize", "Hello, you", ["hello", ",", "you"]),
        ("get_word_token", ["\u0120a", "b"], ["a", "b"]),
    ],
)
def test_cleaning(method, text, result):
    assert getattr(TextClassifier(), method)(text) == result


def test_contractions_are_lower_case_and_expand_to_words():
    assert len(CONTRACTION_MAP) > 100
    for contraction, words in CONTRACTION_MAP.items():
        assert contraction == contraction.lower()
        assert "'" in contraction
        assert "'" not in words
        assert words
