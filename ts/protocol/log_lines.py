"""How the level of a worker's log record survives the pipe to the frontend.

A worker prints message texts only, as TorchServe's does, so everything would become INFO in the
frontend's log. A frontend that understands marks sets `LEVELS_VARIABLE`; the worker then begins
each line of a record that is not INFO with `\\x1e<level>\\x1e` (the level as `logging` numbers it).
"""

from __future__ import annotations

LEVELS_VARIABLE = "TS_WORKER_LOG_LEVELS"
_MARK = "\x1e"


def mark_level(text: str, level: int) -> str:
    """`text`, each of its lines marked with `level`."""
    mark = f"{_MARK}{level}{_MARK}"
    return mark + text.replace("\n", f"\n{mark}")


def split_level(line: str) -> tuple[int | None, str]:
    """The level that a line is marked with, None if it is not, and the line without the mark."""
    if not line.startswith(_MARK):
        return None, line
    digits, mark, text = line[1:].partition(_MARK)
    if not mark or not digits.isascii() or not digits.isdigit() or len(digits) > 3:
        return None, line
    return int(digits), text
