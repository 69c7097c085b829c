"""The reply arena: runs of blocks that one side takes and the other frees; memory as passed."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts.protocol.shared_memory import BLOCK_BYTES, ReplyArena, create_memory

BLOCKS = 16


@pytest.fixture
def arena() -> ReplyArena:
    descriptor, memory = create_memory((BLOCKS + 1) * BLOCK_BYTES)
    os.close(descriptor)
    return ReplyArena(memory)


def put(arena: ReplyArena, body: bytes) -> int:
    offset = arena.put(body)
    assert offset is not None
    assert arena.memory[offset : offset + len(body)] == body
    return offset


def test_what_is_put_lies_where_it_says_until_it_is_freed(arena: ReplyArena) -> None:
    first = put(arena, b"a" * (BLOCK_BYTES + 1))
    second = put(arena, b"b" * 10)
    assert second - first == 2 * BLOCK_BYTES
    arena.free(first, BLOCK_BYTES + 1)
    assert put(arena, b"c" * 2 * BLOCK_BYTES) == first
    assert arena.memory[second : second + 10] == b"b" * 10


def test_a_full_arena_takes_nothing_and_a_freed_one_everything(arena: ReplyArena) -> None:
    whole = bytes(BLOCKS * BLOCK_BYTES)
    offset = put(arena, whole)
    assert arena.put(b"1") is None
    arena.free(offset, len(whole))
    assert arena.put(whole + b"1") is None
    assert put(arena, whole) == offset


def test_free_blocks_that_are_apart_do_not_make_a_large_one(arena: ReplyArena) -> None:
    offsets = [put(arena, b"x" * BLOCK_BYTES) for _ in range(BLOCKS)]
    for offset in offsets[::2]:
        arena.free(offset, BLOCK_BYTES)
    assert arena.put(bytes(BLOCK_BYTES + 1)) is None
    put(arena, bytes(BLOCK_BYTES))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6 * BLOCK_BYTES)), max_size=40))
def test_nothing_lies_over_something_else(steps: list[tuple[bool, int]]) -> None:
    arena = ReplyArena(mmap.mmap(-1, (BLOCKS + 1) * BLOCK_BYTES))
    living: list[tuple[int, bytes]] = []
    for number, (frees, size) in enumerate(steps):
        if frees and living:
            offset, body = living.pop(size % len(living))
            arena.free(offset, len(body))
            continue
        body = bytes([number % 255 + 1]) * size
        offset = arena.put(body)
        if offset is not None:
            assert arena.has(offset, size)
            living.append((offset, body))
        for place, expected in living:
            assert arena.memory[place : place + len(expected)] == expected
    for offset, body in living:
        arena.free(offset, len(body))
    assert arena.put(bytes(BLOCKS * BLOCK_BYTES)) is not None


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 10),  # the head
        (BLOCK_BYTES + 1, 10),  # inside a block
        (-BLOCK_BYTES, 10),
        (BLOCK_BYTES, 0),
        (BLOCK_BYTES, -1),
        (BLOCK_BYTES, BLOCKS * BLOCK_BYTES + 1),
        (BLOCKS * BLOCK_BYTES, BLOCK_BYTES + 1),
        ((BLOCKS + 1) * BLOCK_BYTES, 1),
        (2**31 - BLOCK_BYTES, 2**31 - 1),
    ],
)
def test_what_no_put_can_have_given_is_not_there(arena: ReplyArena, offset: int, size: int) -> None:
    assert not arena.has(offset, size)


def test_trimming_keeps_what_is_used_and_drops_the_rest(arena: ReplyArena) -> None:
    gone = put(arena, b"g" * BLOCK_BYTES)
    kept = put(arena, b"k" * BLOCK_BYTES)
    arena.count_taken(7)
    arena.free(gone, BLOCK_BYTES)
    assert not arena.trim()
    assert arena.memory[gone : gone + BLOCK_BYTES] == bytes(BLOCK_BYTES)
    assert arena.memory[kept : kept + BLOCK_BYTES] == b"k" * BLOCK_BYTES
    assert arena.taken == 7
    arena.free(kept, BLOCK_BYTES)
    assert arena.trim()
    assert arena.memory[kept : kept + BLOCK_BYTES] == bytes(BLOCK_BYTES)


def test_nobody_can_take_pages_away_from_under_the_other_side() -> None:
    descriptor, memory = create_memory(BLOCK_BYTES)
    try:
        for size in (0, 4096, 2 * BLOCK_BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
        memory.close()
