"""What the service answers for what an entry point returns."""

from __future__ import annotations

import logging

from ts.protocol.messages import Part, PredictRequest, ReplyReader
from ts.service import Service


def reply_of(entry_point):
    """The reply to a batch of one."""
    service = Service("m", "/", None, entry_point, None, 1)
    reader = ReplyReader(1 << 20)
    request = PredictRequest(b"r0", [], [Part(b"body", b"", b"")])
    reader.feed(b"".join(map(bytes, service.predict([request]))))
    return reader.next_predict()


def test_an_asynchronous_handler_hears_which_key_it_needs(caplog):
    async def handle(data, context):
        return ["a"]

    with caplog.at_level(logging.WARNING):
        reply = reply_of(handle)
    assert reply.code == 503
    assert reply.message.startswith("Invalid model predict output")
    assert "asyncCommunication: true" in reply.message
    assert "asyncCommunication: true" in caplog.text
