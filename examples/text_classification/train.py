"""Trains the text example from the sentences of corpus.py and writes its files: a few seconds."""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from corpus import HELD_OUT, TOPIC_NAMES, training_sentences
from topic_model import VOCABULARY_SIZE, TopicModel
from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 0
UNKNOWN = "<unk>"  # words of a request that training never saw


def tokens_of(sentence: str) -> list[str]:
    """Words and neighbouring pairs, as the handler makes them from a text without punctuation."""
    words = sentence.lower().split()
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def make_vocabulary(sentences: list[str]) -> dict[str, int]:
    """token -> row of the embedding. A plain dict, so that it loads without running any code."""
    tokens = sorted({token for sentence in sentences for token in tokens_of(sentence)})
    if len(tokens) >= VOCABULARY_SIZE:
        raise SystemExit(f"{len(tokens)} tokens: raise VOCABULARY_SIZE of topic_model.py")
    return {UNKNOWN: 0} | {token: row for row, token in enumerate(tokens, start=1)}


def encode(sentence: str, vocabulary: dict[str, int]) -> torch.Tensor:
    return torch.tensor([vocabulary.get(token, 0) for token in tokens_of(sentence)])


def train(texts: list[torch.Tensor], topics: torch.Tensor, epochs: int) -> TopicModel:
    model = TopicModel().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(epochs):
        for chosen in torch.randperm(len(texts)).split(32):
            # Every tenth token is hidden, which teaches the row of unknown words.
            batch = [texts[i].masked_fill(torch.rand(len(texts[i])) < 0.1, 0) for i in chosen]
            starts = torch.tensor([0] + [len(text) for text in batch[:-1]]).cumsum(0)
            optimizer.zero_grad()
            loss_of(model(torch.cat(batch), starts), topics[chosen]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the files written")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    sentences = training_sentences(SEED, per_template=60)
    vocabulary = make_vocabulary([sentence for _, sentence in sentences])
    texts = [encode(sentence, vocabulary) for _, sentence in sentences]
    topics = torch.tensor([TOPIC_NAMES.index(topic) for topic, _ in sentences])
    model = train(texts, topics, args.epochs)

    right = 0
    with torch.inference_mode():
        for topic, sentence in HELD_OUT:
            answer = model(encode(sentence, vocabulary), torch.tensor([0])).argmax(1).item()
            right += TOPIC_NAMES[int(answer)] == topic
    print(f"sentences: {len(sentences)}, tokens: {len(vocabulary)}")
    print(f"held-out sentences right: {right}/{len(HELD_OUT)}")

    torch.save(model.state_dict(), args.output / "topic_model.pt")
    torch.save(vocabulary, args.output / "source_vocab.pt")
    labels = {str(index): name for index, name in enumerate(TOPIC_NAMES)}
    (args.output / "index_to_name.json").write_text(json.dumps(labels, indent=2) + "\n")


if __name__ == "__main__":
    main()
