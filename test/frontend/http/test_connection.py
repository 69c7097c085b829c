"""One connection as a client sees it: answers, their order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import re
import socket

import pytest

from ts_frontend.core.errors import RequestCancelled
from ts_frontend.http.listener import plain_transport_error
from ts_frontend.http.router import Route

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL_BODIES = {"max_body_bytes": 100}
TOO_LONG = b"POST /big HTTP/1.1\r\nContent-Length: 1000\r\n"


def hello(request):
    request.respond(200, b"hello", content_type=b"text/plain")


def echo(request):
    request.respond(200, request.body, content_type=request.content_type or None)


def path(request):
    request.respond(200, request.path.encode())


class Held:
    """A handler that keeps its requests until the test answers them."""

    def __init__(self):
        self.requests = []
        self._arrived = asyncio.Event()

    def __call__(self, request):
        self.requests.append(request)
        self._arrived.set()

    async def wait_requests(self, count):
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests


class TestAnswers:
    async def test_standard_headers(self, serve, connect):
        client = await connect(await serve(hello))
        answer = await client.ask(GET)
        assert (answer.status, answer.reason, answer.body) == (200, b"OK", b"hello")
        assert re.fullmatch(
            rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
            answer[b"x-request-id"],
        )
        assert answer[b"Pragma"] == b"no-cache"
        assert answer[b"Cache-Control"] == b"no-cache; no-store, must-revalidate, private"
        assert answer[b"Expires"] == b"Thu, 01 Jan 1970 00:00:00 UTC"
        assert answer[b"connection"] == b"keep-alive"
        assert answer[b"content-length"] == b"5"
        assert answer[b"content-type"] == b"text/plain"

    async def test_connection_serves_many_requests(self, serve, connect):
        client = await connect(await serve(path))
        seen = set()
        for index in range(5):
            answer = await client.ask(b"GET /%d HTTP/1.1\r\n\r\n" % index)
            assert answer.body == b"/%d" % index
            seen.add(answer[b"x-request-id"])
        assert len(seen) == 5

    async def test_content_type_is_absent_when_none_is_set(self, serve, connect):
        client = await connect(await serve(lambda request: request.respond(200, b"x", reason=b"")))
        answer = await client.ask(GET)
        assert b"content-type" not in answer
        assert answer.reason == b""

    async def test_head_gets_the_headers_of_get(self, serve, connect):
        client = await connect(await serve(Route("GET", "/", hello)))
        await client.send(b"HEAD / HTTP/1.1\r\n\r\n")
        answer = await client.answer(to_head=True)
        assert answer[b"content-length"] == b"5"
        assert (await client.ask(GET)).body == b"hello"

    @pytest.mark.parametrize("status", [400, 404, 503, 599])
    async def test_error_status_closes(self, serve, connect, status):
        client = await connect(await serve(lambda request: request.respond(status, b"no")))
        answer = await client.ask(GET)
        assert (answer.status, answer[b"connection"]) == (status, b"close")
        assert await client.is_closed()

    async def test_connection_close_is_honoured(self, serve, connect):
        client = await connect(await serve(hello))
        answer = await client.ask(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (answer.status, answer[b"connection"]) == (200, b"close")
        assert await client.is_closed()

    @pytest.mark.parametrize(
        ("header", "connection"), [(b"", b"close"), (b"Connection: keep-alive\r\n", b"keep-alive")]
    )
    async def test_http_1_0(self, serve, connect, header, connection):
        client = await connect(await serve(hello))
        answer = await client.ask(b"GET / HTTP/1.0\r\n%b\r\n" % header)
        assert (answer.body, answer[b"connection"]) == (b"hello", connection)
        if connection == b"close":
            assert await client.is_closed()
        else:
            assert (await client.ask(GET)).status == 200

    @pytest.mark.parametrize("size", [0, 1, 4000, 20_000, 3_000_000])
    async def test_bodies_come_back_whole(self, serve, connect, size):
        client = await connect(await serve(echo))
        body = bytes(index * 7 & 0xFF for index in range(min(size, 1000))) * (size // 1000 or 1)
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        for _ in range(2):
            assert (await client.ask(head + body)).body == body

    async def test_chunked_request_body_is_joined_and_trailers_are_dropped(self, serve, connect):
        seen = []

        def handler(request):
            seen.append(request.headers)
            echo(request)

        client = await connect(await serve(handler))
        answer = await client.ask(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Trailer: t\r\n\r\n"
        )
        assert answer.body == b"abcde"
        assert seen == [[(b"Transfer-Encoding", b"chunked")]]

    async def test_header_spelling_and_order_are_the_clients(self, serve, connect):
        seen = []

        def handler(request):
            seen.append(request.headers)
            hello(request)

        client = await connect(await serve(handler))
        await client.ask(b"GET / HTTP/1.1\r\nX-A: 1\r\nx-a:  2 \t\r\nHost: h\r\nX-A: 3\r\n\r\n")
        assert seen == [[(b"X-A", b"1"), (b"x-a", b"2"), (b"Host", b"h"), (b"X-A", b"3")]]

    async def test_configured_headers_are_added_and_can_be_overridden(self, serve, connect):
        cors = [(b"access-control-allow-origin", b"*")]
        routes = [
            Route("GET", "/plain", hello),
            Route(
                "GET",
                "/own",
                lambda request: request.respond(
                    200, headers=[(b"Access-Control-Allow-Origin", b"me"), (b"X-Other", b"1")]
                ),
            ),
        ]
        client = await connect(await serve(*routes, headers=cors))
        assert (await client.ask(b"GET /plain HTTP/1.1\r\n\r\n"))[cors[0][0]] == b"*"
        answer = await client.ask(b"GET /own HTTP/1.1\r\n\r\n")
        assert (answer[cors[0][0]], answer[b"X-Other"]) == (b"me", b"1")

    async def test_upgrade_to_http_2_is_ignored(self, serve, connect):
        client = await connect(await serve(path))
        upgrade = (
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        )
        for _ in range(2):
            answer = await client.ask(b"GET /a HTTP/1.1\r\n%b\r\nGET /b HTTP/1.1\r\n\r\n" % upgrade)
            assert answer.body == b"/a"
            assert (await client.answer()).body == b"/b"

    @pytest.mark.parametrize(
        "body",
        [
            b"Content-Length: 30\r\n\r\nGET /smuggled HTTP/1.1\r\nA: b\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n1a\r\nGET /smuggled HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("split", [False, True])
    async def test_body_of_an_upgrade_request_is_a_body(self, serve, connect, body, split):
        """The parser ends such a request with its head: its body would be the next request."""
        seen = []

        def handler(request):
            seen.append((request.path, bytes(request.body)[:4]))
            hello(request)

        client = await connect(await serve(handler))
        head, _, rest = body.partition(b"\r\n\r\n")
        message = (
            b"POST /up HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + head + b"\r\n\r\n"
        )
        if split:
            await client.send(message)
            await client.send(rest)
        else:
            await client.send(message + rest)
        assert (await client.answer()).status == 200
        assert (await client.ask(b"GET /after HTTP/1.1\r\n\r\n")).status == 200
        assert seen == [("/up", b"GET "), ("/after", b"")]


class TestOrder:
    async def test_pipelined_requests_are_answered_in_order_one_at_a_time(self, serve, connect):
        held = Held()
        listener = await serve(Route("GET", "/slow/{n}", held), Route("GET", "/{n}", path))
        client = await connect(listener)
        await client.send(
            b"GET /slow/1 HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n"
            b"GET /slow/2 HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"
        )
        await held.wait_requests(1)
        assert len(held.requests) == 1
        held.requests[0].respond(200, b"one")
        assert (await client.answer()).body == b"one"
        assert (await client.answer()).body == b"/a"
        await held.wait_requests(2)
        held.requests[1].respond(200, b"two")
        assert (await client.answer()).body == b"two"
        assert (await client.answer()).body == b"/b"

    async def test_a_thousand_pipelined_requests(self, serve, connect):
        client = await connect(await serve(path))
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % n for n in range(1000)))
        for n in range(1000):
            assert (await client.answer()).body == b"/%d" % n

    async def test_requests_after_an_error_are_dropped(self, serve, connect):
        seen = []

        def handler(request):
            seen.append(request.path)
            request.respond(404)

        client = await connect(await serve(handler))
        assert (await client.ask(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")).status == 404
        assert await client.is_closed()
        assert seen == ["/1"]

    async def test_fault_is_answered_after_what_came_before(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET + b"NONSENSE\r\n\r\n")
        await held.wait_requests(1)
        held.requests[0].respond(200, b"first")
        assert (await client.answer()).body == b"first"
        assert (await client.answer()).status == 400
        assert await client.is_closed()

    async def test_reading_stops_while_a_request_is_answered(self, serve, connect, until):
        held = Held()
        listener = await serve(Route("GET", "/held", held), Route("GET", "/{n}", path))
        client = await connect(listener)
        client.writer.write(b"GET /held HTTP/1.1\r\n\r\n")
        follower = b"GET /x HTTP/1.1\r\n\r\n"
        count = 2_000_000 // len(follower)
        client.writer.write(follower * count)
        await held.wait_requests(1)
        (connection,) = listener.connections
        await until(lambda: connection._is_reading_paused)
        assert len(connection._unread) < 600_000
        held.requests[0].respond(200)
        assert (await client.answer()).status == 200
        for _ in range(count):
            assert (await client.answer()).body == b"/x"


class TestHandlers:
    async def test_coroutine_answers(self, serve, connect):
        async def handler(request):
            await asyncio.sleep(0)
            request.respond(200, b"later")

        client = await connect(await serve(handler))
        assert (await client.ask(GET)).body == b"later"
        assert (await client.ask(GET)).body == b"later"

    async def test_plain_def_raises(self, serve, connect):
        def handler(request):
            raise ValueError("secret")

        errors = []

        def on_error(request, error):
            errors.append(error)
            request.respond(500, b"sorry")

        client = await connect(await serve(handler, on_error=on_error))
        assert (await client.ask(GET)).body == b"sorry"
        assert isinstance(errors[0], ValueError)

    async def test_coroutine_raises_or_forgets(self, serve, connect):
        async def raises(request):
            raise ValueError

        async def forgets(request):
            await asyncio.sleep(0)

        errors = []

        def on_error(request, error):
            errors.append(type(error))
            request.respond(500)

        routes = [Route("GET", "/raises", raises), Route("GET", "/forgets", forgets)]
        listener = await serve(*routes, on_error=on_error)
        for name in (b"raises", b"forgets"):
            client = await connect(listener)
            assert (await client.ask(b"GET /%b HTTP/1.1\r\n\r\n" % name)).status == 500
        assert errors == [ValueError, RuntimeError]

    async def test_error_translation_that_fails_still_gives_an_answer(self, serve, connect, caplog):
        def on_error(request, error):
            raise KeyError("bug")

        def handler(request):
            raise ValueError

        client = await connect(await serve(handler, on_error=on_error))
        with caplog.at_level(logging.CRITICAL):
            answer = await client.ask(GET)
        assert (answer.status, answer[b"content-type"]) == (500, b"application/json")

    async def test_answering_twice_raises(self, serve, connect):
        seen = []

        def handler(request):
            request.respond(200, b"1")
            for again in (request.respond, request.start_stream):
                with pytest.raises(RuntimeError, match="answered twice"):
                    again(200)
            with pytest.raises(RuntimeError, match="no open stream"):
                request.send_chunk(b"x")
            seen.append(request.is_answered)

        client = await connect(await serve(handler))
        assert (await client.ask(GET)).body == b"1"
        assert (await client.ask(GET)).body == b"1"
        assert seen == [True, True]

    async def test_failure_after_the_answer_is_logged_only(self, serve, connect, caplog):
        def handler(request):
            request.respond(200, b"fine")
            raise ValueError("late")

        client = await connect(await serve(handler))
        for _ in range(2):
            assert (await client.ask(GET)).body == b"fine"
        assert "failed after its answer" in caplog.text

    async def test_no_route_and_wrong_method(self, serve, connect):
        listener = await serve(Route("GET", "/here", hello))
        for line, status in ((b"GET /there", 404), (b"POST /here", 405), (b"GET /%ff", 400)):
            client = await connect(listener)
            assert (await client.ask(line + b" HTTP/1.1\r\n\r\n")).status == status


class TestStreams:
    async def test_chunks_arrive_one_by_one(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET)
        (request,) = await held.wait_requests(1)
        request.start_stream(200, content_type=b"text/event-stream", headers=[(b"X-A", b"1")])
        request.send_chunk(b"one")
        request.send_chunk(b"")
        request.send_chunk(bytes(100_000))
        request.end_stream()
        answer = await client.answer()
        assert [len(chunk) for chunk in answer.chunks] == [3, 100_000]
        assert (answer[b"X-A"], answer[b"content-type"]) == (b"1", b"text/event-stream")
        assert answer.is_whole
        await client.send(GET)
        await held.wait_requests(2)
        held.requests[1].respond(200, b"next")
        assert (await client.answer()).body == b"next"

    async def test_http_1_0_gets_the_pieces_bare(self, serve, connect):
        def handler(request):
            request.start_stream(200)
            request.send_chunk(b"a")
            request.send_chunk(b"b")
            request.end_stream()

        client = await connect(await serve(handler))
        answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (answer.body, answer[b"connection"]) == (b"ab", b"close")

    async def test_head_gets_no_chunks(self, serve, connect):
        def handler(request):
            request.start_stream(200)
            request.send_chunk(b"a")
            request.end_stream()

        client = await connect(await serve(handler))
        await client.send(b"HEAD / HTTP/1.1\r\n\r\n" + GET)
        assert (await client.answer(to_head=True)).status == 200
        assert (await client.answer()).chunks == [b"a"]

    async def test_reset_delivers_what_was_sent_but_no_end(self, serve, connect):
        def handler(request):
            request.start_stream(200)
            request.send_chunk(b"part")
            request.reset()

        counted = []
        listener = await serve(handler, on_response=lambda status, seconds: counted.append(status))
        client = await connect(listener)
        answer = await client.ask(GET)
        assert (answer.chunks, answer.is_whole) == ([b"part"], False)
        assert counted == [200, 500]

    async def test_reset_of_a_bare_stream_is_not_taken_for_its_end(self, serve, connect):
        def handler(request):
            request.start_stream(200)
            request.send_chunk(b"part")
            request.reset()

        client = await connect(await serve(handler))
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.answer()

    async def test_handler_that_fails_in_a_stream_breaks_it_off(self, serve, connect, caplog):
        async def handler(request):
            request.start_stream(200)
            request.send_chunk(b"part")
            await asyncio.sleep(0)
            raise ValueError

        client = await connect(await serve(handler))
        assert not (await client.ask(GET)).is_whole
        assert "the stream broke off" in caplog.text

    async def test_slow_reader_is_cut_off(self, serve, connect):
        """A client that does not read must not make the server keep its stream."""
        gone = asyncio.Event()
        sent = []

        async def handler(request):
            request.on_disconnect = gone.set
            request.start_stream(200)
            while not gone.is_set():
                request.send_chunk(bytes(100_000))
                sent.append(100_000)
                await asyncio.sleep(0)

        listener = await serve(handler, limits={"max_response_buffer_bytes": 1_000_000})
        client = await connect(listener)
        client.writer.transport.pause_reading()
        await client.send(GET)
        await gone.wait()
        client.writer.transport.resume_reading()
        assert not (await client.answer()).is_whole
        assert sum(sent) < 50_000_000

    async def test_wait_writable_paces_a_stream(self, serve, connect):
        total = 20_000_000

        async def handler(request):
            request.start_stream(200)
            for _ in range(total // 100_000):
                request.send_chunk(bytes(100_000))
                await request.wait_writable()
            request.end_stream()

        listener = await serve(handler, limits={"max_response_buffer_bytes": 1_000_000})
        client = await connect(listener)
        answer = await client.ask(GET)
        assert (len(answer.body), answer.is_whole) == (total, True)

    async def test_client_that_never_reads_does_not_pile_up_answers(self, serve, connect, until):
        served = []

        def handler(request):
            served.append(request)
            request.respond(200, bytes(1_000_000))

        listener = await serve(handler)
        client = await connect(listener)
        client.writer.transport.pause_reading()
        await client.send(GET * 200)
        (connection,) = listener.connections
        await until(lambda: connection._is_write_paused)
        assert len(served) < 20
        client.writer.transport.resume_reading()
        for _ in range(200):
            assert len((await client.answer()).body) == 1_000_000


class TestDisconnect:
    async def test_on_disconnect_is_called_once_and_the_answer_is_a_no_op(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET)
        (request,) = await held.wait_requests(1)
        gone = asyncio.Queue()
        request.on_disconnect = lambda: gone.put_nowait("gone")
        await client.close()
        assert await gone.get() == "gone"
        assert request.is_disconnected
        request.respond(200, b"nobody reads this")
        assert request.is_complete
        with pytest.raises(RuntimeError):
            request.respond(200)
        assert gone.empty()

    async def test_reset_by_the_client(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET)
        (request,) = await held.wait_requests(1)
        gone = asyncio.Event()
        request.on_disconnect = gone.set
        client.writer.transport.abort()
        await gone.wait()

    async def test_leaving_in_a_stream(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET)
        (request,) = await held.wait_requests(1)
        gone = asyncio.Event()
        request.on_disconnect = gone.set
        request.start_stream(200)
        request.send_chunk(b"x")
        await client.close()
        await gone.wait()
        request.send_chunk(b"y")
        request.end_stream()

    async def test_handler_task_is_cancelled(self, serve, connect):
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request):
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        errors = []
        listener = await serve(handler, on_error=lambda request, error: errors.append(error))
        client = await connect(listener)
        await client.send(GET)
        await started.wait()
        await client.close()
        await cancelled.wait()
        assert errors == []

    async def test_handler_may_choose_to_go_on(self, serve, connect):
        started, gone, go_on, done = (asyncio.Event() for _ in range(4))

        async def handler(request):
            request.survives_disconnect = True
            request.on_disconnect = gone.set
            started.set()
            await go_on.wait()
            request.respond(200)
            done.set()

        client = await connect(await serve(handler))
        await client.send(GET)
        await started.wait()
        await client.close()
        await gone.wait()
        go_on.set()
        await done.wait()

    async def test_no_call_after_a_complete_answer(self, serve, connect, until):
        calls = []

        def handler(request):
            request.on_disconnect = lambda: calls.append("gone")
            request.respond(200)

        listener = await serve(handler)
        client = await connect(listener)
        await client.ask(GET)
        await client.close()
        await until(lambda: not listener.connections)
        assert calls == []

    @pytest.mark.parametrize("wait_for_probes", [0, 2])
    async def test_half_closed_client_gets_its_answer(self, serve, connect, wait_for_probes):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET)
        client.writer.write_eof()
        (request,) = await held.wait_requests(1)
        for _ in range(wait_for_probes):
            assert (await client.answer()).status == 100
        request.respond(200, b"still here")
        assert (await client.answer()).body == b"still here"
        assert await client.is_closed()

    async def test_half_close_after_pipelined_requests(self, serve, connect):
        client = await connect(await serve(path))
        await client.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HT")
        client.writer.write_eof()
        assert (await client.answer()).body == b"/1"
        assert (await client.answer()).body == b"/2"
        assert await client.is_closed()

    async def test_half_close_while_idle_ends_the_connection(self, serve, connect):
        client = await connect(await serve(hello))
        await client.ask(GET)
        client.writer.write_eof()
        assert await client.is_closed()


class TestTooLarge:
    """The rules that clients of TorchServe observed, see its behaviour after a 413."""

    @staticmethod
    def assert_bare(answer, status=413, reason=b"Request Entity Too Large", close=False):
        assert (answer.status, answer.reason) == (status, reason)
        expected = [(b"content-length", b"0")]
        if close:
            expected.append((b"connection", b"close"))
        assert answer.headers == expected

    async def test_declared_length_keeps_the_connection_and_drops_the_body(self, serve, connect):
        counted = []
        listener = await serve(
            path, limits=SMALL_BODIES, on_response=lambda status, seconds: counted.append(status)
        )
        client = await connect(listener)
        self.assert_bare(await client.ask(TOO_LONG + b"\r\n"))  # before any of the body
        await client.send(bytes(600))
        await client.send(bytes(400))
        assert (await client.ask(b"GET /next HTTP/1.1\r\n\r\n")).body == b"/next"
        await client.send(TOO_LONG + b"\r\n" + bytes(1000) + b"GET /same HTTP/1.1\r\n\r\n")
        self.assert_bare(await client.answer())
        assert (await client.answer()).body == b"/same"
        assert counted == [200, 200]

    async def test_declared_length_with_connection_close(self, serve, connect):
        client = await connect(await serve(path, limits=SMALL_BODIES))
        await client.send(TOO_LONG + b"Connection: close\r\n\r\n" + bytes(500))
        self.assert_bare(await client.answer(), close=True)
        assert await client.is_closed()

    @pytest.mark.parametrize("is_chunked", [False, True])
    async def test_a_routes_own_form_of_the_error(self, serve, connect, is_chunked):
        def form(status, message):
            return f"{status}! {message}".encode()

        listener = await serve(
            Route("POST", "/own/{name}", path, transport_error=form),
            limits=SMALL_BODIES,
            too_large="Too much.",
        )
        for target, body in (
            (b"/own/m?q=1", b"413! Too much."),
            (b"/own", plain_transport_error(413, "Too much.")),
            (b"/%ff", plain_transport_error(413, "Too much.")),
        ):
            client = await connect(listener)
            head = TOO_LONG.replace(b"/big", target)
            if is_chunked:
                head = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" % target
                await client.send(head + b"\r\n78\r\n" + bytes(120) + b"\r\n")
                answer = await client.answer()
            else:
                answer = await client.ask(head + b"\r\n")
            assert (answer.status, answer.body) == (413, body)
            assert answer[b"content-type"] == b"application/json"

    async def test_exactly_the_limit_is_allowed(self, serve, connect):
        client = await connect(await serve(echo, limits=SMALL_BODIES))
        answer = await client.ask(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + bytes(100))
        assert answer.status == 200

    async def test_chunked_body_closes(self, serve, connect):
        seen = []
        client = await connect(await serve(seen.append, limits=SMALL_BODIES))
        await client.send(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3c\r\n%b\r\n" % bytes(60)
        )
        await client.send(b"3c\r\n%b\r\n" % bytes(60))
        self.assert_bare(await client.answer(), close=True)
        assert await client.is_closed()
        assert seen == []

    async def test_answer_survives_a_client_that_goes_on_sending(self, serve, connect):
        """Closing with unread input would reset the connection and take the answer with it."""
        client = await connect(await serve(hello, limits=SMALL_BODIES))
        await client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            await client.send(b"1000\r\n%b\r\n" % bytes(4096))
        self.assert_bare(await client.answer(), close=True)

    async def test_expected_body_is_refused_and_not_awaited(self, serve, connect):
        client = await connect(await serve(path, limits=SMALL_BODIES))
        self.assert_bare(await client.ask(TOO_LONG + b"Expect: 100-continue\r\n\r\n"), close=True)
        assert await client.is_closed()

    async def test_answer_waits_for_its_turn(self, serve, connect):
        held = Held()
        client = await connect(await serve(held, limits=SMALL_BODIES))
        await client.send(GET + TOO_LONG + b"\r\n" + bytes(1000) + GET)
        await held.wait_requests(1)
        held.requests[0].respond(200, b"first")
        assert (await client.answer()).body == b"first"
        self.assert_bare(await client.answer())
        await held.wait_requests(2)
        held.requests[1].respond(200, b"third")
        assert (await client.answer()).body == b"third"


class TestExpect:
    EXPECT = b"POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"

    async def test_100_continue(self, serve, connect):
        client = await connect(await serve(echo))
        assert (await client.ask(self.EXPECT)).status == 100
        assert (await client.ask(b"body")).body == b"body"

    async def test_100_continue_waits_for_the_answer_before(self, serve, connect):
        held = Held()
        client = await connect(await serve(held))
        await client.send(GET + self.EXPECT)
        await held.wait_requests(1)
        held.requests[0].respond(200, b"first")
        assert (await client.answer()).body == b"first"
        assert (await client.answer()).status == 100
        await client.send(b"body")
        await held.wait_requests(2)
        assert held.requests[1].body == b"body"
        held.requests[1].respond(200)

    @pytest.mark.parametrize("expectation", [b"magic", b"100-continue"])
    @pytest.mark.parametrize("pieces", [1, 2])
    async def test_the_body_of_a_refused_expectation_is_no_request(
        self, serve, connect, expectation, pieces
    ):
        """A client that sends it all the same has said how long it is: a proxy would have."""
        seen = []

        def note(request):
            seen.append(request.target)
            request.respond(200)

        client = await connect(await serve(note, limits={"max_body_bytes": 10}))
        inner = b"GET /smuggled HTTP/1.1\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\nExpect: %b\r\n\r\n"
        head %= len(inner), expectation
        if pieces == 1:
            answer = await client.ask(head + inner)
        else:
            answer = await client.ask(head)
            await client.send(inner)
        assert answer.status == (417 if expectation == b"magic" else 413)
        assert answer[b"connection"] == b"close"
        assert await client.is_closed()
        assert seen == []

    async def test_other_expectations_are_refused(self, serve, connect):
        listener = await serve(path)
        for framing in (b"Content-Length: 4", b"Transfer-Encoding: chunked"):
            client = await connect(listener)
            answer = await client.ask(b"POST / HTTP/1.1\r\n%b\r\nExpect: magic\r\n\r\n" % framing)
            TestTooLarge.assert_bare(answer, 417, b"Expectation Failed", close=True)
            assert await client.is_closed()

    async def test_without_a_body_an_expectation_costs_no_connection(self, serve, connect):
        client = await connect(await serve(path))
        answer = await client.ask(b"GET / HTTP/1.1\r\nExpect: magic\r\n\r\n")
        TestTooLarge.assert_bare(answer, 417, b"Expectation Failed")
        assert (await client.ask(b"GET /next HTTP/1.1\r\n\r\n")).body == b"/next"

    async def test_http_1_0_has_no_expectations(self, serve, connect):
        client = await connect(await serve(echo))
        answer = await client.ask(
            b"POST / HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody"
        )
        assert answer.body == b"body"


class TestTime:
    async def test_slow_head(self, serve, connect):
        """Slow loris: a head that arrives byte by byte does not renew its time."""
        client = await connect(await serve(hello, limits={"header_timeout_s": 0.2}))

        async def trickle():
            while True:
                await client.send(b"GET / HTTP/1.1\r\nX-A: "[:1])
                await asyncio.sleep(0.02)

        await client.send(b"GET / HTTP/1.1\r\nX-A: ")
        trickling = asyncio.ensure_future(trickle())
        answer = await client.answer()
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        assert (answer.status, answer[b"connection"]) == (408, b"close")

    async def test_slow_body(self, serve, connect):
        client = await connect(await serve(hello, limits={"body_timeout_s": 0.2}))
        answer = await client.ask(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        assert answer.status == 408
        assert await client.is_closed()

    async def test_idle_connection_is_closed_without_an_answer(self, serve, connect):
        listener = await serve(hello, limits={"keep_alive_timeout_s": 0.2})
        fresh, used = await connect(listener), await connect(listener)
        assert (await used.ask(GET)).status == 200
        assert await fresh.is_closed()
        assert await used.is_closed()

    async def test_time_does_not_run_while_the_server_works(self, serve, connect):
        limits = {"keep_alive_timeout_s": 0.1, "header_timeout_s": 0.1, "body_timeout_s": 0.1}
        held = Held()
        listener = await serve(held, limits=limits)
        client = await connect(listener)
        await client.send(GET)
        (request,) = await held.wait_requests(1)
        (connection,) = listener.connections
        connection.check_time(listener.now_s + 1000)
        request.respond(200, b"slow")
        assert (await client.answer()).body == b"slow"

    async def test_client_that_takes_nothing_is_cut_off(self, serve, connect):
        gone = asyncio.Event()

        async def handler(request):
            request.on_disconnect = gone.set
            request.start_stream(200)
            while True:
                request.send_chunk(bytes(100_000))
                await request.wait_writable()

        listener = await serve(handler, limits={"write_timeout_s": 0.2})
        client = await connect(listener)
        client.writer.transport.pause_reading()
        await client.send(GET)
        await gone.wait()

    async def test_swallowed_body_that_never_comes(self, serve, connect):
        listener = await serve(hello, limits={"max_body_bytes": 10, "body_timeout_s": 0.2})
        client = await connect(listener)
        assert (await client.ask(TOO_LONG + b"\r\n")).status == 413
        assert await client.is_closed()


class TestStop:
    async def test_idle_connections_are_closed_and_busy_ones_finish(self, serve, connect):
        held = Held()
        listener = await serve(held)
        idle, busy = await connect(listener), await connect(listener)
        await idle.send(GET)
        (first,) = await held.wait_requests(1)
        first.respond(200)
        await idle.answer()
        await busy.send(GET)
        await held.wait_requests(2)
        stopping = asyncio.ensure_future(listener.stop(grace_s=30))
        assert await idle.is_closed()
        held.requests[1].respond(200, b"done")
        answer = await busy.answer()
        assert (answer.body, answer[b"connection"]) == (b"done", b"close")
        assert await busy.is_closed()
        await stopping
        with pytest.raises(ConnectionError):
            await connect(listener)

    async def test_deadline_cuts_what_is_left(self, serve, connect):
        started = asyncio.Event()
        outcome = []

        async def handler(request):
            request.on_disconnect = lambda: outcome.append("told")
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise

        listener = await serve(handler)
        client = await connect(listener)
        await client.send(GET)
        await started.wait()
        await listener.stop(grace_s=0.01)
        assert await client.is_closed()
        assert outcome == ["told", "cancelled"]
        assert not listener.connections
        assert not listener.tasks

    async def test_cancelled_handler_gives_an_error(self, serve, connect):
        async def handler(request):
            asyncio.current_task().cancel()
            await asyncio.Event().wait()

        errors = []

        def on_error(request, error):
            errors.append(error)
            request.respond(500)

        client = await connect(await serve(handler, on_error=on_error))
        assert (await client.ask(GET)).status == 500
        assert isinstance(errors[0], RequestCancelled)


async def test_transport_sends_small_packets_at_once(serve, connect):
    listener = await serve(hello)
    client = await connect(listener)
    await client.ask(GET)
    (connection,) = listener.connections
    sock = connection.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_pipelining_client_lets_others_in_between(serve, connect):
    """A read full of requests that are answered at once must not hold up the loop."""
    order = []

    def handler(request):
        order.append(request.path)
        request.respond(200)

    listener = await serve(handler)
    greedy, modest = await connect(listener), await connect(listener)
    greedy.writer.write(b"GET /g HTTP/1.1\r\n\r\n" * 5000)
    modest.writer.write(b"GET /m HTTP/1.1\r\n\r\n")
    assert (await modest.answer()).status == 200
    assert order.index("/m") < 5000
    for _ in range(5000):
        assert (await greedy.answer()).status == 200
