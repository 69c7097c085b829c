"""Compressed bodies: gzip and deflate (RFC 9110, section 8.4.1), in and out."""

from __future__ import annotations

import zlib

from ts_frontend.core.errors import InvalidArgument

# The fastest: tensors shrink little, whatever the effort.
LEVEL = 1

_WBITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_DEFLATE_METHOD = 8


class BodyTooLarge(InvalidArgument):
    """A body that is over the limit once it is unpacked."""


def decompressed(
    body: bytes | bytearray | memoryview, encoding: bytes, max_bytes: int
) -> bytes | bytearray | memoryview:
    """The body as it was before its client compressed it.

    encoding:  the header Content-Encoding.
    max_bytes: no more than that (and one) is ever unpacked.
    Raises BodyTooLarge, InvalidArgument.
    """
    name = encoding.strip().lower().removeprefix(b"x-").decode("latin-1")
    if name in ("", "identity"):
        return body
    if name not in _WBITS:
        raise InvalidArgument(
            f"A body with the content encoding {name[:40]!r} is not understood; "
            "gzip and deflate are."
        )
    wbits = _WBITS[name]
    if name == "deflate" and body and body[0] & 0x0F != _DEFLATE_METHOD:
        wbits = -zlib.MAX_WBITS  # some clients leave the header of zlib's format out
    unpacker = zlib.decompressobj(wbits)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidArgument(f"The body is not {name}: {error}") from None
    if len(plain) > max_bytes:
        raise BodyTooLarge(f"The body has more than {max_bytes} bytes once it is unpacked.")
    if not unpacker.eof:
        raise InvalidArgument(f"The {name} of the body ends too early.")
    if unpacker.unused_data:
        raise InvalidArgument(f"{len(unpacker.unused_data)} bytes follow the {name} of the body.")
    return plain


def chosen_encoding(accept: bytes | None) -> str | None:
    """The coding that a client likes best, by its header Accept-Encoding; None: none."""
    best, best_weight = None, 0.0
    for item in (accept or b"").decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        name = name.strip()
        weight = _weight(parameter)
        if name in _WBITS and weight > best_weight:
            best, best_weight = name, weight
    return best


def compressed(body: bytes | bytearray | memoryview, encoding: str) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, _WBITS[encoding])
    return packer.compress(body) + packer.flush()


def _weight(parameter: str) -> float:
    """Of `q=0.5`; 1 where there is none, 0 where it cannot be read."""
    key, _, value = parameter.partition("=")
    if not key.strip():
        return 1.0
    try:
        return float(value) if key.strip() == "q" else 0.0
    except ValueError:
        return 0.0
