import asyncio
import logging
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ts_frontend.core.model import ModelId
from ts_frontend.metrics import MetricCatalog, MetricsMode, ServerMetrics, read_catalog
from ts_frontend.metrics.catalog import MetricDefinition, MetricKind

CATALOG = read_catalog(str(Path(__file__).parents[3] / "ts" / "configs" / "metrics.yaml"))
MODEL_LINE = (
    "[METRICS]PredictionTime.Milliseconds:12.5|#ModelName:m,Level:Model|#type:GAUGE"
    "|#hostname:h,1700000000,id1"
)


class Fixture:
    def __init__(self, mode=MetricsMode.LOG, catalog=CATALOG, **options):
        self.server_lines = []
        self.model_lines = []
        self.metrics = ServerMetrics(
            catalog,
            "h",
            mode,
            write_server_line=self.server_lines.append,
            write_model_line=self.model_lines.append,
            clock=lambda: 17.9,
            **options,
        )

    def scrape(self, *names):
        """Samples as `name label=value,...` -> number, read by the Prometheus client's parser."""
        samples = {}
        text = "\n" + self.metrics.render(names)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name
                if f"\n{name}{{" not in text:  # that parser adds the suffix where it is missing
                    name = name.removesuffix("_total")
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                samples[f"{name} {labels}".strip()] = sample.value
        return samples


@pytest.fixture
def make():
    return Fixture


MODES = pytest.mark.parametrize("mode", list(MetricsMode))


@MODES
def test_responses_are_counted_by_class_in_every_mode(make, mode):
    fixture = make(mode)
    for status in (200, 201, 404, 500, 507, 101, 304):
        fixture.metrics.on_response(status, 0.1)
    samples = fixture.scrape()
    assert samples["Requests2XX Hostname=h,Level=Host"] == 2
    assert samples["Requests4XX Hostname=h,Level=Host"] == 1
    assert samples["Requests5XX Hostname=h,Level=Host"] == 2


@MODES
def test_which_metrics_are_logged(make, mode):
    fixture = make(mode)
    meters = fixture.metrics.model_meters("m", "1.0")
    meters.requests.value += 3
    meters.latency_us.value += 1500.0
    meters.queue_us.value += 2.5e7
    fixture.metrics.on_response(404, 0)
    fixture.metrics.batch(12.7, 0.4)
    fixture.metrics.loaded("W-9000-m_1.0", 2100.5)
    fixture.metrics.flush_log()
    three = [
        "ts_inference_requests_total.Count:3.0|#model_name:m,model_version:1.0|#hostname:h,timestamp:17",
        "ts_inference_latency_microseconds.Microseconds:1500.0"
        "|#model_name:m,model_version:1.0|#hostname:h,timestamp:17",
        "ts_queue_latency_microseconds.Microseconds:2.5E7"
        "|#model_name:m,model_version:1.0|#hostname:h,timestamp:17",
    ]
    others = [
        "WorkerLoadTime.Milliseconds:2100.0|#WorkerName:W-9000-m_1.0,Level:Host|#hostname:h,timestamp:17",
        "Requests4XX.Count:1.0|#Level:Host|#hostname:h,timestamp:17",
        "QueueTime.Milliseconds:12.0|#Level:Host|#hostname:h,timestamp:17",
        "WorkerThreadTime.Milliseconds:0.0|#Level:Host|#hostname:h,timestamp:17",
    ]
    expected = {
        MetricsMode.LOG: {*three, *others},
        MetricsMode.PROMETHEUS: set(),
        MetricsMode.LEGACY: set(others),
    }
    assert set(fixture.server_lines) == expected[mode]
    assert (
        fixture.scrape()["ts_inference_requests_total hostname=h,model_name=m,model_version=1.0"]
        == 3
    )


def test_the_log_has_increments_of_counters_and_nothing_twice(make):
    fixture = make()
    requests = fixture.metrics.inference_requests("m", "default")
    for added in (2, 0, 5):
        requests.value += added
        fixture.metrics.flush_log()
    values = [line.split("|")[0] for line in fixture.server_lines]
    assert values == [
        "ts_inference_requests_total.Count:2.0",
        "ts_inference_requests_total.Count:5.0",
    ]


def test_a_gauge_that_is_set_to_the_same_value_again_is_logged_again(make):
    fixture = make()
    for _ in range(2):
        fixture.metrics.queue_time_ms(0)
        fixture.metrics.flush_log()
    fixture.metrics.flush_log()
    assert len(fixture.server_lines) == 2


