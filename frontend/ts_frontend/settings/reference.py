"""The table of all keys in docs/configuration.md, made from the code.

`python -m ts_frontend.settings.reference` prints it; a test compares it with the file.
"""

from __future__ import annotations

from ts_frontend.settings.settings import KEYS, Key

_KIND_WORDS = {
    "text": "text",
    "flag": "true/false",
    "int": "whole number",
    "number": "number",
    "list": "comma list",
    "json": "JSON",
}


def key_tables() -> str:
    lines: list[str] = []
    section = ""
    for key in KEYS.values():
        if key.section != section:
            section = key.section
            lines += [
                "",
                f"### {section}",
                "",
                "| Key | Type | Default | Environment | Meaning |",
                "|---|---|---|---|---|",
            ]
        variable = f"`{key.environment}`" if key.environment else ""
        cells = (f"`{key.name}`", _KIND_WORDS[key.kind], _default(key), variable, key.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def _default(key: Key) -> str:
    if key.default_text:
        return key.default_text
    if isinstance(key.default, bool):
        return "true" if key.default else "false"
    if isinstance(key.default, float):
        return f"{key.default:g}"
    return str(key.default) if key.default not in (None, "", {}) else "none"


if __name__ == "__main__":
    print(key_tables(), end="")
