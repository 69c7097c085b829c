"""The small examples in one server, asked with the commands of their READMEs."""

import io
import json
import re
from collections import Counter

import pytest
from PIL import Image
from serving import wait_until


def test_a_stream_arrives_in_pieces(served) -> None:
    assert served.ask("echo_stream") == ["one piece after the other \n"]
    server = served.server
    text = {"Content-Type": "text/plain"}
    with server.predict("echo_stream", "a b", headers=text, stream=True) as answer:
        assert answer.headers["ts_stream_next"] == "true"
        assert [piece for piece in answer.iter_content(None)] == [b"a ", b"b ", b"\n"]


def test_generators_of_one_batch_stream_side_by_side(served) -> None:
    (answers,) = served.ask("generator_stream")
    pieces = Counter(re.findall(r"\d|liftoff", answers))  # of three clients, as they came
    assert pieces == {"liftoff": 3, "1": 3, "2": 2, "3": 1}
    text = {"Content-Type": "text/plain"}
    assert served.server.predict("countdown", "3", headers=text).text == "3 2 1 liftoff"
    refused = served.server.predict("countdown", "soon", headers=text)
    assert refused.status_code == 400
    assert refused.json()["message"] == "A number is expected, not 'soon'."


def test_metrics_of_a_handler_are_scraped(served) -> None:
    count, _ = served.ask("custom_metrics")
    assert count == "6"

    def samples_of_the_page() -> dict[str, float]:
        page = served.server.session.get(f"{served.server.metrics}/metrics", timeout=20).text
        return {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if 'ModelName="word_count"' in line and "_bucket" not in line
        }

    # A worker gathers its lines of metrics for a moment.
    wait_until(lambda: "TextsRead" in samples_of_the_page(), what="the metrics of the handler")
    samples = samples_of_the_page()
    assert samples["WordsRead"] == 6
    assert samples["LongestWord"] == 3
    assert (samples["WordLength_count"], samples["WordLength_sum"]) == (6, 13)
    assert samples["TextsRead"] == 1


def test_a_sequence_keeps_its_total(served) -> None:
    assert served.ask("stateful/counter") == ["2\n", "10\n", "5\n", "1\n"]


def test_a_request_without_a_sequence_begins_one(served) -> None:
    text = {"Content-Type": "text/plain"}
    first = served.server.predict("counter", "4", headers=text)
    assert first.text == "4\n"
    id_header = "ts_request_sequence_id"
    sequence = first.headers[id_header]
    assert served.server.predict("counter", "5", headers=text).text == "5\n"  # another one
    assert served.server.predict("counter", "6", headers={**text, id_header: sequence}).text == (
        "10\n"
    )


def test_a_picture_is_answered_with_a_smaller_one(served) -> None:
    head, refusal = served.ask("image_thumbnail")
    lines = head.splitlines()
    assert "HTTP/1.1 200" in [line.strip() for line in lines]
    assert "content-type: image/png" in lines
    assert "x-image-size: 16x12" in lines
    assert Image.open(io.BytesIO(served.file("small.png"))).size == (16, 12)
    assert refusal.startswith("HTTP/1.1 400 Bad Request")
    assert "cannot identify image file" in refusal


@pytest.mark.parametrize("size", ["nothing", "-1", "99999999999999999999"])
def test_a_thumbnail_of_no_size_is_refused(served, size: str) -> None:
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    answer = served.server.predict("thumbnail", picture.getvalue(), headers={"X-Size": size})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "text/plain")
    assert served.server.predict("thumbnail", picture.getvalue()).status_code == 200


def test_many_requests_wait_at_once_in_one_worker(served) -> None:
    (answers,) = served.ask("async_handler")
    decoder = json.JSONDecoder()
    found = []
    while answers:
        answer, end = decoder.raw_decode(answers)
        found.append(answer)
        answers = answers[end:].lstrip()
    assert {each["answer"] for each in found} == {f"QUESTION {number}" for number in range(1, 21)}
    assert max(each["most_at_once"] for each in found) > 5


def test_two_models_have_two_versions_of_a_package(served) -> None:
    assert [json.loads(answer) for answer in served.ask("requirements")] == [
        {"size": "1000000.0 YB", "humanize": "4.9.0"},
        {"size": "1.0 QB", "humanize": "4.15.0"},
    ]
    for name in ("size_old", "size_new"):
        refused = served.server.predict(name, "much", headers={"Content-Type": "text/plain"})
        assert refused.status_code == 400
        assert "not 'much'" in refused.json()["message"]
