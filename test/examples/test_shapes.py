"""examples/object_detector/shapes and image_segmenter/shapes: the default vision handlers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

RED, BLUE = (8, 10, 40, 30), (60, 36, 84, 60)  # as drawn: x1, y1, x2, y2


@pytest.fixture
def picture(examples: Path) -> bytearray:
    return bytearray((examples / "object_detector" / "shapes" / "shapes.png").read_bytes())


def test_the_shapes_are_found(load_example: Callable, picture: bytearray) -> None:
    (found,) = load_example("object_detector/shapes").handle([{"body": picture}])
    assert [list(each) for each in found] == [["red", "score"], ["blue", "score"]]
    assert [tuple(found[0]["red"]), tuple(found[1]["blue"])] == [RED, BLUE]
    assert all(0.5 < each["score"] < 1 for each in found)


def test_pictures_of_two_sizes_make_one_batch(load_example: Callable, picture: bytearray) -> None:
    import io

    from PIL import Image

    plain = io.BytesIO()
    Image.new("RGB", (20, 30), (0, 255, 0)).save(plain, "PNG")
    rows = [{"body": picture}, {"body": bytearray(plain.getvalue())}]
    first, second = load_example("object_detector/shapes").handle(rows)
    assert len(first) == 2
    assert second == [{"green": [0, 0, 20, 30], "score": pytest.approx(1)}]


def test_every_pixel_gets_its_class(load_example: Callable, picture: bytearray) -> None:
    (rows,) = load_example("image_segmenter/shapes").handle([{"data": picture}])
    assert (len(rows), len(rows[0]), len(rows[0][0])) == (224, 224, 2)
    counts = Counter(int(pixel[0]) for row in rows for pixel in row)
    assert set(counts) == {0, 1, 3}  # background, red, blue
    # The picture is 96x72 and becomes 341x256; the red rectangle begins left of the cut-out.
    scale = 256 / 72
    left = (96 * scale - 224) / 2
    red = ((RED[2] * scale - left) - max(0, RED[0] * scale - left)) * (RED[3] - RED[1]) * scale
    assert counts[1] == pytest.approx(red, rel=0.05)
    assert all(0.25 <= pixel[1] <= 1 for row in rows for pixel in row)
