"""Each request for an answer as a span, and its times as histograms, for collectors of OpenTelemetry.

Names are those of OpenTelemetry's semantic conventions for generative models; a span holds figures, never
what was asked or answered. A client's `traceparent` is taken up, so that a request is found in its caller's
trace.
"""

from __future__ import annotations

from opentelemetry.propagate import extract
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode

from paceline.serve.figures import Visited, speculative_passes

FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
FURTHER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
REQUEST_S = tuple(0.01 * 2**power for power in range(14))


class Telemetry:
    """What is told to collectors. spans, metrics: what passes them on."""

    def __init__(self, spans: SpanProcessor, metrics: MetricReader) -> None:
        own = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        resource = Resource({SERVICE_NAME: "paceline"}).merge(own)
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(spans)
        self._tracer = self._spans.get_tracer("paceline.serve")
        self._metrics = MeterProvider([metrics], resource, shutdown_on_exit=False)
        meter = self._metrics.get_meter("paceline.serve")
        self._first, self._further, self._whole = (
            meter.create_histogram(f"gen_ai.server.{name}", "s", explicit_bucket_boundaries_advisory=bounds)
            for name, bounds in (
                ("time_to_first_token", FIRST_TOKEN_S),
                ("time_per_output_token", FURTHER_TOKEN_S),
                ("request.duration", REQUEST_S),
            )
        )

    @staticmethod
    def sent_to(endpoint: str) -> Telemetry:
        """Telemetry that is sent over OTLP and HTTP to a collector at this address, in the background.
        OpenTelemetry's own variables say the rest, such as OTEL_EXPORTER_OTLP_HEADERS."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        base = endpoint.rstrip("/")
        return Telemetry(
            BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")),
            PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/v1/metrics")),
        )

    def ended(self, visited: Visited) -> None:
        """A request for answers ended."""
        common = {
            "gen_ai.operation.name": visited.operation,
            "gen_ai.provider.name": "paceline",
            "gen_ai.request.model": visited.model,
        }
        failed = {"error.type": str(visited.status)} if visited.status >= 400 else {}
        self._whole.record(visited.seconds, {**common, **failed})
        tokens = sum(answer.stats.tokens for answer in visited.answers)
        if visited.first_s is not None:
            self._first.record(visited.first_s, common)
            if tokens > 1:
                self._further.record((visited.seconds - visited.first_s) / (tokens - 1), common)
        began = int(visited.began * 1e9)
        span = self._tracer.start_span(
            f"{visited.operation} {visited.model}",
            extract({"traceparent": visited.traceparent}),
            SpanKind.SERVER,
            {
                **common,
                **failed,
                "url.path": visited.path,
                "http.response.status_code": visited.status,
                "gen_ai.response.id": visited.id,
            },
            start_time=began,
        )
        if visited.answers:
            passes = speculative_passes(visited.answers)
            span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": sum(answer.prompt_tokens for answer in visited.answers),
                    "gen_ai.usage.output_tokens": tokens,
                    "gen_ai.response.finish_reasons": [answer.finish_reason for answer in visited.answers],
                    "paceline.drafted_tokens": sum(drafted * n for (drafted, _), n in passes.items()),
                    "paceline.accepted_tokens": sum(kept * n for (_, kept), n in passes.items()),
                }
            )
        if visited.first_s is not None:
            span.set_attribute("paceline.time_to_first_token_s", visited.first_s)
        if visited.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began + int(visited.seconds * 1e9))

    def close(self) -> None:
        """Send what is left; at most some seconds where the collector does not answer."""
        self._spans.shutdown()
        self._metrics.shutdown(5000)
