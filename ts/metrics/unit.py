"""Long names of the units that metric lines carry."""

from __future__ import annotations

UNITS: dict[str | None, str] = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
    None: "unit",
}


def long_unit(unit: str | None) -> str:
    """The long form of a short unit; any other text is its own long form."""
    known = UNITS.get(unit)
    return known if known is not None else str(unit)


class Units:
    """The unit table under its historical name: `Units().units[short]` is the long form."""

    def __init__(self) -> None:
        self.units = dict(UNITS)
