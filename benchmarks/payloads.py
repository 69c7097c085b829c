"""Request bodies and the right answers to them. All made here, from fixed seeds."""

from __future__ import annotations

import functools
import io
import math
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.models.tasks import CHUNKS, WAIT_ANSWER

_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
_TASKS = Path(__file__).parent / "models" / "tasks.py"
_TEXTS = {"100B": 100, "1MiB": 1 << 20}
BUILT_IN = (*_TEXTS, "digit.png", "photo.jpg")


@functools.cache
def body(payload: str) -> bytes:
    """payload: one of BUILT_IN or the path of a file. Raises OSError."""
    if payload in _TEXTS:
        # Letters only, so that servers that speak nothing but JSON can carry it as it is.
        return bytes(random.Random(0).choices(_LETTERS, k=_TEXTS[payload]))  # noqa: S311
    if payload == "digit.png":
        return _digit()
    if payload == "photo.jpg":
        return _photo()
    return Path(payload).read_bytes()


def answer(task: str, payload: str) -> bytes | None:
    """What a right server says; None where only its form can be checked."""
    if task == "echo":
        return body(payload)
    if task == "wait":
        return WAIT_ANSWER
    if task == "stream":
        return b"".join(CHUNKS)
    if task in ("cnn", "resnet"):
        return _label(task, payload)
    return None


@functools.cache
def _label(task: str, payload: str) -> bytes | None:
    """The class that the network sees in the payload; None where torch is not installed.

    In a process of its own: this one should stay small and quiet while servers are measured.
    """
    done = subprocess.run(
        [sys.executable, _TASKS, task], input=body(payload), capture_output=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _digit() -> bytes:
    """A 28x28 image of a seven."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (28, 28))
    draw = ImageDraw.Draw(image)
    draw.line([(7, 6), (20, 6), (12, 23)], fill=255, width=3)
    return _encoded(image, "PNG")


def _photo() -> bytes:
    """A 224x224 image with about as much detail as a photograph: waves and noise."""
    from PIL import Image

    size = 224
    noise = random.Random(0)  # noqa: S311
    pixels = bytearray()
    for y in range(size):
        for x in range(size):
            for level in (math.sin(x / 17), math.cos(y / 23), math.sin((x + y) / 31)):
                pixels.append(int(min(255, max(0, 128 + 95 * level + noise.gauss(0, 6)))))
    return _encoded(Image.frombytes("RGB", (size, size), bytes(pixels)), "JPEG", quality=90)


def _encoded(image: object, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)  # type: ignore[attr-defined]
    return file.getvalue()
