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


def test_requests_that_share_headers_have_headers_of_their_own():
    shared = [(b"A", b"b"), (b"body", b"of a header")]
    batch = [PredictRequest(id_, shared, [Part(b"body", b"", b"")]) for id_ in (b"r0", b"r1")]
    seen = []

    def handle(data, context):
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        headers[0]["Mine"] = "1"
        seen.append(headers)
        return ["a"] * len(data)

    service = Service("m", "/", None, handle, None, 1)
    service.predict(batch)
    service.predict([batch[1]])
    service.predict([batch[0]._replace(headers=[(b"\xff", b"c")])])
    plain = {"A": "b", "body": "of a header"}
    assert seen[0] == [{**plain, "Mine": "1"}, plain]
    assert seen[1] == [{**plain, "Mine": "1"}]
    assert seen[2] == [{"body": {"content-type": ""}, "ÿ": "c", "Mine": "1"}]
