"""The requests that an archive brings for its own test, from its file to their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ts_frontend.archive import self_test
from ts_frontend.archive.model_config import parse_model_config
from ts_frontend.archive.self_test import SelfTestMistake, WarmUpItem, parse_items, read_self_test


def items(*entries: dict[str, Any]) -> tuple[WarmUpItem, ...]:
    return parse_items(list(entries))


def test_an_entry_becomes_a_request(tmp_path: Path) -> None:
    (tmp_path / "kitten.png").write_bytes(b"png")
    (tmp_path / "kitten.json").write_bytes(b'{"cat": 0.9}')
    entry = {"file": "kitten.png", "answer": "kitten.json", "status": 200, "repeat": 3}
    read = read_self_test(str(tmp_path), items({**entry, "headers": {"x-kind": "test"}}))
    (test,) = read.requests
    assert (test.name, test.status, test.repeat) == ("warmup[0] (kitten.png)", 200, 3)
    assert test.answer == b'{"cat": 0.9}'
    (part,) = test.request.parts
    assert tuple(part) == (b"body", b"image/png", b"png")
    assert (b"x-kind", b"test") in test.request.headers
    assert (b"explain", b"False") in test.request.headers


def test_a_text_has_no_type_unless_it_is_given(tmp_path: Path) -> None:
    entries = items({"body": "hello"}, {"body": "{}", "contentType": "application/json"})
    first, second = read_self_test(str(tmp_path), entries).requests
    assert first.request.parts[0].content_type == b""
    assert second.request.parts[0].content_type == b"application/json"
    assert first.answer is None


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("all", "array"),
        ([], "1 to 100"),
        ([{"body": "x"}] * 101, "1 to 100"),
        ([{}], "either file or body"),
        ([{"file": "a", "body": "x"}], "either file or body"),
        ([{"body": "x", "repeat": 0}], "repeat"),
        ([{"body": "x", "status": 7}], "status"),
        ([{"body": "x", "expects": "y"}], "expects"),
        ([{"body": 3}], "body"),
    ],
)
def test_a_mistake_in_the_section_is_named(value: object, complaint: str) -> None:
    with pytest.raises(SelfTestMistake, match=complaint):
        parse_items(value)


def test_a_mistake_does_not_pass_for_no_test() -> None:
    config, warnings = parse_model_config("warmup: all\n", "model-config.yaml")
    assert config is not None
    assert isinstance(config.warm_up, str)
    assert not warnings
    assert read_self_test("/", config.warm_up).mistake == config.warm_up


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link", "folder", "nowhere"])
def test_only_files_of_the_archive_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    directory = tmp_path / "model"
    (directory / "folder").mkdir(parents=True)
    (directory / "link").symlink_to(tmp_path / "secret")
    read = read_self_test(str(directory), items({"file": name}))
    assert not read.requests
    assert name in read.mistake


def test_sizes_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(self_test, "MAX_BYTES", 25)
    (tmp_path / "fits").write_bytes(b"x" * 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    fits = {"file": "fits"}
    assert not read_self_test(str(tmp_path), items(fits, fits)).mistake
    assert "too large" in read_self_test(str(tmp_path), items({"file": "large"})).mistake
    assert "warmup[2]" in read_self_test(str(tmp_path), items(fits, fits, fits)).mistake
