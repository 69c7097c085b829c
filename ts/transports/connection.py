"""The worker's connection to its frontend: commands in, whole replies out."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import Any

from ts.protocol.frames import Buffer
from ts.protocol.messages import Command, CommandReader
from ts.protocol.wakefulness import SPIN_VARIABLE, Wakefulness
from ts.transports.shared_memory import SharedMemory
from ts.utils.environment import env_number

RECEIVE_BYTES = 256 * 1024

# How many buffers one system call takes (1024 on Linux).
MAX_BUFFERS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16

# A silence of so long is used to give back memory that large replies have left.
TRIM_AFTER_S = 1.0


class FrontendDisconnected(Exception):
    """The frontend has closed the connection: the usual end of a worker."""


class FrontendConnection:
    """A stream socket whose messages are never mixed up, whichever threads write.

    Handlers see it as `context.cl_socket`; what it does not define is the socket's.
    """

    def __init__(
        self,
        sock: socket.socket,
        shared: SharedMemory | None = None,
        wakefulness: Wakefulness | None = None,
    ) -> None:
        """wakefulness: None for what the environment and this machine allow."""
        self._socket = sock
        self._shared = shared
        self._reader = CommandReader(shared_body=None if shared is None else shared.take)
        self._write_lock = threading.Lock()
        self._arrival = select.poll()
        self._arrival.register(sock, select.POLLIN)
        self._wakefulness = wakefulness or Wakefulness.of_this_machine(
            env_number(SPIN_VARIABLE, 0) / 1e6
        )
        # One buffer for all reads: a fresh one for each would cost more than the call.
        self._space = memoryview(bytearray(RECEIVE_BYTES))

    def receive_command(self) -> Command:
        """Wait for the next command.

        Raises FrontendDisconnected, or ProtocolError for bytes that are no command.
        """
        while (command := self._reader.next()) is None:
            try:
                self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                # Not a blocking read: Linux wakes the reader of a Unix socket also when the other
                # side has read what was sent, for nothing. A poll tells the two apart.
                if self._shared is not None and self._shared.has_garbage:
                    self._wait_and_trim()
                elif self._wakefulness.longest_s:
                    self._wait_awake()
                else:
                    self._arrival.poll()
        return command

    def receive_ready(self) -> None:
        """Take what the socket has, without waiting; `next_command` tells what came of it."""
        try:
            self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return

    def next_command(self) -> Command | None:
        """A command that has already come, or None."""
        return self._reader.next()

    def send(self, buffers: list[Buffer]) -> None:
        """Write one message."""
        try:
            with self._write_lock:
                if len(buffers) > 1 and self._shared is not None:
                    buffers = self._shared.shorten(buffers)
                if len(buffers) == 1:
                    self._socket.sendall(buffers[0])
                else:
                    self._send_vector(buffers)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise FrontendDisconnected(str(error)) from error

    def sendall(self, data: Buffer) -> None:
        """Write one encoded message, as a socket does."""
        with self._write_lock:
            self._socket.sendall(data)

    def fileno(self) -> int:
        return self._socket.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    @property
    def has_garbage(self) -> bool:
        """Whether large replies have left memory that could be given back."""
        return self._shared is not None and self._shared.has_garbage

    def trim(self) -> bool:
        """Give memory of large replies back to the system; whether there is some left to give."""
        if self._shared is not None:
            with self._write_lock:  # not while one is being laid down
                self._shared.trim()
        return self.has_garbage

    def _wait_and_trim(self) -> None:
        """Wait for input, or for a silence to give memory back in."""
        if not self._arrival.poll(TRIM_AFTER_S * 1000):
            self.trim()

    def _wait_awake(self) -> None:
        """Wait for input, at first without sleep where that is worth it."""
        wakefulness = self._wakefulness
        began_s = time.monotonic()
        if wakefulness.begin_wait():
            while time.monotonic() - began_s < wakefulness.longest_s:
                if self._arrival.poll(0):
                    return
                os.sched_yield()  # whoever wants to run on this processor goes first
        self._arrival.poll()
        wakefulness.waited(time.monotonic() - began_s)

    def _receive(self, flags: int) -> None:
        reader = self._reader
        space = reader.body_space
        try:
            if space is not None:
                count = self._socket.recv_into(space, 0, flags)
            else:
                count = self._socket.recv_into(self._space, 0, flags)
        except ConnectionResetError as error:
            raise FrontendDisconnected(str(error)) from error
        if not count:
            raise FrontendDisconnected("end of stream")
        if space is not None:
            space.release()  # the body cannot grow while somebody looks at it
            reader.body_filled(count)
        else:
            reader.feed(self._space[:count])

    def _send_vector(self, buffers: list[Buffer]) -> None:
        waiting = [memoryview(buffer).cast("B") for buffer in buffers]
        first = 0
        while first < len(waiting):
            sent = self._socket.sendmsg(waiting[first : first + MAX_BUFFERS])
            while first < len(waiting) and sent >= len(waiting[first]):
                sent -= len(waiting[first])
                first += 1
            if sent:
                waiting[first] = waiting[first][sent:]
