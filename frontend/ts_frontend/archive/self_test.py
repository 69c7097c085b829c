"""The requests that an archive brings for its own test (`warmup:` in its configuration file).

Unlike other mistakes in that file, one here is not passed over: a version that nobody could test
would count as tested. So it is kept, and fails the test when a worker is to take it.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from ts_frontend.core.inference import PREDICT_HEADER, InferenceRequest, Part
from ts_frontend.core.self_test import SelfTest, TestRequest

MAX_REQUESTS = 100
MAX_REPEAT = 1000
MAX_FILE_BYTES = 16 << 20
MAX_BYTES = 64 << 20


class WarmUpItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of `warmup`, as it is written there.

    file, body:   the body of the request: a file of the archive, or text; one of the two.
    content_type: by the file's name if not given.
    status:       0: any below 400.
    answer:       a file of the archive with the whole expected answer.
    """

    file: str = ""
    body: str | None = None
    content_type: str | None = None
    headers: dict[str, str] = {}
    status: int = 0
    answer: str = ""
    repeat: int = 1


class SelfTestMistake(Exception):
    """`str(error)` says what is wrong with the section, or with the files that it names."""


def parse_items(value: Any) -> tuple[WarmUpItem, ...]:
    """The entries of the section. Raises SelfTestMistake."""
    try:
        items = msgspec.convert(value, tuple[WarmUpItem, ...])
    except msgspec.ValidationError as error:
        raise SelfTestMistake(f"warmup: {error}") from error
    if not 1 <= len(items) <= MAX_REQUESTS:
        raise SelfTestMistake(f"warmup: 1 to {MAX_REQUESTS} requests are expected")
    for index, item in enumerate(items):
        if bool(item.file) == (item.body is not None):
            raise SelfTestMistake(f"warmup[{index}]: either file or body is expected")
        if not 1 <= item.repeat <= MAX_REPEAT:
            raise SelfTestMistake(f"warmup[{index}]: repeat should be 1 to {MAX_REPEAT}")
        if item.status and not 100 <= item.status <= 599:
            raise SelfTestMistake(f"warmup[{index}]: status should be an HTTP status")
    return items


def read_self_test(directory: str, items: Sequence[WarmUpItem] | str) -> SelfTest:
    """The requests with the bytes of their files; a mistake is part of the value. Blocks.

    items: text says what is wrong with the section.
    """
    if isinstance(items, str):
        return SelfTest(mistake=items)
    try:
        reader = _Reader(directory)
        return SelfTest([reader.request(index, item) for index, item in enumerate(items)])
    except SelfTestMistake as error:
        return SelfTest(mistake=str(error))


class _Reader:
    def __init__(self, directory: str) -> None:
        self._directory = os.path.realpath(directory)
        self._left_bytes = MAX_BYTES

    def request(self, index: int, item: WarmUpItem) -> TestRequest:
        """Raises SelfTestMistake."""
        where = f"warmup[{index}]"
        name = f"{where} ({item.file})" if item.file else where
        body = item.body.encode() if item.body is not None else self._read(where, item.file)
        content_type = item.content_type
        if content_type is None:
            content_type = mimetypes.guess_type(item.file)[0] or ""
        headers = [(key.encode(), value.encode()) for key, value in item.headers.items()]
        if content_type:
            headers.append((b"content-type", content_type.encode()))
        parts = [Part(b"body", content_type.encode(), body)]
        request = InferenceRequest(f"self-test-{index}".encode(), [*headers, PREDICT_HEADER], parts)
        answer = self._read(where, item.answer) if item.answer else None
        return TestRequest(name, request, item.status, answer, item.repeat)

    def _read(self, where: str, name: str) -> bytes:
        path = os.path.realpath(os.path.join(self._directory, name))
        # A directory model may hold links; none may lead out of it.
        if os.path.commonpath([self._directory, path]) != self._directory:
            raise SelfTestMistake(f"{where}: {name} lies outside of the archive")
        if not os.path.isfile(path):
            raise SelfTestMistake(f"{where}: there is no file {name} in the archive")
        most = min(MAX_FILE_BYTES, self._left_bytes)
        try:
            with open(path, "rb") as file:
                content = file.read(most + 1)
        except OSError as error:
            raise SelfTestMistake(f"{where}: {name} cannot be read: {error.strerror}") from error
        if len(content) > most:
            raise SelfTestMistake(
                f"{where}: {name} is too large; a file may have {MAX_FILE_BYTES} bytes, "
                f"all together {MAX_BYTES}"
            )
        self._left_bytes -= len(content)
        return content
