"""examples/echo_stream: what the handler sends, and in which order."""

from collections.abc import Callable

import pytest


@pytest.fixture
def echo(load_example: Callable, monkeypatch: pytest.MonkeyPatch):
    loaded = load_example("echo_stream")
    loaded.service.context.model_yaml_config["handler"]["delay_s"] = 0
    loaded.sent = []
    monkeypatch.setattr(
        "echo_stream_handler.send_intermediate_predict_response",
        lambda pieces, *_: loaded.sent.extend(pieces),
    )
    return loaded


def test_every_word_is_sent_ahead(echo) -> None:
    assert echo.handle([{"body": "one piece after the other"}]) == ["\n"]
    assert echo.sent == ["one ", "piece ", "after ", "the ", "other "]


@pytest.mark.parametrize("body", ["", bytearray()])
def test_an_empty_body_is_answered(echo, body) -> None:
    assert echo.handle([{"body": body}]) == ["\n"]
    assert echo.sent == ["(nothing) "]


def test_bytes_are_echoed_as_text(echo) -> None:
    assert echo.handle([{"body": bytearray(b"a b")}]) == ["\n"]
    assert echo.sent == ["a ", "b "]
