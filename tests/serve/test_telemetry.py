"""What a collector of OpenTelemetry is told of requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from paceline.cli.main import run
from tests.serve.program import chat, running

SECRET = "a phrase that no collector may see"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """An address that takes what is sent over OTLP. bodies: {path: what came}."""

    def __init__(self) -> None:
        bodies: dict[str, list[bytes]] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                bodies.setdefault(self.path, []).append(self.rfile.read(size))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.bodies = bodies
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as {key: value}."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def test_a_request_is_a_span_of_its_callers_trace_and_says_no_word(collector: Collector) -> None:
    with running("--otlp-endpoint", collector.url, "--drafter", "recycling") as program:
        with program.client() as client:
            asked = chat(SECRET, max_tokens=40)
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            answer = client.post("/v1/chat/completions", json=asked, headers=headers).json()
            refused = client.post("/v1/completions", json={"model": asked["model"], "prompt": 1})
        assert refused.status_code == 400
    (sent,) = collector.bodies["/v1/traces"]
    request = ExportTraceServiceRequest.FromString(sent)
    (of_server,) = request.resource_spans
    assert values(of_server.resource.attributes)["service.name"] == "paceline"
    good, bad = of_server.scope_spans[0].spans
    assert good.trace_id.hex() == TRACE
    assert good.parent_span_id.hex() == "b7ad6b7169203331"
    assert good.name == f"chat {asked['model']}"
    assert good.end_time_unix_nano > good.start_time_unix_nano
    said, usage = values(good.attributes), answer["usage"]
    assert said["gen_ai.response.id"] == answer["id"]
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"] > 0
    passes = answer["metrics"]["speculative_decoding"]
    assert said["paceline.drafted_tokens"] == passes["num_draft_tokens"] > 0
    assert said["paceline.accepted_tokens"] == passes["num_accepted_draft_tokens"]
    assert (
        0
        < said["paceline.time_to_first_token_s"]
        < (good.end_time_unix_nano - good.start_time_unix_nano) / 1e9
    )
    assert values(bad.attributes)["error.type"] == "400"
    for words in (SECRET, answer["choices"][0]["message"]["content"]):
        assert words.encode() not in sent + b"".join(collector.bodies["/v1/metrics"])


def test_times_are_histograms(collector: Collector) -> None:
    with running("--otlp-endpoint", collector.url) as program, program.client() as client:
        for _ in range(3):
            client.post("/v1/chat/completions", json=chat(max_tokens=5))
    sent = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"][-1])
    found = {one.name: one for one in sent.resource_metrics[0].scope_metrics[0].metrics}
    assert set(found) == {
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.server.request.duration",
    }
    for metric in found.values():
        (point,) = metric.histogram.data_points
        assert metric.unit == "s"
        assert point.count == 3
        assert point.sum > 0
        assert values(point.attributes)["gen_ai.operation.name"] == "chat"


def test_a_collector_that_is_not_there_costs_no_request() -> None:
    with running("--otlp-endpoint", "http://127.0.0.1:9") as program, program.client() as client:
        assert client.post("/v1/chat/completions", json=chat(max_tokens=5)).status_code == 200


def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--otlp-endpoint", "localhost:4318"]) == 2
    said = "--otlp-endpoint must be as http://localhost:4318, got 'localhost:4318'"
    assert capsys.readouterr().err == f"paceline: error: {said}\n"
