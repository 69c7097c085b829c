"""What is said of a worker that failed: the same everywhere, and no more than is known."""

from __future__ import annotations

import pytest

from ts_frontend.workers.failure import (
    MAX_EXCEPTION_CHARS,
    FailureKind,
    WorkerFailure,
    last_exception,
    oom_kills,
)

K = FailureKind
# A failure -> its text, its label for metrics, whether memory had run out.
FAILURES = [
    (WorkerFailure(K.SIGNAL, "gone", signal=11), "gone (ended by signal 11)", False),
    (WorkerFailure(K.SIGNAL, "gone", signal=9), "gone (ended by signal 9)", True),
    (
        WorkerFailure(K.OUT_OF_MEMORY, "gone", signal=9),
        "gone (ended by signal 9, out of memory)",
        True,
    ),
    (WorkerFailure(K.EXIT, "gone", exit_code=3), "gone (exit code 3)", False),
    (WorkerFailure(K.EXIT, "gone", exit_code=137), "gone (exit code 137)", True),
    (
        WorkerFailure(K.EXIT, "gone", exit_code=1, exception="ImportError: no"),
        "gone (exit code 1): ImportError: no",
        False,
    ),
    (WorkerFailure(K.LOAD_REFUSED, "no", exit_code=1, code=500), "no", False),
    (WorkerFailure(K.LOAD_REFUSED, "no", exit_code=1, code=507), "no", True),
    (WorkerFailure(K.NO_REPLY, "late"), "late", False),
]


@pytest.mark.parametrize(("failure", "text", "is_out_of_memory"), FAILURES)
def test_a_failure_in_words(failure: WorkerFailure, text: str, is_out_of_memory: bool) -> None:
    assert str(failure) == text
    assert failure.is_out_of_memory is is_out_of_memory


def test_labels_are_few() -> None:
    """Reasons have no end; a metric's label may not have one of them."""
    labels = [failure.label for failure, _, _ in FAILURES]
    assert labels == [
        "ended by signal 11",
        "ended by signal 9",
        "ended by signal 9, out of memory",
        "exit code 3",
        "out_of_memory",
        "exit code 1",
        "load_refused",
        "out_of_memory",
        "no_reply",
    ]


# Kind of a failure -> whether a single request, and a batch of several, may run again after it.
RETRIES = {
    K.EXIT: (True, True),
    K.SIGNAL: (True, True),
    K.OUT_OF_MEMORY: (True, True),
    K.DISCONNECTED: (True, True),
    K.UNRESPONSIVE: (True, True),
    K.BAD_REPLY: (False, True),  # the same request would break the protocol again
    K.NO_REPLY: (False, False),  # and take as long again
    K.CANCEL_IGNORED: (False, False),
}


@pytest.mark.parametrize("kind", RETRIES, ids=lambda kind: kind.value)
def test_what_may_run_again(kind: FailureKind) -> None:
    failure = WorkerFailure(kind, "")
    assert (failure.may_be_retried(1), failure.may_be_retried(2)) == RETRIES[kind]


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "x.py", line 1, in <module>',
    "    import nothing",
    "ModuleNotFoundError: No module named 'nothing'",
]
PRINTED = [
    ([], ""),
    (["all is well", "an Error: in the text"], ""),
    (TRACEBACK, "ModuleNotFoundError: No module named 'nothing'"),
    ([*TRACEBACK, "later", "torch.cuda.OutOfMemoryError: no"], "torch.cuda.OutOfMemoryError: no"),
    (["KeyboardInterrupt"], "KeyboardInterrupt"),
    (["SystemExit: 3", "bye"], "SystemExit: 3"),
]


@pytest.mark.parametrize(("lines", "exception"), PRINTED)
def test_the_last_exception_among_printed_lines(lines: list[str], exception: str) -> None:
    assert last_exception(lines) == exception


def test_a_long_exception_is_cut() -> None:
    assert len(last_exception(["ValueError: " + "x" * 10_000])) == MAX_EXCEPTION_CHARS


def test_the_kernels_count_is_a_number_or_nothing() -> None:
    count = oom_kills()
    assert count is None or count >= 0


def at_load(**facts: object) -> WorkerFailure:
    return WorkerFailure(K.EXIT, "gone", exit_code=1, is_at_load=True, **facts)


# A failure -> its cause in a word, and whether the same archive would fail that way again.
CAUSES = [
    (WorkerFailure(K.SIGNAL, "gone", signal=11), "segfault", False),
    (WorkerFailure(K.SIGNAL, "gone", signal=6), "signal", False),
    (WorkerFailure(K.SIGNAL, "gone", signal=9), "out_of_memory", False),
    (WorkerFailure(K.SIGNAL, "gone", signal=24), "cpu_time", False),
    (WorkerFailure(K.LOAD_REFUSED, "no", exit_code=1, code=507), "out_of_memory", False),
    (WorkerFailure(K.LOAD_REFUSED, "no", exit_code=1, code=500), "exit", False),
    (WorkerFailure(K.EXIT, "gone", exit_code=3), "exit", False),
    (at_load(exception="ValueError: odd"), "exception", False),
    (at_load(exception="MemoryError"), "out_of_memory", False),
    (at_load(exception="ImportError: no"), "import_error", True),
    (at_load(exception="ModuleNotFoundError: No module named 'x'"), "import_error", True),
    (at_load(exception="IndentationError: unindent"), "syntax_error", True),
    (at_load(exception="FileNotFoundError: [Errno 2] model.pt"), "missing_file", True),
    (at_load(exception="ts.model_loader.BadHandlerError: none"), "bad_handler", True),
    (at_load(exception="ts.containment.NotContainedError: no"), "not_contained", True),
    # Of a worker that had loaded its model once, it is no lasting fault of the archive.
    (WorkerFailure(K.EXIT, "gone", exit_code=1, exception="ImportError: no"), "exception", False),
    (WorkerFailure(K.NO_REPLY, "late"), "no_reply", False),
    (WorkerFailure(K.LOAD_TIMEOUT, "late"), "load_timeout", False),
]


@pytest.mark.parametrize(("failure", "word", "is_lasting"), CAUSES)
def test_causes(failure: WorkerFailure, word: str, is_lasting: bool) -> None:
    assert (failure.cause_word, failure.is_lasting) == (word, is_lasting)


def test_a_lasting_cause_is_its_own_label() -> None:
    assert {failure.label for failure, _, is_lasting in CAUSES if is_lasting} == {
        "import_error",
        "syntax_error",
        "missing_file",
        "bad_handler",
        "not_contained",
    }
