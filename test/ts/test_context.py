"""Context and RequestProcessor as handlers use them."""

from __future__ import annotations

import threading

import pytest

from ts.context import Context, RequestProcessor


@pytest.fixture
def context() -> Context:
    made = Context("m", "/dir", {"model": {}}, 4, 1, "0.0", False, "metrics", {"a": {"b": 1}})
    made.request_ids = {0: "zero", 1: "one"}
    made.request_processor = [RequestProcessor({"Key": "v"}), {"ts_request_sequence_id": "s"}]
    return made


def test_what_belongs_to_the_model(context):
    assert context.model_name == "m"
    assert context.manifest == {"model": {}}
    assert context.model_yaml_config == {"a": {"b": 1}}
    assert context.metrics == "metrics"
    assert context.system_properties == {
        "model_dir": "/dir",
        "gpu_id": 1,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "0.0",
        "limit_max_image_pixels": False,
    }
    assert context.stopping_criteria is None


def test_system_properties_cannot_be_replaced(context):
    with pytest.raises(AttributeError):
        context.system_properties = {}


def test_requests(context):
    assert context.get_request_id() == "zero"
    assert context.get_request_id(1) == "one"
    assert context.get_request_id(7) is None
    assert context.get_request_header(0, "Key") == "v"
    assert context.get_request_header(0, "key") is None
    assert context.get_all_request_header(0) == {"Key": "v"}
    assert context.get_sequence_id(1) == "s"


def test_request_id_before_any_batch():
    assert Context("m", "/d", None, 1, None, "1").get_request_id() is None


def test_responses(context):
    context.set_response_content_type(0, "a/b")
    context.set_response_header(0, "x", "1")
    context.set_response_header(0, "x", "2")
    assert context.get_response_content_type(0) == "a/b"
    assert context.get_response_headers(0) == {"content-type": "a/b", "x": "2"}
    assert context.get_response_content_type(1) is None
    assert context.get_response_status(0) == (200, None)
    context.set_response_status(404, "gone", 1)
    assert context.get_response_status(1) == (404, "gone")
    context.set_response_status(500, "", 99)  # nobody there, nothing happens
    context.set_all_response_status(202)
    assert [context.get_response_status(i) for i in (0, 1)] == [(202, ""), (202, "")]


def test_sequence_headers_can_be_renamed(monkeypatch):
    monkeypatch.setenv("TS_REQUEST_SEQUENCE_ID", "my-id")
    context = Context("m", "/d", None, 1, None, "1")
    assert context.header_key_sequence_id == "my-id"
    assert context.header_key_sequence_start == "ts_request_sequence_start"
    assert context.header_key_sequence_end == "ts_request_sequence_end"


def test_equality():
    first, second = (Context("m", "/d", None, 1, None, "1") for _ in range(2))
    assert first == second
    second.cache = {}
    assert first != second
    assert first != "m"


def test_a_message_has_a_context_of_its_own(context):
    context.attached = {"a": []}
    context.lock = threading.Lock()
    copied = context.copy_for_message()
    copied.attached["a"].append(1)
    copied.model_yaml_config["a"]["b"] = 2
    copied.request_ids = {0: "other"}
    assert context.attached == {"a": []}
    assert context.model_yaml_config == {"a": {"b": 1}}
    assert context.get_request_id() == "zero"
    assert copied.lock is context.lock  # what has no copy is shared
    assert copied.request_processor == []


def test_request_processor():
    processor = RequestProcessor({"a": "b"})
    assert processor.get_request_property("a") == "b"
    assert processor.get_request_properties() == {"a": "b"}
    assert processor.get_response_status_code() == 200
    assert processor.get_response_status_phrase() is None
    processor.report_status(503)
    assert processor.get_response_status_code() == 503
    processor.add_response_property("k", "v")
    assert processor.get_response_header("k") == "v"
    assert processor.get_response_headers() == {"k": "v"}
