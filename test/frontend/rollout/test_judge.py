"""When a new version may go on, and when it is taken back, on a clock that the test moves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # fakes.py

from fakes import FakeClock

from ts_frontend.core.traffic import WINDOW, Figures
from ts_frontend.rollout.judge import Judgement, Ruling, judge
from ts_frontend.rollout.plan import RolloutPlan


class Trial:
    """Two versions with what became of their requests."""

    def __init__(self, **limits: object) -> None:
        self.clock = FakeClock()
        self.new = Figures(clock=self.clock)
        self.current = Figures(clock=self.clock)
        self.plan = RolloutPlan(version="2", **limits)
        self.began_s = self.clock()
        self.ready_workers = 1

    def judge(self, step_s: float = 60) -> Judgement:
        return judge(
            self.plan,
            self.new,
            self.current,
            ready_workers=self.ready_workers,
            elapsed_s=self.clock() - self.began_s,
            step_s=step_s,
        )

    @property
    def ruling(self) -> Ruling:
        return self.judge().ruling


def note(figures: Figures, count: int, seconds: float = 0.01, failure: str = "") -> None:
    for _ in range(count):
        figures.note(seconds, failure)


def test_a_step_ends_after_its_time_with_enough_requests() -> None:
    trial = Trial(min_requests=20)
    note(trial.new, 20)
    trial.clock.advance(59)
    assert trial.judge() == Judgement(Ruling.WAIT, "59 of 60 s")
    trial.clock.advance(1)
    assert trial.judge() == Judgement(Ruling.NEXT)


def test_a_step_without_enough_requests_goes_on() -> None:
    trial = Trial(min_requests=20)
    note(trial.new, 19)
    trial.clock.advance(1000)
    assert trial.judge() == Judgement(Ruling.WAIT, "19 of 20 requests")
    note(trial.new, 1)
    assert trial.ruling is Ruling.NEXT


def test_time_alone_can_decide() -> None:
    trial = Trial(min_requests=0)
    assert trial.ruling is Ruling.WAIT
    trial.clock.advance(60)
    assert trial.ruling is Ruling.NEXT


def test_too_many_failures_end_it_at_once() -> None:
    trial = Trial(min_requests=20, max_error_rate=0.1)
    note(trial.new, 18)
    note(trial.new, 2, failure="Prediction failed")
    assert trial.ruling is Ruling.WAIT  # a tenth is allowed
    note(trial.new, 1, failure="Prediction failed")
    judgement = trial.judge()
    assert judgement.ruling is Ruling.FAIL
    assert "3 of 21 requests failed" in judgement.reason
    assert judgement.reason.endswith("the last: Prediction failed")


def test_before_the_least_number_of_requests_nothing_is_judged() -> None:
    trial = Trial(min_requests=20, max_error_rate=0)
    note(trial.new, 19, failure="Prediction failed")
    assert trial.ruling is Ruling.WAIT
    note(trial.new, 1, failure="Prediction failed")
    assert trial.ruling is Ruling.FAIL


def test_a_model_that_fails_now_and_then_is_measured_by_itself() -> None:
    trial = Trial(max_error_rate=0.05)
    note(trial.current, 80)
    note(trial.current, 20, failure="Prediction failed")
    note(trial.new, 76)
    note(trial.new, 24, failure="Prediction failed")
    assert trial.ruling is Ruling.WAIT
    note(trial.new, 10, failure="Prediction failed")
    assert trial.ruling is Ruling.FAIL


@pytest.mark.parametrize(("slow", "ruling"), [(1, Ruling.WAIT), (2, Ruling.FAIL)])
def test_the_99_percent_latency_has_a_limit(slow: int, ruling: Ruling) -> None:
    trial = Trial(max_p99_ms=100)
    note(trial.new, 100 - slow, 0.09)
    note(trial.new, slow, 0.2)
    assert trial.ruling is ruling


def test_the_latency_is_compared_with_the_current_version() -> None:
    trial = Trial(max_p99_ratio=2)
    note(trial.new, 50, 0.05)
    assert trial.ruling is Ruling.WAIT  # there is nothing to compare with
    note(trial.current, 50, 0.03)
    assert trial.ruling is Ruling.WAIT
    note(trial.new, 10, 0.07)
    judgement = trial.judge()
    assert judgement.ruling is Ruling.FAIL
    assert "2 times the current version's 30 ms" in judgement.reason


def test_the_narrower_limit_counts() -> None:
    trial = Trial(max_p99_ratio=2, max_p99_ms=50)
    note(trial.current, 50, 0.03)
    note(trial.new, 50, 0.055)
    assert "max_p99_ms" in trial.judge().reason


def test_requests_that_hang_have_a_latency_already() -> None:
    trial = Trial(max_p99_ms=500, min_requests=3)
    for _ in range(3):
        trial.new.under_way[object()] = trial.clock()
    trial.clock.advance(0.4)
    assert trial.ruling is Ruling.WAIT
    trial.clock.advance(0.2)
    judgement = trial.judge()
    assert judgement.ruling is Ruling.FAIL
    assert "600 ms" in judgement.reason


def test_without_a_ready_worker_it_fails_whatever_the_figures() -> None:
    trial = Trial()
    note(trial.new, 1, failure="Worker died.")
    trial.ready_workers = 0
    assert trial.judge() == Judgement(
        Ruling.FAIL, "no worker of the new version is ready: Worker died."
    )


def test_figures_are_of_the_newest_requests() -> None:
    figures = Figures()
    note(figures, 10, failure="Prediction failed")
    note(figures, WINDOW, 0.002)
    assert figures.summary() == (WINDOW, 0, 2.0, 2.0)
    figures.restart()
    assert figures.summary() == (0, 0, 0.0, 0.0)
