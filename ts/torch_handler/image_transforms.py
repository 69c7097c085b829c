"""Image transforms on Pillow images, with the semantics and numbers that torchvision publishes.

The default vision handlers use these, so that serving a classifier needs no torchvision. A handler
of a model archive may use either: an `image_processing` is any callable from an image to a tensor.

Source: the documentation of torchvision.transforms (sizes, rounding and padding rules).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

# Bands that are not bytes keep their values: torchvision scales 8-bit images only.
_WIDE_MODES = {"I": torch.int32, "I;16": torch.int16, "I;16L": torch.int16, "F": torch.float32}


class Compose:
    """Transforms applied one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """The result of the last transform."""
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


class ConvertRGB:
    """Any 8-bit image as RGB: palettes are looked up, alpha is dropped, grey is repeated."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image in mode RGB; one that is RGB already is returned as it is."""
        if image.mode == "RGB":
            return image
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB, Pillow warns about the lost alpha
        if image.mode.startswith("I;16"):
            # Pillow clips 16-bit values to 255 instead of scaling them.
            image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
        return image.convert("RGB")

    def __repr__(self) -> str:
        return "ConvertRGB()"


class Resize:
    """Scale the shorter side to `size` keeping the aspect ratio, or the image to `(height, width)`.

    max_size: with one size only, the longer side is at most this.
    Pillow's bilinear filter covers every source pixel when it shrinks (antialias).
    """

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: Image.Resampling = Image.Resampling.BILINEAR,
        max_size: int | None = None,
    ) -> None:
        self.size = _size(size)
        self.interpolation = interpolation
        self.max_size = max_size
        if max_size is not None and not (len(self.size) == 1 and max_size > self.size[0]):
            raise ValueError("max_size needs a single size, and must be greater than it")

    def __call__(self, image: Image.Image) -> Image.Image:
        """The scaled image, or the same one if it has the wanted size."""
        width, height = self._output_size(*image.size)
        if (width, height) == image.size:
            return image
        return image.resize((width, height), self.interpolation)

    def _output_size(self, width: int, height: int) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        shorter = self.size[0]
        longer = int(shorter * max(width, height) / min(width, height))
        if self.max_size is not None and longer > self.max_size:
            shorter, longer = int(self.max_size * shorter / longer), self.max_size
        return (shorter, longer) if width <= height else (longer, shorter)

    def __repr__(self) -> str:
        return f"Resize(size={self.size}, interpolation={self.interpolation.name.lower()})"


class CenterCrop:
    """The middle `size` (or `(height, width)`) of the image; a smaller image gets black borders."""

    def __init__(self, size: int | Sequence[int]) -> None:
        size = _size(size)
        self.size = (size[0], size[-1])

    def __call__(self, image: Image.Image) -> Image.Image:
        """The crop, always of exactly the wanted size."""
        height, width = self.size
        if image.size == (width, height):
            return image
        left = _crop_start(image.width, width)
        top = _crop_start(image.height, height)
        # Pillow fills what lies outside the image with zeros, which is the padding.
        return image.crop((left, top, left + width, top + height))

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


class Grayscale:
    """The image as luminance, in one band or repeated in three."""

    def __init__(self, num_output_channels: int = 1) -> None:
        if num_output_channels not in (1, 3):
            raise ValueError("num_output_channels should be either 1 or 3")
        self.num_output_channels = num_output_channels

    def __call__(self, image: Image.Image) -> Image.Image:
        """The grey image, mode L or RGB."""
        grey = image.convert("L")
        return grey if self.num_output_channels == 1 else Image.merge("RGB", (grey, grey, grey))

    def __repr__(self) -> str:
        return f"Grayscale(num_output_channels={self.num_output_channels})"


class ToTensor:
    """The image as a tensor, [channels, height, width].

    8-bit bands and mode 1 become float in [0, 1]. Modes I, I;16 and F keep their values, as int32,
    int16 and float32. An array [height, width(, channels)] is taken too; uint8 is scaled.
    """

    def __call__(self, image: Any) -> torch.Tensor:
        """A new tensor on the CPU."""
        if not isinstance(image, Image.Image):
            return _array_to_tensor(image)
        if image.mode == "1":
            image = image.convert("L")  # 0 and 255
        dtype = _WIDE_MODES.get(image.mode, torch.uint8)
        # A bytearray, because torch warns about memory that it must not write to.
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
        pixels = pixels.view(image.height, image.width, len(image.getbands()))
        return _scale(pixels.permute(2, 0, 1).contiguous())

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """`(tensor - mean) / std` per channel, for a float tensor [..., channels, height, width]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        if any(value == 0 for value in std):
            raise ValueError("std must not contain 0")
        self.mean = mean
        self.std = std
        self.inplace = inplace
        # Shaped once per dtype and device, not per image.
        self._constants: dict[tuple[torch.dtype, torch.device], tuple[torch.Tensor, ...]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The normalized tensor; the given one is changed only if `inplace`."""
        if not tensor.is_floating_point():
            raise TypeError(f"Normalize needs a float tensor, not {tensor.dtype}")
        mean, std = self._mean_and_std(tensor)
        if mean.numel() not in (1, tensor.shape[-3]):
            raise ValueError(
                f"Normalize has {mean.numel()} channels, the image has {tensor.shape[-3]}"
            )
        if self.inplace:
            return tensor.sub_(mean).div_(std)
        return tensor.sub(mean).div_(std)

    def _mean_and_std(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (tensor.dtype, tensor.device)
        if key not in self._constants:
            self._constants[key] = tuple(
                torch.tensor(values, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
                for values in (self.mean, self.std)
            )
        return self._constants[key]

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


def _size(size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if len(sizes) not in (1, 2) or any(length < 1 for length in sizes):
        raise ValueError(f"size must be a positive int or (height, width), not {size!r}")
    return sizes


def _crop_start(length: int, wanted: int) -> int:
    """Where the crop begins; negative where the image is padded.

    An odd surplus is split by Python's rounding, which goes to the even number; an odd shortage
    puts the extra pixel at the end.
    """
    if wanted > length:
        return -((wanted - length) // 2)
    return round((length - wanted) / 2.0)


def _array_to_tensor(array: Any) -> torch.Tensor:
    tensor = torch.as_tensor(array)
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(-1)
    if tensor.ndim != 3:
        raise ValueError(f"an image has 2 or 3 dimensions, not {tensor.ndim}")
    return _scale(tensor.permute(2, 0, 1).clone(memory_format=torch.contiguous_format))


def _scale(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.dtype is not torch.uint8:
        return pixels
    return pixels.to(torch.get_default_dtype()).div_(math.pow(2, 8) - 1)
