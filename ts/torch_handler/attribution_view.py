"""Attributions for the eye: drawn over a picture, or as the colours of words.

Red speaks for the explained output, blue against it; the stronger, the deeper.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import torch

FOR = (214, 39, 40)
AGAINST = (31, 119, 180)
# A few extreme values would leave all others pale, so the scale ends at this share of them.
SCALE_QUANTILE = 0.99
MIN_SIDE = 224  # smaller pictures are enlarged, pixel by pixel
FADED = 0.35  # how much of the picture's own contrast stays under the colours

# Pictures of words, in pixels and characters.
PAGE_WIDTH = 720
MARGIN = 24
FONT_SIZE = 18
LINE_HEIGHT = 34
WORD_GAP = 16  # wide enough for the edges of two colours
# A text may be of any length, the picture of it not: at this many lines it is cut, and says so.
MAX_LINES = 200
MAX_WORD_LENGTH = 60
INK = (17, 17, 17)
WORD_OPACITY = 0.7  # of the strongest colour, so that the word on it stays readable


def draw_attribution(picture: torch.Tensor, attribution: torch.Tensor) -> bytes:
    """A PNG of the picture in grey with the attribution in colour over it.

    picture:     [channels, height, width] float in [0, 1], one, three or more channels.
    attribution: [channels, height, width] of any float scale; its channels are added.
    """
    from PIL import Image  # only here: texts need none of it

    colours = picture.detach().to("cpu", torch.float32).clamp(0, 1)
    grey = colours[:3].mean(dim=0)
    grey = 1 - FADED * (1 - grey)  # pale, so that colours stand out
    strength = _scaled(attribution.detach().to("cpu", torch.float32).sum(dim=0))
    tint = torch.where(
        (strength >= 0).unsqueeze(-1), torch.tensor(FOR) / 255, torch.tensor(AGAINST) / 255
    )
    opacity = strength.abs().unsqueeze(-1)
    blended = grey.unsqueeze(-1) * (1 - opacity) + tint * opacity
    pixels = (blended * 255).round().to(torch.uint8).numpy().tobytes()
    height, width = grey.shape
    image = Image.frombytes("RGB", (width, height), pixels)
    factor = -(-MIN_SIDE // min(width, height))
    if factor > 1:
        image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def render_words(words: Sequence[str], importances: Sequence[float], title: str) -> str:
    """An HTML page of the words, each on the colour of its importance, which it shows as a tip."""
    strengths = _scaled(torch.tensor(list(importances), dtype=torch.float32)).tolist()
    spans = [
        f'<span title="{value:+.4g}" style="background:{_css(strength)}">{html.escape(word)}</span>'
        for word, value, strength in zip(words, importances, strengths, strict=True)
    ]
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title>\n<style>"
        "body{font:18px/2 system-ui,sans-serif;max-width:48em;margin:2em auto;color:#111;"
        "background:#fff}h1{font-size:1.1em}span{padding:.15em .3em;border-radius:.3em}"
        ".key{font-size:.8em;color:#444}</style></head>\n"
        f"<body><h1>{title}</h1>\n<p>{' '.join(spans)}</p>\n"
        f'<p class="key"><span style="background:{_css(0.8)}">speaks for it</span> '
        f'<span style="background:{_css(-0.8)}">speaks against it</span></p></body></html>\n'
    )


def draw_words(words: Sequence[str], importances: Sequence[float], title: str) -> bytes:
    """A PNG of the words, each on the colour of its importance, below the title.

    Words are cut at MAX_WORD_LENGTH characters, and the text at MAX_LINES lines.
    """
    from PIL import Image, ImageDraw

    strengths = _scaled(torch.tensor(list(importances), dtype=torch.float32)).tolist()
    title = _printable(title)
    shown = [_printable(word) for word in words[: MAX_LINES * PAGE_WIDTH // WORD_GAP]]
    font = _font(title + "".join(shown))
    places = _place(shown, font)
    rest = len(words) - len(places)
    lines = places[-1][2] + 1 if places else 1
    legend = lines + 1.5 + (rest > 0)
    height = round(2 * MARGIN + LINE_HEIGHT * (legend + 1))
    image = Image.new("RGB", (PAGE_WIDTH, height), "white")
    draw = ImageDraw.Draw(image)

    def write(text: str, x: float, line: float, strength: float = 0.0) -> float:
        """Returns where the text ends."""
        y = MARGIN + line * LINE_HEIGHT
        end = x + font.getlength(text)
        if strength:
            box = (x - 4, y, end + 4, y + LINE_HEIGHT - 6)
            draw.rounded_rectangle(box, radius=4, fill=_on_white(strength))
        draw.text((x, y + (LINE_HEIGHT - 6) / 2), text, font=font, fill=INK, anchor="lm")
        return end

    write(title, MARGIN, 0)
    for (text, x, line), strength in zip(places, strengths, strict=False):
        write(text, x, line + 1, strength)
    if rest > 0:
        write(f"and {rest} more words", MARGIN, lines + 1)
    end = write("speaks for it", MARGIN, legend, 0.8)
    write("speaks against it", end + WORD_GAP, legend, -0.8)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _font(text: str) -> Any:
    """Pillow's own font, which has ASCII only; for other text a common one if it is installed."""
    from PIL import ImageFont

    if not text.isascii():
        try:
            return ImageFont.truetype("DejaVuSans.ttf", FONT_SIZE)
        except OSError:
            pass  # the missing letters are shown as boxes
    return ImageFont.load_default(FONT_SIZE)


def _place(words: Sequence[str], font: Any) -> list[tuple[str, float, int]]:
    """The words that fit, each with its left edge and its line."""
    places: list[tuple[str, float, int]] = []
    x, line = float(MARGIN), 0
    for word in words:
        width = font.getlength(word)
        if x > MARGIN and x + width > PAGE_WIDTH - MARGIN:
            x, line = float(MARGIN), line + 1
        if line >= MAX_LINES:
            break
        places.append((word, x, line))
        x += width + WORD_GAP
    return places


def _printable(text: str) -> str:
    """The text as one short line; letters that do not print become question marks."""
    if len(text) > MAX_WORD_LENGTH:
        text = text[: MAX_WORD_LENGTH - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _on_white(strength: float) -> tuple[int, ...]:
    opacity = abs(strength) * WORD_OPACITY
    return tuple(round(255 + (part - 255) * opacity) for part in (FOR if strength > 0 else AGAINST))


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """The values in [-1, 1], without NaN; the sign stays."""
    values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if not values.numel():
        return values
    # kthvalue and not quantile, which refuses large pictures.
    place = max(1, round(SCALE_QUANTILE * values.numel()))
    scale = values.abs().flatten().kthvalue(place).values
    if scale == 0:
        scale = values.abs().max()
    return values if scale == 0 else (values / scale).clamp(-1, 1)


def _css(strength: float) -> str:
    red, green, blue = FOR if strength >= 0 else AGAINST
    return f"rgba({red},{green},{blue},{abs(strength) * WORD_OPACITY:.3f})"
