"""Headers that several requests share."""

from __future__ import annotations

from collections.abc import Iterable

from ts.protocol.frames import END, encode_field


class HeaderBlock(tuple[tuple[bytes, bytes], ...]):
    """A request's headers together with their bytes on the wire, encoded once for all of them.

    encoded: the fields and the end mark.
    """

    encoded: bytes

    def __new__(cls, headers: Iterable[tuple[bytes, bytes]]) -> HeaderBlock:
        block = super().__new__(cls, headers)
        fields = [encode_field(text) for header in block for text in header]
        block.encoded = b"".join((*fields, END))
        return block
