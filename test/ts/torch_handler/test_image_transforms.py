"""Numbers of the transforms. The recorded ones are torchvision's for the same pictures."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_transforms import (
    CenterCrop,
    Compose,
    ConvertRGB,
    Grayscale,
    Normalize,
    Resize,
    ToTensor,
)


def pattern(width, height):
    """A picture with detail everywhere, the same on every machine."""
    values = bytes(
        value % 256
        for y in range(height)
        for x in range(width)
        for value in (x * 7 + y * 13, x * y, x * x + y)
    )
    return Image.frombytes("RGB", (width, height), values)


@pytest.mark.parametrize(
    ("size", "values", "mean"),
    [
        (
            (300, 201),
            {
                (0, 0, 0): -0.679425,
                (1, 111, 112): -0.407563,
                (2, 223, 223): -1.072418,
                (0, 50, 200): 0.570682,
                (2, 200, 7): 0.077909,
            },
            0.22060959,
        ),
        (
            (61, 90),
            {
                (0, 0, 0): 0.810429,
                (1, 111, 112): -1.107843,
                (2, 223, 223): 1.663965,
                (0, 50, 200): 1.855039,
                (2, 200, 7): -0.200959,
            },
            0.20948155,
        ),
        (
            (640, 427),
            {
                (0, 0, 0): -1.227417,
                (1, 111, 112): 0.380252,
                (2, 223, 223): 1.175948,
                (0, 50, 200): -0.33693,
                (2, 200, 7): 1.088802,
            },
            0.21596772,
        ),
    ],
)
def test_the_classifiers_pipeline_gives_torchvisions_numbers(size, values, mean):
    tensor = ImageClassifier.image_processing(pattern(*size))
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    assert tensor.double().mean().item() == pytest.approx(mean, abs=1e-7)
    for place, value in values.items():
        assert tensor[place].item() == pytest.approx(value, abs=1e-6)


class TestResize:
    @pytest.mark.parametrize(
        ("image_size", "size", "result"),
        [
            ((300, 200), 100, (150, 100)),
            ((200, 300), 100, (100, 150)),
            ((333, 250), 100, (133, 100)),  # 133.2: the longer side is cut, not rounded
            ((50, 50), 100, (100, 100)),
            ((300, 200), [100], (150, 100)),
            ((300, 200), (40, 60), (60, 40)),  # (height, width)
        ],
    )
    def test_sizes(self, image_size, size, result):
        assert Resize(size)(Image.new("L", image_size)).size == result

    def test_the_longer_side_can_be_limited(self):
        assert Resize(100, max_size=120)(Image.new("L", (300, 200))).size == (120, 80)
        assert Resize(100, max_size=500)(Image.new("L", (300, 200))).size == (150, 100)
        with pytest.raises(ValueError, match="max_size"):
            Resize((1, 2), max_size=5)

    def test_shrinking_covers_every_pixel(self):
        # Halving, the triangle filter weighs the three nearest pixels 3:3:1.
        image = Image.frombytes("L", (4, 4), bytes([0, 0, 255, 255] * 4))
        assert Resize(2)(image).tobytes() == bytes([36, 219, 36, 219])

    def test_the_wanted_size_is_left_alone(self):
        image = Image.new("L", (30, 20))
        assert Resize(20)(image) is image

    @pytest.mark.parametrize("size", [0, (1, 2, 3), -5])
    def test_sizes_are_checked(self, size):
        with pytest.raises(ValueError, match="size"):
            Resize(size)


class TestCenterCrop:
    @pytest.mark.parametrize(
        ("length", "wanted", "start"),
        [
            (256, 224, 16),
            (257, 224, 16),  # 16.5 rounds to the even 16
            (259, 224, 18),  # 17.5 rounds to the even 18
            (4, 4, 0),
        ],
    )
    def test_where_the_crop_begins(self, length, wanted, start):
        row = bytes(i % 256 for i in range(length))
        image = Image.frombytes("L", (length, 1), row)
        assert CenterCrop((1, wanted))(image).tobytes() == row[start : start + wanted]
        column = Image.frombytes("L", (1, length), row)
        assert CenterCrop((wanted, 1))(column).tobytes() == row[start : start + wanted]

    def test_a_smaller_image_gets_black_borders_the_longer_one_last(self):
        image = Image.new("L", (2, 3), 9)
        cropped = CenterCrop((3, 5))(image)
        assert cropped.tobytes() == bytes([0, 9, 9, 0, 0] * 3)

    def test_padding_and_cropping_at_once(self):
        image = Image.frombytes("L", (4, 1), bytes([1, 2, 3, 4]))
        assert CenterCrop((3, 2))(image).tobytes() == bytes([0, 0, 2, 3, 0, 0])


class TestToTensor:
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "P"])
    def test_bytes_become_numbers_from_0_to_1(self, mode):
        bands = len(Image.new(mode, (1, 1)).getbands())
        values = bytes(range(0, 2 * 3 * bands * 8, 8))
        image = Image.frombytes(mode, (3, 2), values)
        tensor = ToTensor()(image)
        assert tensor.dtype == torch.float32
        expected = torch.tensor(list(values)).reshape(2, 3, bands).permute(2, 0, 1) / 255
        assert torch.equal(tensor, expected)

    def test_black_and_white(self):
        image = Image.new("1", (9, 1))
        image.putpixel((8, 0), 1)
        assert ToTensor()(image).tolist() == [[[0.0] * 8 + [1.0]]]

    @pytest.mark.parametrize(
        ("mode", "dtype", "value"),
        [("I;16", torch.int16, 3000), ("I", torch.int32, -70000), ("F", torch.float32, 1.5)],
    )
    def test_wide_values_are_kept(self, mode, dtype, value):
        tensor = ToTensor()(Image.new(mode, (2, 1), value))
        assert tensor.dtype == dtype
        assert tensor.tolist() == [[[value, value]]]

    def test_arrays(self):
        array = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3).numpy()
        assert ToTensor()(array).shape == (3, 1, 2)
        assert ToTensor()(array)[1, 0, 1].item() == pytest.approx(4 / 255)
        assert ToTensor()(array[0]).shape == (1, 2, 3)
        assert ToTensor()(array[0].astype("float32")).max().item() == 5
        with pytest.raises(ValueError, match="dimensions"):
            ToTensor()(array[0, 0])


class TestNormalize:
    def test_per_channel(self):
        image = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1)
        result = Normalize([0.5, 0.25, 0.0], [1.0, 0.5, 2.0])(image)
        assert result.flatten().tolist() == [0.0, 0.5, 0.25]
        assert image.flatten().tolist() == [0.5, 0.5, 0.5]

    def test_in_place_and_batches(self):
        images = torch.ones(2, 1, 1, 1, dtype=torch.float64)
        assert Normalize([0.1], [0.3], inplace=True)(images) is images
        assert images.flatten().tolist() == [(1 - 0.1) / 0.3] * 2

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="std"):
            Normalize([0.5], [0.0])
        with pytest.raises(TypeError, match="float"):
            Normalize([0.5], [0.5])(torch.zeros(1, 1, 1, dtype=torch.uint8))
        with pytest.raises(ValueError, match="3 channels, the image has 4"):
            Normalize([0.5] * 3, [0.5] * 3)(torch.zeros(4, 1, 1))


class TestConvertRGB:
    @pytest.mark.parametrize(
        ("mode", "colour", "rgb"),
        [
            ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
            ("L", 7, (7, 7, 7)),
            ("LA", (7, 0), (7, 7, 7)),
            ("1", 1, (255, 255, 255)),
            ("I;16", 65535, (255, 255, 255)),
            ("I;16", 257 * 9, (9, 9, 9)),
        ],
    )
    def test_modes(self, mode, colour, rgb):
        image = ConvertRGB()(Image.new(mode, (1, 1), colour))
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == rgb

    def test_palettes_with_transparency_make_no_warning(self):
        image = Image.new("RGB", (2, 1), (1, 2, 3)).quantize(2)
        image.info["transparency"] = b"\x00\xff"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ConvertRGB()(image).getpixel((0, 0)) == (1, 2, 3)

    def test_rgb_is_left_alone(self):
        image = Image.new("RGB", (1, 1))
        assert ConvertRGB()(image) is image


def test_grayscale():
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert Grayscale()(red).getpixel((0, 0)) == 76  # 255 * 0.299
    assert Grayscale(3)(red).getpixel((0, 0)) == (76, 76, 76)
    with pytest.raises(ValueError, match="1 or 3"):
        Grayscale(2)


def test_compose_applies_in_order():
    assert Compose([lambda x: x + 1, lambda x: x * 2])(3) == 8
    assert repr(Compose([ToTensor(), Resize(5)])) == (
        "Compose(ToTensor(), Resize(size=(5,), interpolation=bilinear))"
    )


# What torchvision 0.29.2 makes of `picture_of`: shape, dtype, sum, and four values of the tensor.
RECORDED = json.loads(Path(__file__).with_name("torchvision_values.json").read_text())
STEPS = {
    "resize_31": Resize(31),
    "resize_33_17": Resize((33, 17)),
    "resize_20_max_45": Resize(20, max_size=45),
    "center_crop_31_12": CenterCrop((31, 12)),
    "center_crop_64": CenterCrop(64),
    "grayscale": Grayscale(),
    "to_tensor": Compose([]),
}


def picture_of(mode, width, height):
    """A picture without a pattern that a filter would miss, in any mode."""

    def value(x, y, band):
        return (x * 7 + y * 13 + band * 50 + (x * y) % 11 * 9) % 256

    size, places = (width, height), [(x, y) for y in range(height) for x in range(width)]
    if mode == "1":
        return picture_of("L", width, height).point(lambda v: 255 if v > 127 else 0).convert("1")
    if mode == "P":
        return picture_of("RGB", width, height).quantize(16)
    if mode == "I;16":
        words = ((value(x, y, 0) * 257).to_bytes(2, "little") for x, y in places)
        return Image.frombytes(mode, size, b"".join(words))
    if mode in ("I", "F"):
        return picture_of("L", width, height).convert(mode)
    bands = range(len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, size, bytes(value(x, y, c) for x, y in places for c in bands))


@pytest.mark.parametrize("case", RECORDED)
def test_every_mode_and_size_gives_torchvisions_numbers(case):
    mode, size, step = case.split()
    image = picture_of(mode, *map(int, size.split("x")))
    tensor = ToTensor()(STEPS[step](image))
    shape, dtype, total, *samples = RECORDED[case]
    values = tensor.double().flatten()
    assert (list(tensor.shape), str(tensor.dtype)) == (shape, f"torch.{dtype}")
    # Pillow may round a filter's result to the neighbouring of 256 levels in another version.
    level = 1 / 255 if dtype == "float32" and mode != "F" else 1
    assert values.sum().item() == pytest.approx(total, rel=1e-3, abs=level)
    places = (0, len(values) // 3, len(values) // 2, -1)
    assert [values[place].item() for place in places] == pytest.approx(samples, abs=level * 1.01)
