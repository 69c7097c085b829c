"""A name and value that a metric is filed under."""

from __future__ import annotations

from typing import Any


class Dimension:
    """One dimension of a metric, for instance `Level:Host`."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        """`name:value`, the form used in metric lines."""
        return f"{self.name}:{self.value}"

    def __repr__(self) -> str:
        return f"Dimension({self.name!r}, {self.value!r})"

    def to_dict(self) -> dict[str, Any]:
        """The dimension as the legacy JSON form has it."""
        return {"Name": self.name, "Value": self.value}
