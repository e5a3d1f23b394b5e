"""Figures for Prometheus, under vLLM's names behind a prefix of our own, or of vLLM's.

What is counted here happened in this process; what an engine says of itself is read when somebody asks, and
starts at zero when the engine does, as counters may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from paceline.results import Load
from paceline.serve.figures import Visited, speculative_passes

Loads = Mapping[str, tuple[Load, int]]

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ANSWER_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server. prefix: "paceline:" or "vllm:"."""

    def __init__(self, prefix: str = "paceline:") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more line for each, which nobody asks for
        self._prefix = prefix
        self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(prefix + name, help, ("model_name", *labels), registry=self._registry)

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(prefix + name, help, ("model_name",), buckets=buckets, registry=self._registry)

        self._tasks = Gauge(
            prefix + "http_tasks", "Tasks of the process that listens", registry=self._registry
        )
        self._requests = counter("http_requests", "Requests for answers", "path", "status")
        self._success = counter("request_success", "Answers by what ended them", "finished_reason")
        self._read = counter("prompt_tokens", "Tokens of prompts")
        self._written = counter("generation_tokens", "Tokens of answers")
        self._drafts = counter("spec_decode_num_drafts", "Passes in which something was drafted")
        self._drafted = counter("spec_decode_num_draft_tokens", "Drafted tokens that were scored")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted")
        self._by_place = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens that were accepted, by their place in the draft",
            "position",
        )
        self._first = histogram("time_to_first_token_seconds", "Until the first token", _ANSWER_SECONDS)
        self._between = histogram("inter_token_latency_seconds", "Between tokens", _TOKEN_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "Of whole requests", _ANSWER_SECONDS)

    def tokens(self, model: str, seconds: float, *, first: bool) -> None:
        """Tokens came, so long after the request, or after the ones before them."""
        (self._first if first else self._between).labels(model).observe(seconds)

    def ended(self, visited: Visited) -> None:
        """A request for answers ended."""
        model, answers = visited.model, visited.answers
        self._requests.labels(model, visited.path, str(visited.status)).inc()
        if not answers:
            return
        self._whole.labels(model).observe(visited.seconds)
        for answer in answers:
            self._success.labels(model, answer.finish_reason).inc()
            self._read.labels(model).inc(answer.prompt_tokens)
            self._written.labels(model).inc(answer.stats.tokens)
        for (drafted, accepted), passes in speculative_passes(answers).items():
            self._drafts.labels(model).inc(passes)
            self._drafted.labels(model).inc(drafted * passes)
            self._accepted.labels(model).inc(accepted * passes)
            for place in range(accepted):
                self._by_place.labels(model, str(place)).inc(passes)

    def page(self, loads: Loads, tasks: int) -> tuple[bytes, str]:
        """All figures in Prometheus' text format, and the content type. loads: what engines say, and how
        often each was started again. tasks: of this process, now."""
        self._tasks.set(tasks)
        now = CollectorRegistry()
        now.register(_Engines(self._prefix, loads))
        return generate_latest(self._registry) + generate_latest(now), CONTENT_TYPE_LATEST


class _Engines:
    """What engines say of themselves, as a collector."""

    def __init__(self, prefix: str, loads: Loads) -> None:
        self._prefix = prefix
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        gauges = {
            "num_requests_running": "Requests that run",
            "num_requests_waiting": "Requests that wait",
            "kv_cache_usage_perc": "Share of the cache in use, 0 to 1",
        }
        counters = {
            "num_preemptions": "Times that a request gave up its place",
            "prefix_cache_queries": "Tokens looked for in the pages of earlier prompts",
            "prefix_cache_hits": "Tokens found there",
            "engine_restarts": "Engines that died",
        }
        families: dict[str, Metric] = {
            name: GaugeMetricFamily(self._prefix + name, help, labels=["model_name"])
            for name, help in gauges.items()
        }
        families |= {
            name: CounterMetricFamily(self._prefix + name, help, labels=["model_name"])
            for name, help in counters.items()
        }
        failures = CounterMetricFamily(
            self._prefix + "draft_failures",
            "Proposals that could not be used",
            labels=["model_name", "drafter", "reason"],
        )
        for model, (load, restarts) in self._loads.items():
            values = {
                "num_requests_running": load.running,
                "num_requests_waiting": load.waiting,
                "kv_cache_usage_perc": load.cache_tokens_used / (load.cache_tokens or 1),
                "num_preemptions": load.preemptions,
                "prefix_cache_queries": load.prefix_lookup_tokens,
                "prefix_cache_hits": load.prefix_hit_tokens,
                "engine_restarts": restarts,
            }
            for name, value in values.items():
                families[name].add_metric([model], value)  # type: ignore[attr-defined]
            for drafter, reasons in load.draft_failures.items():
                for reason, count in reasons.items():
                    failures.add_metric([model, drafter, reason], count)
        yield from families.values()
        yield failures
