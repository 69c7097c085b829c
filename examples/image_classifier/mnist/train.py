"""Trains the digits network and writes its weights and the test images.

Data: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set, 1,797
real 8x8 digits written by 13 people. They are enlarged to the 28x28 that MNIST clients send.

A fifth of the images, drawn per digit with a fixed seed, is held out: the accuracy printed at the
end and every file of test_data/ come from that part. The first held-out images of each digit are
written, right or wrong; none is chosen for its answer. Both parts hold digits of the same people,
so the figure says nothing about a stranger's hand.

    python examples/image_classifier/mnist/train.py        # about ten seconds on two cores
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mnist import Net
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 0
PIXEL_MEAN, PIXEL_STD = 0.309, 0.349  # the two of mnist_handler.py
IMAGES_PER_DIGIT = 4  # <digit>.png, then <digit>_1.png to <digit>_3.png


def enlarge(digit: np.ndarray) -> Image.Image:
    """The 28x28 picture of one 8x8 digit whose pixels run from 0 to 16."""
    pixels = (digit * (255 / 16)).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """[n, 1, 28, 28] float32 in 0..1, not yet normalised."""
    return torch.stack([torch.from_numpy(np.array(p)) for p in pictures])[:, None].float() / 255


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch moved by up to two pixels each way: a client rarely centres a digit exactly."""
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(images, (dy, dx), dims=(2, 3))


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Net:
    generator = torch.Generator().manual_seed(SEED)
    model = Net().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            loss_of(model(shifted(images[chosen], generator)), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def write_test_images(pictures: list[Image.Image], labels: list[int], folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    seen = [0] * 10
    for picture, label in zip(pictures, labels, strict=True):
        if seen[label] < IMAGES_PER_DIGIT:
            name = f"{label}_{seen[label]}.png" if seen[label] else f"{label}.png"
            picture.save(folder / name, optimize=True)
            seen[label] += 1
    return sum(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the files written")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--torchscript", action="store_true", help="also write digits_cnn_ts.pt")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    pictures = [enlarge(digit) for digit in digits.images]
    indices = np.arange(len(pictures))
    chosen, held_out = train_test_split(
        indices, test_size=0.2, stratify=digits.target, random_state=SEED
    )

    raw = to_tensor(pictures)
    print(f"training images: {len(chosen)}, held out: {len(held_out)}")
    print(f"pixel mean {raw[chosen].mean():.3f}, standard deviation {raw[chosen].std():.3f}")
    images = (raw - PIXEL_MEAN) / PIXEL_STD
    labels = torch.from_numpy(digits.target)

    model = train(images[chosen], labels[chosen], args.epochs)
    with torch.inference_mode():
        right = (model(images[held_out]).argmax(1) == labels[held_out]).sum().item()
    print(f"held-out accuracy: {right}/{len(held_out)} = {right / len(held_out):.2%}")

    torch.save(model.state_dict(), args.output / "digits_cnn.pt")
    written = write_test_images(
        [pictures[i] for i in held_out],
        [int(digits.target[i]) for i in held_out],
        args.output / "test_data",
    )
    print(f"wrote digits_cnn.pt and {written} held-out images to {args.output}")
    if args.torchscript:
        torch.jit.trace(model, images[:1]).save(str(args.output / "digits_cnn_ts.pt"))


if __name__ == "__main__":
    main()
