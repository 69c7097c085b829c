"""Text classification: the probability of each label."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.text_utils import ngrams_iterator
from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import request_payload
from ts.torch_handler.text_handler import TextHandler
from ts.utils.util import map_class_to_label


class TextClassifier(TextHandler):
    """Classifies texts with a model called as `model(token ids, offsets)`.

    The ids of all texts are one vector, and `offsets` says where each text begins, which is what
    `torch.nn.EmbeddingBag` takes.
    """

    ngrams = 2

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

    def get_insights(
        self, text_preprocess: tuple[Any, ...], _: Any, target: Any = 0
    ) -> list[dict[str, Any]]:
        """Per text, its words and their importance for the output `target`."""
        ids, tokens = text_preprocess[0], text_preprocess[1]
        if len(text_preprocess) == 2:
            return [self._explain_text(ids, tokens, target)]
        starts = self._offsets(text_preprocess).tolist()
        texts = torch.tensor_split(ids, starts[1:])
        return [
            self._explain_text(text_ids, words, target)
            for text_ids, words in zip(texts, tokens, strict=True)
        ]

    def _explain_text(self, ids: torch.Tensor, words: list[str], target: Any) -> dict[str, Any]:
        explainer = self.lig  # first, since its error says what to install
        from captum.attr import TokenReferenceBase

        baseline = TokenReferenceBase().generate_reference(ids.shape[0], self.device)
        attributions = explainer.attribute(
            ids,
            baselines=baseline.reshape(ids.shape),
            additional_forward_args=(torch.as_tensor([0], device=self.device),),
            target=target,
        )
        return {"importances": self.summarize_attributions(attributions).tolist(), "words": words}
