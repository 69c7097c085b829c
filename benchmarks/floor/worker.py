"""The floor's worker: reads a batch, echoes it, blocking. Usage: worker.py SOCKET_FD echo|stream"""

import socket
import sys

CHUNKS = [b"chunk-%02d-%s\n" % (number, b"x" * 20) for number in range(20)]


def size(body):
    return len(body).to_bytes(4, "big")


def main(fd, task):
    connection = socket.socket(fileno=fd)
    stream = connection.makefile("rb", buffering=1 << 16)
    while head := stream.read(4):
        bodies = [
            stream.read(int.from_bytes(stream.read(4), "big"))
            for _ in range(int.from_bytes(head, "big"))
        ]
        if task == "echo":
            pieces = [piece for body in bodies for piece in (size(body), body)]
            connection.sendall(b"".join(pieces))
        else:
            # As a handler does it: every chunk leaves when it is made.
            for chunk in [*CHUNKS, b""]:
                connection.sendall(size(chunk) + chunk)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
