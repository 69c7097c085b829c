import logging

import pytest

from ts.protocol.log_lines import mark_level, split_level


def test_each_line_of_a_record_keeps_its_level() -> None:
    marked = mark_level("went wrong\nTraceback\n  at home", logging.ERROR)
    assert [split_level(line) for line in marked.split("\n")] == [
        (logging.ERROR, "went wrong"),
        (logging.ERROR, "Traceback"),
        (logging.ERROR, "  at home"),
    ]


@pytest.mark.parametrize("line", ["", "plain", "\x1e", "\x1e40", "\x1eno\x1etext", "\x1e9999\x1ex"])
def test_what_is_not_marked_stays_as_it_is(line: str) -> None:
    assert split_level(line) == (None, line)
