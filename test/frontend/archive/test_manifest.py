from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_archiver import ModelArchiverConfig
from model_archiver.model_packaging_utils import ModelExportUtils
from ts_frontend.archive.manifest import MAX_MANIFEST_BYTES, Manifest
from ts_frontend.core.errors import InvalidModel


def test_archive_without_a_manifest() -> None:
    assert Manifest() == Manifest(model_version="1.0", runtime="python", handler="")
    assert Manifest.parse(b"{}") == Manifest()
    assert Manifest.parse(b'{"model": {}}') == Manifest()


def test_every_key() -> None:
    content = {
        "createdOn": "21/11/2026 07:25:04",
        "description": "says what it hears",
        "archiverVersion": "0.12.0",
        "runtime": "LSP",
        "model": {
            "modelName": "echo",
            "modelVersion": "2.1-rc",
            "handler": "echo.py:handle",
            "serializedFile": "weights.pt",
            "modelFile": "net.py",
            "envelope": "json",
            "requirementsFile": "requirements.txt",
            "configFile": "conf/model.yaml",
            "sourceVocab": "left to the handler",
        },
        "unknown": [1, {"deep": None}],
    }
    assert Manifest.parse(json.dumps(content).encode()) == Manifest(
        model_name="echo",
        model_version="2.1-rc",
        handler="echo.py:handle",
        runtime="LSP",
        serialized_file="weights.pt",
        model_file="net.py",
        envelope="json",
        requirements_file="requirements.txt",
        config_file="conf/model.yaml",
        description="says what it hears",
        created_on="21/11/2026 07:25:04",
        archiver_version="0.12.0",
    )


@pytest.mark.parametrize(
    ("written", "version"),
    [
        ('"1.10"', "1.10"),
        ("1.10", "1.10"),
        ("2", "2"),
        ("1e3", "1e3"),
        ("null", "1.0"),
        ('""', "1.0"),
        ('"\\u0031"', "1"),
    ],
)
def test_version_as_it_is_written(written: str, version: str) -> None:
    content = f'{{"model": {{"modelVersion": {written}}}}}'
    assert Manifest.parse(content.encode()).model_version == version


def test_byte_order_mark() -> None:
    assert Manifest.parse(b'\xef\xbb\xbf{"model": {"modelName": "m"}}').model_name == "m"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"not json", "malformed"),
        (b'{"model": {"modelName": "m"}', "truncated"),
        (b"\xff\xfe", "malformed"),
        (b'{"model": {"modelName": "\xed\xa0\x80"}}', "utf-8"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b'{"model": null}', "`$.model`"),
        (b'{"model": []}', "`$.model`"),
        (b'{"model": {"modelName": 1}}', "`$.model.modelName`"),
        (b'{"model": {"handler": ["h.py"]}}', "`$.model.handler`"),
        (b'{"model": {"modelVersion": true}}', "Expected"),
        (b'{"model": {"modelVersion": {"a": 1}}}', "Expected"),
        (b'{"runtime": 3}', "`$.runtime`"),
        (b'{"runtime": "java"}', "'java' is none of python, python3, LSP"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"description": "' + b"x" * MAX_MANIFEST_BYTES + b'"}', "bytes, more than"),
    ],
)
def test_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        Manifest.parse(content)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "key", ["serializedFile", "modelFile", "requirementsFile", "configFile", "handler"]
)
@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "..", "/etc/passwd", "C:\\x", "..\\x", "a\0b", "a\nb"]
)
def test_file_outside_the_archive(key: str, name: str) -> None:
    with pytest.raises(InvalidModel, match=key):
        Manifest.parse(json.dumps({"model": {key: name}}).encode())


@pytest.mark.parametrize("name", ["a/b", "../a", "..", "a\\b", "a\0b", "a\x1bb"])
def test_model_name_that_is_no_name(name: str) -> None:
    with pytest.raises(InvalidModel, match=r"modelName|control character"):
        Manifest.parse(json.dumps({"model": {"modelName": name}}).encode())


@pytest.mark.parametrize("handler", ["dir/h.py:handle", "h", "libh:Class", "image_classifier"])
def test_handlers_of_every_form(handler: str) -> None:
    content = json.dumps({"model": {"handler": handler}}).encode()
    assert Manifest.parse(content).handler == handler


def test_reads_what_the_archiver_writes() -> None:
    config = ModelArchiverConfig(
        model_name="echo",
        handler="dir/echo.py:handle",
        version="1.10",
        serialized_file="dir/weights.pt",
        model_file="dir/net.py",
        requirements_file="dir/requirements.txt",
        config_file="dir/model.yaml",
        runtime="python3",
    )
    written = ModelExportUtils.generate_manifest_json(config)
    read = Manifest.parse(written.encode())
    assert read.created_on
    assert read.archiver_version
    assert read == Manifest(
        model_name="echo",
        model_version="1.10",
        handler="echo.py:handle",
        runtime="python3",
        serialized_file="weights.pt",
        model_file="net.py",
        requirements_file="requirements.txt",
        config_file="model.yaml",
        created_on=read.created_on,
        archiver_version=read.archiver_version,
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_KEYS = ["modelName", "modelVersion", "handler", "serializedFile", "configFile", "runtime", "model"]


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_parse_or_are_refused(content: bytes) -> None:
    _parse_or_refuse(content)


@given(st.dictionaries(st.sampled_from(_KEYS), _JSON), _JSON)
def test_any_json_parses_or_is_refused(entry: dict[str, object], runtime: object) -> None:
    _parse_or_refuse(json.dumps({"model": entry, "runtime": runtime}).encode())
    _parse_or_refuse(json.dumps({**entry, "model": runtime}).encode())


def _parse_or_refuse(content: bytes) -> None:
    try:
        read = Manifest.parse(content)
    except InvalidModel as refused:
        str(refused).encode()
        return
    assert read.model_version
    for name in (read.serialized_file, read.config_file, read.handler.partition(":")[0]):
        assert ".." not in name.split("/")
        assert not name.startswith("/")
        assert "\0" not in name
