"""Headers that several requests share."""

from __future__ import annotations

from collections.abc import Iterable

from ts.protocol.frames import END, encode_field


class HeaderBlock(tuple[tuple[bytes, bytes], ...]):
    """A request's headers together with their bytes on the wire, encoded once for all of them.

    encoded:    the fields and the end mark.
    name_bytes: of the longest name, so that one who looks for longer ones need not look.
    """

    encoded: bytes
    name_bytes: int

    def __new__(cls, headers: Iterable[tuple[bytes, bytes]]) -> HeaderBlock:
        block = super().__new__(cls, headers)
        fields = [encode_field(text) for header in block for text in header]
        block.encoded = b"".join((*fields, END))
        block.name_bytes = max((len(name) for name, _ in block), default=0)
        return block