async def test_the_loop_flushes_a_last_time_when_it_is_cancelled(make):
    fixture = make()
    task = asyncio.create_task(fixture.metrics.run())
    await asyncio.sleep(0)
    fixture.metrics.on_response(200, 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fixture.server_lines == ["Requests2XX.Count:1.0|#Level:Host|#hostname:h,timestamp:17"]


class TestText:
    def test_help_type_and_labels_are_those_of_the_contract(self, make):
        fixture = make()
        for _ in range(8):
            fixture.metrics.on_response(200, 0)
        text = fixture.metrics.render()
        assert (
            "# HELP Requests2XX Torchserve prometheus counter metric with unit: Count\n"
            "# TYPE Requests2XX counter\n"
            'Requests2XX{Level="Host",Hostname="h",} 8.0\n'
        ) in text
        assert text.endswith("\n")

    def test_a_metric_without_samples_shows_help_and_type(self, make):
        text = make().metrics.render()
        assert (
            "# HELP QueueTime Torchserve prometheus gauge metric with unit: Milliseconds\n"
            "# TYPE QueueTime gauge\n"
        ) in text
        assert "\nQueueTime" not in text

    def test_large_numbers_and_odd_labels_read_back(self, make):
        fixture = make()
        name = 'a"b\\c\nd,}'
        fixture.metrics.inference_latency_us(name, "1").value += 12_000_000
        text = fixture.metrics.render()
        assert "} 1.2E7\n" in text
        (family,) = [
            family
            for family in text_string_to_metric_families(text)
            if family.name == "ts_inference_latency_microseconds"
        ]
        assert family.samples[0].labels["model_name"] == name
        assert family.samples[0].value == 1.2e7

    def test_histogram(self, make):
        definition = MetricDefinition(
            name="sizes", kind=MetricKind.HISTOGRAM, unit="Count", dimensions=("Hostname",)
        )
        fixture = make(catalog=MetricCatalog({}, {"sizes": definition}))
        for value in ("0.3", "0.3", "20"):
            assert fixture.metrics.worker_line(f"[METRICS]sizes.Count:{value}|#|#hostname:h,17")
        text = fixture.metrics.render(["sizes_bucket", "sizes_sum", "sizes_count"])
        assert text == (
            "# HELP sizes Torchserve prometheus histogram metric with unit: Count\n"
            "# TYPE sizes histogram\n"
            + "".join(
                f'sizes_bucket{{Hostname="h",le="{bound}",}} {count}.0\n'
                for bound, count in [
                    *((b, 0) for b in ("0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25")),
                    *((b, 2) for b in ("0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0")),
                    ("+Inf", 3),
                ]
            )
            + 'sizes_count{Hostname="h",} 3.0\n'
            'sizes_sum{Hostname="h",} 20.6\n'
        )

    def test_names_select_samples(self, make):
        fixture = make()
        fixture.metrics.on_response(200, 0)
        fixture.metrics.model_meters("m", "1").latency_seconds.observe(0.2)
        assert set(fixture.scrape("Requests2XX", "Requests4XX")) == {
            "Requests2XX Hostname=h,Level=Host",
            "Requests4XX Hostname=h,Level=Host",
        }
        assert fixture.scrape("ts_inference_latency_seconds_count") == {
            "ts_inference_latency_seconds_count model_name=m,model_version=1": 1
        }
        # As observed: the base name of a histogram selects nothing.
        assert fixture.metrics.render(["ts_inference_latency_seconds"]) == ""
        assert fixture.metrics.render(["nothing"]) == ""
        assert fixture.metrics.render(["QueueTime"]) == ""

    def test_names_that_prometheus_cannot_hold_are_logged_only(self, make):
        fixture = make(is_auto_detecting=True)
        fixture.metrics.worker_line("[METRICS]my time.ms:1|#|#type:GAUGE|#hostname:h,17")
        assert fixture.model_lines[0].startswith("my time.ms:1.0")
        assert "my time" not in fixture.metrics.render()


class TestWorkerLines:
    def test_ordinary_output_is_left_alone(self, make):
        assert not make().metrics.worker_line("Torch worker started.")

    def test_a_metric_is_counted_and_logged_in_the_catalog_s_unit(self, make):
        fixture = make()
        assert fixture.metrics.worker_line(MODEL_LINE)
        assert fixture.model_lines == [
            "PredictionTime.ms:12.5|#ModelName:m,Level:Model|#hostname:h,requestID:id1,timestamp:17"
        ]
        assert fixture.scrape()["PredictionTime Hostname=h,Level=Model,ModelName=m"] == 12.5

    def test_prometheus_mode_logs_nothing(self, make):
        fixture = make(MetricsMode.PROMETHEUS)
        fixture.metrics.worker_line(MODEL_LINE)
        assert fixture.model_lines == []
        assert fixture.scrape()["PredictionTime Hostname=h,Level=Model,ModelName=m"] == 12.5

    def test_legacy_mode_logs_metrics_of_models(self, make):
        fixture = make(MetricsMode.LEGACY)
        fixture.metrics.worker_line(MODEL_LINE)
        assert len(fixture.model_lines) == 1

    def test_a_line_that_does_not_parse_is_consumed_and_reported(self, make, caplog):
        assert make().metrics.worker_line("[METRICS]nonsense" + "x" * 1000)
        assert caplog.records[0].message.startswith(
            "Failed to parse metrics line: [METRICS]nonsense"
        )
        assert len(caplog.records[0].message) < 400

    def test_values_count_by_position_not_by_name(self, make):
        fixture = make()
        fixture.metrics.worker_line(MODEL_LINE.replace("ModelName:m,Level:Model", "X:a,Y:b"))
        assert fixture.scrape()["PredictionTime Hostname=h,Level=b,ModelName=a"] == 12.5

    @pytest.mark.parametrize(
        ("dimensions", "logged"),
        [("ModelName:m", "|#ModelName:m|"), ("A:m,B:n,C:o", "|#ModelName:m,Level:n|")],
    )
    def test_a_wrong_number_of_values(self, make, caplog, dimensions, logged):
        line = MODEL_LINE.replace("ModelName:m,Level:Model", dimensions)
        fixture = make()
        fixture.metrics.worker_line(line)
        fixture.metrics.worker_line(line)
        assert logged in fixture.model_lines[0]
        assert len(caplog.records) == 1  # once, not per request
        strict = make(MetricsMode.PROMETHEUS)
        strict.metrics.worker_line(line)
        assert "PredictionTime{" not in strict.metrics.render()

    def test_a_counter_does_not_go_down(self, make, caplog):
        definition = MetricDefinition(
            name="n", kind=MetricKind.COUNTER, unit="Count", dimensions=("Hostname",)
        )
        fixture = make(catalog=MetricCatalog({}, {"n": definition}))
        fixture.metrics.worker_line("[METRICS]n.Count:-1|#|#hostname:h,17")
        assert fixture.model_lines == []
        assert "negative" in caplog.text

    def test_unknown_names_are_dropped(self, make):
        fixture = make()
        assert fixture.metrics.worker_line("[METRICS]New.ms:1|#A:b|#type:GAUGE|#hostname:h,17,id")
        assert fixture.model_lines == []
        assert "New" not in fixture.metrics.render()

    @pytest.mark.parametrize("kind", ["COUNTER", "GAUGE", "HISTOGRAM"])
    def test_auto_detection(self, make, kind):
        fixture = make(is_auto_detecting=True)
        fixture.metrics.worker_line(f"[METRICS]New.ms:1|#A:b|#type:{kind}|#hostname:h,17,id")
        fixture.metrics.worker_line("[METRICS]New.other:1|#A:b|#type:GAUGE|#hostname:h,17")
        assert fixture.model_lines == [
            "New.ms:1.0|#A:b|#hostname:h,requestID:id,timestamp:17",
            "New.ms:1.0|#A:b|#hostname:h,requestID:null,timestamp:17",
        ]
        assert f"# TYPE New {kind.lower()}\n" in fixture.metrics.render()

    @pytest.mark.parametrize("kind", ["|#type:counter", "|#type:TIMER", ""])
    def test_auto_detection_needs_a_type(self, make, kind, caplog):
        fixture = make(is_auto_detecting=True)
        fixture.metrics.worker_line(f"[METRICS]New.ms:1|#A:b{kind}|#hostname:h,17,id")
        assert "New" not in fixture.metrics.render()
        assert "not a type" in caplog.text

    def test_a_model_cannot_take_the_name_of_a_server_metric(self, make, caplog):
        fixture = make(is_auto_detecting=True)
        fixture.metrics.worker_line("[METRICS]Requests2XX.Count:5|#|#type:COUNTER|#hostname:h,17")
        assert fixture.scrape()["Requests2XX Hostname=h,Level=Host"] == 0
        assert "Requests2XX" in caplog.text


class FakeModel:
    id = ModelId("m", "1.0")


class TestOwnMetrics:
    def test_deaths_by_cause(self, make):
        fixture = make()
        for cause in ("ended by signal 9", "exit code 1", "no_reply", "no_reply"):
            fixture.metrics.died(FakeModel(), cause)
        counts = {
            key.partition("cause=")[2].partition(",")[0]: value
            for key, value in fixture.scrape("ts_worker_restarts_total").items()
        }
        assert counts == {"ended by signal 9": 1, "exit code 1": 1, "no_reply": 2}

    def test_second_chances(self, make):
        fixture = make()
        fixture.metrics.rerun(FakeModel(), "worker_death", 3)
        fixture.metrics.rerun(FakeModel(), "batch_failure", 1)
        fixture.metrics.rerun(FakeModel(), "worker_death", 1)
        fixture.metrics.quarantined(FakeModel())
        reruns = fixture.scrape("ts_rerun_requests_total")
        assert {key.partition("reason=")[2]: value for key, value in reruns.items()} == {
            "worker_death": 4,
            "batch_failure": 1,
        }
        assert list(fixture.scrape("ts_quarantined_requests_total").values()) == [1]

    def test_gauges_are_set_when_somebody_looks(self, make):
        fixture = make()
        waiting = [3]
        fixture.metrics.on_scrape.append(
            lambda: fixture.metrics.set_queue_depth("m", "1.0", waiting[0])
        )
        assert fixture.scrape("ts_queue_depth") == {
            "ts_queue_depth model_name=m,model_version=1.0": 3
        }

    def test_a_state_without_workers_is_zero(self, make):
        fixture = make()
        fixture.metrics.set_workers("m", "1.0", {"READY": 2, "LOADING": 1}, busy=2)
        fixture.metrics.set_workers("m", "1.0", {"READY": 3}, busy=0)
        assert fixture.scrape("ts_workers") == {
            "ts_workers model_name=m,model_version=1.0,state=READY": 3,
            "ts_workers model_name=m,model_version=1.0,state=LOADING": 0,
        }
        assert fixture.scrape("ts_busy_workers") == {
            "ts_busy_workers model_name=m,model_version=1.0": 0
        }

    def test_a_model_that_is_gone_has_no_gauges(self, make):
        fixture = make()
        for version in ("1.0", "2.0"):
            fixture.metrics.set_workers("m", version, {"READY": 1}, busy=1)
            fixture.metrics.set_queue_depth("m", version, 1)
            fixture.metrics.loaded(f"W-9000-m_{version}", 5)
            fixture.metrics.inference_requests("m", version).value += 1
        fixture.metrics.forget_model("m", "1.0")
        keys = set(fixture.scrape())
        gone = {key for key in keys if "1.0" in key}
        assert gone == {"ts_inference_requests_total hostname=h,model_name=m,model_version=1.0"}
        assert "WorkerLoadTime Hostname=h,Level=Host,WorkerName=W-9000-m_2.0" in keys


class TestUsersDefinitions:
    def definition(self, name, *dimensions):
        return MetricDefinition(
            name=name, kind=MetricKind.COUNTER, unit="Count", dimensions=dimensions
        )

    def test_what_is_not_defined_is_not_reported(self, make):
        fixture = make(catalog=MetricCatalog())
        fixture.metrics.on_response(200, 0)
        fixture.metrics.model_meters("m", "1").requests.value += 1
        fixture.metrics.batch(1, 1)
        fixture.metrics.loaded("W", 1)
        fixture.metrics.record_system("CPUUtilization", ("Host",), 5)
        fixture.metrics.flush_log()
        assert fixture.server_lines == []
        assert all(name.startswith("ts_inference_latency_seconds") for name in fixture.scrape())

    def test_fewer_dimensions_are_filled_in_order(self, make):
        catalog = MetricCatalog({"Requests2XX": self.definition("Requests2XX", "Level")})
        fixture = make(catalog=catalog)
        fixture.metrics.on_response(200, 0)
        assert fixture.scrape("Requests2XX") == {"Requests2XX Level=Host": 1}

    def test_more_dimensions_than_the_server_knows_are_reported(self, make, caplog):
        definition = self.definition("Requests2XX", "Level", "Region", "Hostname")
        fixture = make(catalog=MetricCatalog({"Requests2XX": definition}))
        fixture.metrics.on_response(200, 0)
        assert fixture.scrape("Requests2XX") == {}
        assert "Region" in caplog.text

    def test_our_own_names_win(self, make, caplog):
        definition = self.definition("ts_workers", "a")
        with caplog.at_level(logging.ERROR):
            fixture = make(catalog=MetricCatalog({"ts_workers": definition}))
        assert "ts_workers is defined already" in caplog.text
        fixture.metrics.set_workers("m", "1", {"READY": 1}, busy=0)
        assert len(fixture.scrape("ts_workers")) == 1


def test_system_measures_are_logged_each_time(make):
    fixture = make()
    for _ in range(2):
        fixture.metrics.record_system("DiskUsage", ("Host",), 27.5)
    fixture.metrics.record_system("GPUUtilization", ("Host", "1"), 90)
    assert fixture.server_lines == [
        "DiskUsage.Gigabytes:27.5|#Level:Host|#hostname:h,timestamp:17",
        "DiskUsage.Gigabytes:27.5|#Level:Host|#hostname:h,timestamp:17",
        "GPUUtilization.Percent:90.0|#Level:Host,DeviceId:1|#hostname:h,timestamp:17",
    ]
    assert fixture.scrape()["GPUUtilization DeviceId=1,Hostname=h,Level=Host"] == 90
