"""When a client gives up, out of the headers of its request."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ts.protocol.header_block import HeaderBlock
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.inference import Header

MAX_DIGITS = 12  # 31 years; what is above is a mistake


class DeadlineHeaders:
    """Reads the request headers that hold the milliseconds a client will wait."""

    __slots__ = ("_names", "_shortest")

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower().encode() for name in names)
        # Most requests have none of them, and shorter names only.
        self._shortest = min(map(len, self._names), default=sys.maxsize)

    def read_s(self, headers: Iterable[Header]) -> float | None:
        """Seconds from the request's arrival, the least where several say; None if none does.

        Raises InvalidArgument for a value that is no whole number.
        """
        shortest = self._shortest
        if isinstance(headers, HeaderBlock) and headers.name_bytes < shortest:
            return None
        found: float | None = None
        for name, value in headers:
            if len(name) >= shortest and name.lower() in self._names:
                if not value.isdigit() or len(value) > MAX_DIGITS:
                    raise InvalidArgument(
                        f"{name.decode('latin-1')} must be a whole number of milliseconds."
                    )
                seconds = int(value) / 1000
                found = seconds if found is None else min(found, seconds)
        return found
