"""The floor's frontend: httptools on an event loop, one Unix socket to one worker, nothing else.

No routes, no limits, no timeouts, no logs, no errors: what is left is the price of HTTP, of one hop
to another process and of Python. Usage: frontend.py PORT BATCH echo|stream
"""

import asyncio
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SOCKET_BUFFER_BYTES = 1 << 20  # fewer turns between the processes for large bodies


class WorkerLink(asyncio.Protocol):
    """A batch is a count, then length and bytes of each body; answers come back alike, in order.
    The next batch is sent while one is running, so that the worker never waits for its frontend.

    A streaming worker answers one request with chunks and ends them with an empty one.
    """

    def __init__(self, batch_size, is_stream):
        self.batch_size = batch_size
        self.finish = self.finish_chunk if is_stream else self.finish_answer
        self.waiting = deque()
        self.running = deque()
        self.buffer = bytearray()

    def connection_made(self, transport):
        self.transport = transport

    def put(self, client, pieces):
        self.waiting.append((client, pieces))
        self.send()

    def send(self):
        if not self.waiting or len(self.running) > self.batch_size:
            return
        count = min(len(self.waiting), self.batch_size)
        pieces = [count.to_bytes(4, "big")]
        for _ in range(count):
            client, body = self.waiting.popleft()
            self.running.append(client)
            pieces += sum(map(len, body)).to_bytes(4, "big"), *body
        self.transport.writelines(pieces)

    def data_received(self, data):
        self.buffer += data
        start, end = 0, len(self.buffer)
        while end - start >= 4:
            stop = start + 4 + int.from_bytes(self.buffer[start : start + 4], "big")
            if stop > end:
                break
            self.finish(self.buffer[start + 4 : stop])
            start = stop
        del self.buffer[:start]
        self.send()

    def finish_answer(self, body):
        self.running.popleft().write(ANSWER % len(body), body)

    def finish_chunk(self, chunk):
        client = self.running[0]
        if not chunk:
            self.running.popleft()
        elif not client.has_begun:
            client.has_begun = True
            client.write(STREAM)
        client.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))


class Client(asyncio.Protocol):
    def __init__(self, link):
        self.link = link
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport):
        self.transport = transport

    def write(self, *pieces):
        if not self.transport.is_closing():  # the client may have left
            self.transport.writelines(pieces)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.pieces = []
        self.has_begun = False

    def on_body(self, body):
        self.pieces.append(body)

    def on_message_complete(self):
        self.link.put(self, self.pieces)


async def main(port, batch_size, task):
    ours, workers = socket.socketpair()
    for end in (ours, workers):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    command = [sys.executable, Path(__file__).with_name("worker.py"), str(workers.fileno()), task]
    worker = subprocess.Popen(command, pass_fds=[workers.fileno()])  # noqa: ASYNC220
    workers.close()
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(
        lambda: WorkerLink(batch_size, task == "stream"), sock=ours
    )
    server = await loop.create_server(lambda: Client(link), "127.0.0.1", port)
    try:
        await server.serve_forever()
    finally:
        worker.kill()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
