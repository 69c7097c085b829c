"""Images in, smaller images out: request headers, binary answers, and an error for one request."""

import io

from PIL import Image, UnidentifiedImageError

MAX_SIZE = 1024


def handle(data, context):
    """A PNG for each image in `data`, at most as wide and high as the header x-size says."""
    if data is None:  # the call when the model is loaded
        return None
    return [thumbnail(row, index, context) for index, row in enumerate(data)]


def thumbnail(row, index, context):
    body = row.get("data") or row.get("body") or b""
    # Names of headers are as the client wrote them.
    headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
    try:
        size = int(headers.get("x-size", 32))
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"x-size is a number from 1 to {MAX_SIZE}")
        image = Image.open(io.BytesIO(body)).convert("RGB")
        image.thumbnail((size, size))
    except (ValueError, UnidentifiedImageError, TypeError) as error:
        # For this request only; the others of the batch get their images.
        context.set_response_status(400, "Bad Request", index)
        context.set_response_content_type(index, "text/plain")
        return f"{error}\n"
    png = io.BytesIO()
    image.save(png, "PNG")
    context.set_response_content_type(index, "image/png")
    context.set_response_header(index, "x-image-size", f"{image.width}x{image.height}")
    return png.getvalue()
