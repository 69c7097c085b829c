"""Text classification: the probability of each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ts.handler_utils.text_utils import ngrams_iterator
from ts.handler_utils.timer import timed
from ts.torch_handler.attribution_view import draw_words, render_words
from ts.torch_handler.base_handler import request_payload
from ts.torch_handler.explanations import (
    TEXT_METHODS,
    ExplainChoice,
    ExplainedBatch,
    ExplainingHandler,
    captum_attr,
    find_layer,
)
from ts.torch_handler.model_files import has_gradients
from ts.torch_handler.text_handler import TextHandler
from ts.utils.util import PredictionException, map_class_to_label


class TextClassifier(ExplainingHandler, TextHandler):
    """Classifies texts with a model called as `model(token ids, offsets)`.

    The ids of all texts are one vector, and `offsets` says where each text begins, which is what
    `torch.nn.EmbeddingBag` takes.
    """

    ngrams = 2
    _explain_methods = TEXT_METHODS
    _explain_formats = ("json", "html", "png")

    @timed
    def preprocess(self, data: list[Any]) -> tuple[Any, ...]:
        """Token ids and tokens of the text; for several texts the offsets as a third item.

        One request: (ids [tokens], its tokens). More: (ids of all, list of tokens per text,
        offsets [texts]).
        """
        tokens = [self._tokenize(self._clean(request_payload(row))) for row in data]
        ids = [self._token_ids(text_tokens) for text_tokens in tokens]
        if len(data) == 1:
            return ids[0], tokens[0]
        lengths = torch.tensor([0, *map(len, ids[:-1])], device=self.device)
        return torch.cat(ids), tokens, lengths.cumsum(0)

    def _clean(self, text: str | bytes | bytearray) -> str:
        if not isinstance(text, str):
            text = bytes(text).decode("utf-8")
        text = self._remove_html_tags(text).lower()
        text = self._remove_accented_characters(self._expand_contractions(text))
        return self._remove_punctuation(text)

    def _token_ids(self, tokens: list[str]) -> torch.Tensor:
        ids = [self._token_id(token) for token in ngrams_iterator(tokens, self.ngrams)]
        return torch.as_tensor(ids, dtype=torch.long, device=self.device)

    def _token_id(self, token: str) -> int:
        try:
            return self.source_vocab[token]
        except KeyError:
            # A plain dict has no default entry, and texts always hold words it has not seen.
            return self.source_vocab["<unk>"]

    @timed
    def inference(self, data: tuple[Any, ...], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The model's logits [texts, classes]."""
        return super().inference(data[0], self._offsets(data))

    def _offsets(self, data: tuple[Any, ...]) -> torch.Tensor:
        return data[2] if len(data) > 2 else torch.as_tensor([0], device=self.device)

    @timed
    def postprocess(self, data: torch.Tensor) -> list[dict[str, float]]:
        """Per text, label to probability, in the order of the classes."""
        return map_class_to_label(torch.softmax(data, dim=1).tolist(), self.mapping)

    def initialize(self, context: Any) -> None:
        """Load the model and its vocabulary.

        Raises ValueError for a `captum` section that cannot be followed.
        """
        super().initialize(context)
        self._set_up_explanations(self.model_yaml_config.get("captum"))

    def _explained_output(self, data_preprocess: tuple[Any, ...]) -> torch.Tensor:
        return self.model(data_preprocess[0], self._offsets(data_preprocess))

    def _explain_batch(
        self, data_preprocess: tuple[Any, ...], batch: ExplainedBatch, targets: Mapping[int, Any]
    ) -> None:
        if not has_gradients(self.model):
            raise PredictionException(
                "Explanations of texts need gradients, which this kind of model file does not give",
                501,
            )
        texts = self._texts(data_preprocess)
        for position, choice in list(batch.choices.items()):
            with batch.failing_alone(position):
                target = targets[position]
                batch.answer(position, self._explanation(*texts[position], target, choice))

    def get_insights(
        self, text_preprocess: tuple[Any, ...], _: Any, target: Any = 0
    ) -> list[dict[str, Any]]:
        """Per text, its words and their importance for the output `target`."""
        choice = ExplainChoice(target, self._settings().method, "json")
        return [
            self._explanation(ids, words, target, choice)
            for ids, words in self._texts(text_preprocess)
        ]

    _default_insights = get_insights

    def _texts(self, data: tuple[Any, ...]) -> list[tuple[torch.Tensor, list[str]]]:
        """Token ids and words of each text."""
        if len(data) == 2:
            return [data]
        starts = self._offsets(data).tolist()
        return list(zip(torch.tensor_split(data[0], starts[1:]), data[1], strict=True))

    def _explanation(
        self, ids: torch.Tensor, words: list[str], target: Any, choice: ExplainChoice
    ) -> Any:
        """The answer in the chosen form.

        Without a `captum` section, JSON has the numbers that TorchServe's clients know: with an
        EmbeddingBag they belong to the components of its vector. All else is one number per word.
        """
        is_default = choice.method == next(iter(TEXT_METHODS))
        if choice.format == "json" and is_default and not self._settings().is_given:
            return self._explain_text(ids, words, target)
        importances = self._word_importances(ids, words, target, choice.method)
        if choice.format == "json":
            return {"importances": importances, "words": words, "target": target}
        label = str(target)
        if self.mapping is not None:
            label = self.mapping.get(label, label)
        view = draw_words if choice.format == "png" else render_words
        return view(words, importances, f"What speaks for {label}")

    def _explain_text(self, ids: torch.Tensor, words: list[str], target: Any) -> dict[str, Any]:
        explainer = self.lig  # first, since its error says what to install
        attributions = explainer.attribute(
            ids,
            baselines=self._reference(ids),
            additional_forward_args=(torch.as_tensor([0], device=self.device),),
            target=target,
        )
        return {"importances": self.summarize_attributions(attributions).tolist(), "words": words}

    def _reference(self, ids: torch.Tensor) -> torch.Tensor:
        """As many of the token that stands for nothing, 0."""
        token_reference = captum_attr().TokenReferenceBase()
        return token_reference.generate_reference(ids.shape[0], self.device).reshape(ids.shape)

    def _word_importances(
        self, ids: torch.Tensor, words: list[str], target: Any, name: str
    ) -> list[float]:
        """The share of each word in the output, in the output's unit.

        Captum gives the (averaged) gradient at the embedding's output; a token's share is this
        times what its own vector adds to that output. What an n-gram adds belongs to its words in
        equal parts.
        """
        settings = self._settings()
        arguments: dict[str, Any] = {}
        if name == settings.method:
            arguments.update(settings.arguments)
        uses_reference = name == "layer_integrated_gradients"
        if uses_reference:
            arguments["baselines"] = self._reference(ids)
        layer = self.model.embedding
        if settings.layer is not None:
            layer = find_layer(self.model, settings.layer)
        make = getattr(captum_attr(), TEXT_METHODS[name].captum_class)
        gradients = make(self.model, layer, multiply_by_inputs=False).attribute(
            ids,
            additional_forward_args=(torch.as_tensor([0], device=self.device),),
            target=target,
            **arguments,
        )
        vectors = layer.weight.detach()
        added = vectors[ids] - (vectors[0] if uses_reference else 0)
        shares = _bag_shares(layer, added, vectors[ids]) * gradients.reshape(-1, added.shape[-1])
        return _spread(shares.sum(dim=1).tolist(), len(words), self.ngrams)


def _bag_shares(layer: Any, added: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """What each token's vector adds to the output of the layer, [tokens, components]."""
    mode = getattr(layer, "mode", "none")  # an Embedding has none: each token has its own output
    if mode == "mean":
        return added / len(added)
    if mode == "max":
        winners = torch.zeros_like(added).scatter_(0, vectors.argmax(dim=0, keepdim=True), 1.0)
        return added * winners
    return added


def _spread(shares: list[float], word_count: int, ngrams: int) -> list[float]:
    """Per word, its own share and its part of those of the n-grams it is in.

    shares: of the tokens in the order of `ngrams_iterator`.
    Raises PredictionException if there is another number of tokens.
    """
    importances = [0.0] * word_count
    spans = [
        range(start, start + length)
        for length in range(1, ngrams + 1)
        for start in range(word_count - length + 1)
    ]
    if len(shares) == word_count:
        spans = spans[:word_count]
    if len(shares) != len(spans):
        raise PredictionException(
            f"{len(shares)} tokens do not match the n-grams of {word_count} words; a handler with "
            "tokens of its own needs a get_insights of its own",
            501,
        )
    for share, span in zip(shares, spans, strict=True):
        for index in span:
            importances[index] += share / len(span)
    return importances
