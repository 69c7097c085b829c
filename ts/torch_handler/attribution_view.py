"""Attributions for the eye: drawn over a picture, or as the colours of words.

Red speaks for the explained output, blue against it; the stronger, the deeper.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import torch

FOR = (214, 39, 40)
AGAINST = (31, 119, 180)
# A few extreme values would leave all others pale, so the scale ends at this share of them.
SCALE_QUANTILE = 0.99
MIN_SIDE = 224  # smaller pictures are enlarged, pixel by pixel
FADED = 0.35  # how much of the picture's own contrast stays under the colours


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
    return f"rgba({red},{green},{blue},{abs(strength) * 0.7:.3f})"
