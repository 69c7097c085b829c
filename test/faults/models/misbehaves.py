"""Answers the first line of the body, after doing what the second line says (nothing if absent)."""

import atexit
import ctypes
import os
import resource
import sys
import threading
import time


def handle(data, context):
    if data is None:
        return None
    return [_answer(bytes(row.get("data") or row.get("body") or b"").decode()) for row in data]


def _answer(text):
    mark, _, rest = text.partition("\n")
    what, _, argument = rest.partition(" ")
    if what:
        mark = _DEEDS[what](mark, int(argument or 0))
    return mark


def _segfault(mark, argument):
    ctypes.string_at(0)


def _exit_at_once(mark, argument):
    os._exit(argument)


def _exit(mark, argument):
    sys.exit(argument)


def _exit_slowly(mark, argument):
    """Exit with hooks that take a moment, as on a full machine those of many libraries do."""
    atexit.register(time.sleep, 1.5)
    sys.exit(argument)


def _exit_with_a_thread_left(mark, argument):
    """Exit while a thread runs that the interpreter would wait for."""
    threading.Thread(target=time.sleep, args=(3600,)).start()
    sys.exit(argument)


def _hang(mark, argument):
    time.sleep(argument or 3600)
    return mark


def _hog(mark, argument):
    """Ask for more memory than this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
    try:
        bytearray(16 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return mark


_kept = []


def _leak(mark, mebibytes):
    _kept.append(b"x" * (mebibytes << 20))
    return mark


def _huge(mark, size):
    return mark.ljust(size)


def _babble(mark, count):
    """Print many times, and never a line end."""
    for _ in range(count):
        sys.stdout.write("no line ends here; ")
    sys.stdout.flush()
    return mark


def _chatter(mark, count):
    for number in range(count):
        sys.stdout.write(f"line {number}\n")
    return mark


_DEEDS = {
    "segfault": _segfault,
    "_exit": _exit_at_once,
    "exit": _exit,
    "exit_slowly": _exit_slowly,
    "exit_with_a_thread_left": _exit_with_a_thread_left,
    "hang": _hang,
    "hog": _hog,
    "leak": _leak,
    "huge": _huge,
    "babble": _babble,
    "chatter": _chatter,
}
