"""Addresses, sockets and what all connections of a listener share."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import pytest
from fakes import wait_until

from ts_frontend.http.access_log import AccessLog
from ts_frontend.http.listener import BindFailed, Listener, plain_transport_error
from ts_frontend.http.router import Route, Router
from ts_frontend.settings.addresses import parse_address

GET = b"GET / HTTP/1.1\r\n\r\n"


def hello(request):
    request.respond(200, b"hello")


async def test_port_0_becomes_a_real_one(serve, connect):
    listener = await serve(hello)
    assert listener.address.port
    assert str(listener.address) == f"http://127.0.0.1:{listener.address.port}"
    assert "listening" in repr(listener)


async def test_port_taken(serve):
    listener = await serve(hello)
    second = Listener(listener.address, Router())
    with pytest.raises(BindFailed, match=f"Failed to bind to address: {listener.address}"):
        await second.start()
    await second.stop()


async def test_ipv6(serve, connect):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = await serve(hello, address=parse_address("http://[::1]:0"))
    except BindFailed:
        pytest.skip("no IPv6 loopback here")
    assert (await (await connect(listener)).ask(GET)).body == b"hello"


class TestUnix:
    async def test_serves_and_removes_its_file(self, serve, connect, tmp_path):
        seen = []

        def handler(request):
            seen.append(request.remote)
            hello(request)

        path = tmp_path / "s.sock"
        listener = await serve(handler, address=parse_address(f"unix:{path}"))
        client = await connect(listener)
        assert (await client.ask(GET)).body == b"hello"
        assert seen == ["unix"]
        await listener.stop()
        assert not path.exists()

    async def test_stale_socket_is_replaced(self, serve, connect, tmp_path):
        path = tmp_path / "s.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        listener = await serve(hello, address=parse_address(f"unix:{path}"))
        assert (await (await connect(listener)).ask(GET)).body == b"hello"

    async def test_path_taken_over_by_a_successor_is_left(self, serve, connect, tmp_path):
        address = parse_address(f"unix:{tmp_path / 's.sock'}")
        former = await serve(hello, address=address)
        successor = await serve(hello, address=address)
        await former.stop()
        assert (await (await connect(successor)).ask(GET)).body == b"hello"

    async def test_other_files_are_left_alone(self, tmp_path):
        path = tmp_path / "precious"
        path.write_text("data")
        listener = Listener(parse_address(f"unix:{path}"), Router())
        with pytest.raises(BindFailed):
            await listener.start()
        await listener.stop()
        assert path.read_text() == "data"

    async def test_client_that_leaves_is_noticed(self, serve, connect, tmp_path):
        gone, arrived = asyncio.Event(), asyncio.Event()

        def handler(request):
            request.on_disconnect = gone.set
            arrived.set()

        path = tmp_path / "s.sock"
        client = await connect(await serve(handler, address=parse_address(f"unix:{path}")))
        await client.send(GET)
        await arrived.wait()
        await client.close()
        await gone.wait()


class TestTls:
    @pytest.fixture
    def contexts(self, certificate):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*certificate)
        client = ssl.create_default_context(cafile=certificate[0])
        return server, client

    @pytest.fixture
    async def listener(self, serve, contexts):
        routes = [
            Route("GET", "/", hello),
            Route("POST", "/echo", lambda request: request.respond(200, request.body)),
        ]
        address = parse_address("https://127.0.0.1:0")
        return await serve(
            *routes,
            address=address,
            ssl=contexts[0],
            limits={"header_timeout_s": 0.5, "max_body_bytes": 3_000_000},
        )

    async def test_serves(self, listener, connect, contexts):
        client = await connect(listener, ssl=contexts[1])
        for _ in range(2):
            assert (await client.ask(GET)).body == b"hello"
        body = os.urandom(2_000_000)
        head = b"POST /echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert (await client.ask(head + body)).body == body

    async def test_closes_after_an_error(self, listener, connect, contexts):
        client = await connect(listener, ssl=contexts[1])
        assert (await client.ask(b"NONSENSE\r\n\r\n")).status == 400
        assert await client.is_closed()

    async def test_plain_http_is_told_so(self, listener, connect):
        client = await connect(listener)
        answer = await client.ask(GET)
        assert (answer.status, answer[b"connection"]) == (403, b"close")
        assert answer[b"content-type"] == b"application/json"
        assert answer.body == (
            b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'
        )
        assert b"x-request-id" in answer
        assert await client.is_closed()

    async def test_silent_and_broken_clients_are_dropped(self, listener, connect, contexts):
        silent, broken = await connect(listener), await connect(listener)
        await broken.send(b"\x16\x03\x01\x00\x05nonse")
        assert await silent.is_closed()
        await broken.reader.read()
        client = await connect(listener, ssl=contexts[1])
        assert (await client.ask(GET)).status == 200

    async def test_client_that_leaves_is_noticed(self, serve, connect, contexts):
        gone, arrived = asyncio.Event(), asyncio.Event()

        def handler(request):
            assert request.scheme == "https"
            request.on_disconnect = gone.set
            arrived.set()

        address = parse_address("https://127.0.0.1:0")
        client = await connect(
            await serve(handler, address=address, ssl=contexts[0]), ssl=contexts[1]
        )
        await client.send(GET)
        await arrived.wait()
        client.writer.transport.abort()
        await gone.wait()

    def test_settings_must_fit_the_address(self, contexts):
        with pytest.raises(ValueError, match="TLS"):
            Listener(parse_address("https://h:1"), Router())
        with pytest.raises(ValueError, match="TLS"):
            Listener(parse_address("http://h:1"), Router(), ssl=contexts[0])


async def test_connections_beyond_the_limit_are_refused(serve, connect, until):
    listener = await serve(hello, limits={"max_connections": 2})
    clients = [await connect(listener) for _ in range(2)]
    for client in clients:
        await client.ask(GET)
    refused = await connect(listener)
    assert (await refused.answer()).status == 503
    assert await refused.is_closed()
    await clients[0].close()
    await until(lambda: len(listener.connections) == 1)
    assert (await (await connect(listener)).ask(GET)).status == 200


async def test_answers_are_counted_and_logged(serve, connect):
    lines, counted = [], []
    log = AccessLog(lines.extend)
    listener = await serve(
        Route("GET", "/a b", hello),
        access_log=log,
        on_response=lambda status, seconds: counted.append((status, seconds)),
    )
    client = await connect(listener)
    port = client.writer.get_extra_info("sockname")[1]
    await client.ask(b"GET /a%20b?q=1 HTTP/1.1\r\n\r\n")
    await client.ask(b"POST /nope HTTP/1.0\r\n\r\n")
    broken = await connect(listener)
    await broken.ask(b"NONSENSE\r\n\r\n")
    log.flush()
    assert lines[0] == f'/127.0.0.1:{port} "GET /a%20b?q=1 HTTP/1.1" 200 0'
    assert lines[1] == f'/127.0.0.1:{port} "POST /nope HTTP/1.0" 404 0'
    assert lines[2].endswith('"- / HTTP/1.1" 400 0')
    assert [status for status, _ in counted] == [200, 404, 400]
    assert all(0 <= seconds < 1 for _, seconds in counted)


async def test_stream_is_counted_when_it_ends(serve, connect):
    counted = []
    requests = asyncio.Queue()
    listener = await serve(
        requests.put_nowait, on_response=lambda status, seconds: counted.append(status)
    )
    client = await connect(listener)
    await client.send(GET)
    request = await requests.get()
    request.start_stream(201)
    request.send_chunk(b"x")
    assert counted == []
    request.end_stream()
    assert counted == [201]
    await client.answer()
    await client.send(GET)
    request = await requests.get()
    request.start_stream(202)
    gone = asyncio.Event()
    request.on_disconnect = gone.set
    client.writer.transport.abort()
    await gone.wait()
    assert counted == [201, 202]


async def test_a_listener_that_stops_lacks_no_descriptors(serve, connect, caplog):
    """Its socket is closed by then, which is no sign of a limit."""
    requests = asyncio.Queue()
    # Such a limit makes it look after its connections every ten milliseconds.
    listener = await serve(requests.put_nowait, limits={"keep_alive_timeout_s": 0.04})
    client = await connect(listener)
    await client.send(GET)
    request = await requests.get()
    stopping = asyncio.ensure_future(listener.stop(20))
    await wait_until(lambda: listener.is_stopping)
    seen_s = listener.now_s
    await wait_until(lambda: listener.now_s > seen_s + 0.02)
    request.respond(200)
    await client.answer()
    await stopping
    assert caplog.records == []


def test_transport_errors_have_the_error_body():
    assert plain_transport_error(400, "Invalid HTTP message.") == (
        b'{\n  "code": 400,\n  "type": "BadRequestException",\n'
        b'  "message": "Invalid HTTP message."\n}\n'
    )
