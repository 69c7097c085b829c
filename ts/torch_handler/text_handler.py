"""What handlers for text models share: vocabulary, cleaning of text, explanations."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from abc import ABC
from collections.abc import Iterable
from typing import Any

import torch

from ts.handler_utils.text_utils import get_tokenizer
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.torch_handler.explanations import captum_attr
from ts.torch_handler.model_files import is_weights_only, load_torch_file
from ts.utils.util import CLEANUP_REGEX

# The longest first, so that "can't've" is not read as "can't" and a rest.
_ALTERNATIVES = "|".join(sorted(map(re.escape, CONTRACTION_MAP), key=len, reverse=True))
CONTRACTIONS_PATTERN = re.compile(rf"(?<!\w)(?:{_ALTERNATIVES})(?!\w)", re.IGNORECASE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextHandler(BaseHandler, ABC):
    """A handler whose requests are texts, for a model with a vocabulary and an embedding."""

    _lig: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer = get_tokenizer("basic_english")
        self.input_text: str | None = None

    def initialize(self, context: Any) -> None:
        """Load the model and its vocabulary.

        The vocabulary is the archive's `source_vocab.pt`, or the file that the manifest's
        `sourceVocab` names (an older form). Raises Exception if there is none.
        """
        super().initialize(context)
        self._lig = None
        named = self.manifest["model"].get("sourceVocab")
        self.source_vocab = load_torch_file(
            named or self.get_source_vocab_path(context),
            weights_only=is_weights_only(self.model_yaml_config),
        )

    @property
    def lig(self) -> Any:
        """Captum's LayerIntegratedGradients for the model's `embedding`; made on first use."""
        if self._lig is None:
            layer = captum_attr().LayerIntegratedGradients
            self._lig = layer(self.model, self.model.embedding)
        return self._lig

    @lig.setter
    def lig(self, value: Any) -> None:
        self._lig = value

    def get_source_vocab_path(self, ctx: Any) -> str:
        """The path of the archive's vocabulary; raises Exception if the archive has none."""
        path = os.path.join(ctx.system_properties.get("model_dir"), "source_vocab.pt")
        if not os.path.isfile(path):
            raise Exception(f"Missing the source_vocab file: {path} is not in the archive")
        return path

    def _expand_contractions(self, text: str) -> str:
        """The text with contractions written out, and without the apostrophes that are left."""

        def expand(match: re.Match[str]) -> str:
            found = match.group()
            return found[0] + CONTRACTION_MAP[found.lower()][1:]

        return CONTRACTIONS_PATTERN.sub(expand, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        """The text in ASCII: accents are dropped, and characters that are not Latin too."""
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")

    def _remove_html_tags(self, text: str) -> str:
        """The text without tags and entities."""
        return CLEANUP_REGEX.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        """The text without ASCII punctuation."""
        return text.translate(_NO_PUNCTUATION)

    def _remove_puncutation(self, text: str) -> str:
        """`_remove_punctuation` under the name it had first; subclasses call it."""
        return self._remove_punctuation(text)

    def _tokenize(self, text: str) -> list[str]:
        """The text's tokens."""
        return self.tokenizer(text)

    def get_word_token(self, input_tokens: Iterable[str]) -> list[str]:
        """Tokens as words: without the mark that byte-level tokenizers put for a blank."""
        return [token.replace("\u0120", "") for token in input_tokens]

    def summarize_attributions(self, attributions: torch.Tensor) -> torch.Tensor:
        """Attributions as shares: softmax, divided by the norm of its sums over the last dimension.

        The shape stays. With an EmbeddingBag, whose output is one vector for the whole text, the
        shares are those of the vector's components and not of the words.
        """
        # The dimension torch.softmax chooses by itself; clients have seen its numbers.
        dim = 0 if attributions.ndim in (0, 1, 3) else 1
        shares = torch.softmax(attributions, dim=dim)
        return shares / torch.norm(shares.sum(dim=-1))
