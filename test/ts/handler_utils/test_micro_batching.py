import threading

import pytest

from ts.handler_utils.micro_batching import HANDLER_METHODS, MicroBatching


class Metrics:
    def __init__(self):
        self.times = []

    def add_time(self, name, value, idx=None, unit="ms"):
        self.times.append((name, idx, unit))


class Context:
    def __init__(self, **header):
        self.metrics = Metrics()
        self.header = header


class Steps:
    """Marks each row with the stages it went through; rows "fail-<stage>" fail there."""

    def __init__(self):
        self.sizes = []
        self.context = None

    def _run(self, stage, rows):
        self.sizes.append(len(rows))
        for row in rows:
            if row.startswith(f"fail-{stage}"):
                raise ValueError(row)
        return [f"{row}.{stage[:3]}" for row in rows]

    def preprocess(self, rows):
        return self._run("preprocess", rows)

    def inference(self, rows):
        return self._run("inference", rows)

    def postprocess(self, rows):
        return self._run("postprocess", rows)

    def explain_handle(self, data_preprocess, raw_data):
        return [("explained", data_preprocess, raw_data)]

    def describe_handle(self):
        return {"author": "me"}

    def _infer_with_profiler(self, data):
        return [f"profiled {row}" for row in data], None

    def _is_explain(self):
        return self.context.header.get("explain") == "True"

    def _is_describe(self):
        return self.context.header.get("describe") == "True"


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def make(steps):
    """A started pipeline over `steps`; its threads end with the test."""
    made = []

    def start(*args, **kwargs):
        made.append(MicroBatching(steps, *args, **kwargs))
        return made[-1]

    yield start
    for micro_batching in made:
        micro_batching.shutdown()


ROWS = [f"row{index}" for index in range(7)]
DONE = [f"{row}.pre.inf.pos" for row in ROWS]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_answers_keep_their_order(make, size, threads):
    micro_batching = make(size, dict.fromkeys(HANDLER_METHODS, threads))
    for _ in range(5):
        assert micro_batching(ROWS, Context()) == DONE


def test_a_batch_is_cut_into_micro_batches(make, steps):
    make(3)(ROWS, Context())
    assert sorted(steps.sizes) == sorted([3, 3, 1] * 3)


def test_no_rows_give_no_answers(make):
    assert make()([], Context()) == []


@pytest.mark.parametrize("stage", HANDLER_METHODS)
def test_a_failing_stage_fails_the_batch_and_not_the_pipeline(make, stage):
    micro_batching = make(2)
    # Every stage appends to a row, which keeps the beginning that makes it fail.
    rows = ["a", "b", f"fail-{stage}", "d"]
    with pytest.raises(ValueError, match=f"fail-{stage}"):
        micro_batching(rows, Context())
    assert micro_batching(ROWS, Context()) == DONE
    assert all(
        w.thread.is_alive() for group in micro_batching.thread_groups.values() for w in group
    )


def test_the_earliest_failure_is_raised(make):
    rows = ["fail-postprocess-0", "a", "fail-preprocess-2"]
    with pytest.raises(ValueError, match="fail-postprocess-0"):
        make(1)(rows, Context())


def test_even_a_handler_that_exits_is_reported(make, steps):
    def leave(rows):
        raise SystemExit(3)

    micro_batching = make()
    steps.inference = leave
    with pytest.raises(SystemExit):
        micro_batching(ROWS, Context())


def test_stages_run_at_the_same_time(make, steps):
    # The first micro batch can only be postprocessed while the second is in inference, and so on.
    meet = threading.Barrier(2, timeout=30)

    def wait_for_the_other(rows):
        meet.wait()
        return rows

    steps.inference = wait_for_the_other
    assert make(1, {"inference": 2})(["a", "b"], Context()) == ["a.pre.pos", "b.pre.pos"]


def test_each_thread_knows_its_micro_batch(make, steps):
    micro_batching = make(2)
    steps.inference = lambda rows: [micro_batching.get_micro_batch_idx()] * len(rows)
    steps.postprocess = lambda rows: rows
    assert micro_batching(["a", "b", "c"], Context()) == [0, 0, 1]


def test_several_batches_at_once_do_not_mix(make):
    micro_batching = make(1, dict.fromkeys(HANDLER_METHODS, 2))
    answers = {}

    def run(name):
        rows = [f"{name}{index}" for index in range(20)]
        answers[name] = micro_batching.handle(rows) == [f"{row}.pre.inf.pos" for row in rows]

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys("abcd", True)


class TestParallelism:
    def test_default_and_copy(self, make):
        micro_batching = make()
        assert micro_batching.parallelism == dict.fromkeys(HANDLER_METHODS, 1)
        micro_batching.parallelism["inference"] = 9
        assert micro_batching.parallelism["inference"] == 1

    def test_threads_start_and_stop(self, make):
        micro_batching = make(parallelism={"preprocess": 3})
        assert {k: len(v) for k, v in micro_batching.thread_groups.items()} == {
            "preprocess": 3,
            "inference": 1,
            "postprocess": 1,
        }
        threads = [worker.thread for worker in micro_batching.thread_groups["preprocess"]]
        micro_batching.parallelism = {"preprocess": 1, "inference": 2}
        assert micro_batching.parallelism == {"preprocess": 1, "inference": 2, "postprocess": 1}
        assert [thread.is_alive() for thread in threads] == [True, False, False]
        assert micro_batching(ROWS, Context()) == DONE

    def test_no_threads_is_allowed_but_cannot_serve(self, make):
        micro_batching = make()
        micro_batching.parallelism = {"inference": 0}
        with pytest.raises(RuntimeError, match="no threads for inference"):
            micro_batching(ROWS, Context())
        micro_batching.parallelism = {"inference": 1}
        assert micro_batching(ROWS, Context()) == DONE

    @pytest.mark.parametrize("wrong", [{"nope": 1}, {"inference": -1}, {"inference": "2"}])
    def test_wrong_values_change_nothing(self, make, wrong):
        micro_batching = make()
        with pytest.raises(ValueError, match=r"stage|threads"):
            micro_batching.parallelism = {"preprocess": 2, **wrong}
        assert micro_batching.parallelism == dict.fromkeys(HANDLER_METHODS, 1)

    def test_shutdown_ends_all_threads(self, make):
        micro_batching = make(parallelism=dict.fromkeys(HANDLER_METHODS, 2))
        threads = [w.thread for group in micro_batching.thread_groups.values() for w in group]
        micro_batching.shutdown()
        assert not any(thread.is_alive() for thread in threads)
        assert micro_batching.thread_groups == {name: [] for name in HANDLER_METHODS}


class TestCall:
    def test_the_handler_time_is_emitted(self, make, steps):
        context = Context()
        make()(ROWS, context)
        assert context.metrics.times == [("HandlerTime", None, "ms")]
        assert steps.context is context

    def test_describe_explain_and_profiler(self, make, monkeypatch):
        micro_batching = make()
        assert micro_batching([{}], Context(describe="True")) == [{"author": "me"}]
        assert micro_batching(["a"], Context(explain="True")) == [("explained", ["a.pre"], ["a"])]
        monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
        assert micro_batching(["a"], Context()) == ["profiled a"]

    def test_a_handler_can_use_it_as_its_handle(self, steps, make):
        steps.handle = make(2)
        assert steps.handle(ROWS, Context()) == DONE
