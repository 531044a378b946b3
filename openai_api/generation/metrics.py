"""Metrics: what `/metrics` shows, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from openai_api.generation.engine import Engine

FIRST_TOKEN = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 60, 120, 300)  # s
NEXT_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10)  # s


class _Servers(Collector):
    """The servers of the swarm, counted when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[GaugeMetricFamily]:
        servers = GaugeMetricFamily("swarm_servers", "Servers of the swarm", labels=("model", "state"))
        complete = GaugeMetricFamily("swarm_model_complete", "1: every block is served", labels=("model",))
        for model in self._engine.models():
            states = [server.state for server in model.servers]
            for state in sorted(set(states)):
                servers.add_metric((model.name, state), states.count(state))
            complete.add_metric((model.name,), int(model.complete))
        return servers, complete


class Timed:
    """Times the tokens of one generation."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._model = model
        self._clock = clock
        self._last = clock()
        self._first = True

    def token(self) -> None:
        now = self._clock()
        histogram = self._metrics.first_token if self._first else self._metrics.next_token
        histogram.labels(self._model).observe(now - self._last)
        self._metrics.generated.labels(self._model).inc()
        self._last, self._first = now, False


class Metrics:
    """Args: clock: seconds, never going back."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(_Servers(engine))
        self.requests = Counter(
            "swarm_gateway_requests", "Answered requests", ("route", "method", "status"), registry=self.registry
        )
        self.prompted = Counter("swarm_gateway_prompt_tokens", "Tokens of prompts", ("model",), registry=self.registry)
        self.generated = Counter(
            "swarm_gateway_generated_tokens", "Generated tokens", ("model",), registry=self.registry
        )
        self.active = Gauge("swarm_gateway_active_streams", "Choices being generated", registry=self.registry)
        self.first_token = Histogram(
            "swarm_gateway_time_to_first_token_seconds",
            "From the start of a generation to its first token",
            ("model",),
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.next_token = Histogram(
            "swarm_gateway_inter_token_seconds",
            "From one token to the next",
            ("model",),
            buckets=NEXT_TOKEN,
            registry=self.registry,
        )

    @contextmanager
    def generation(self, model: str) -> Iterator[Timed]:
        with self.active.track_inprogress():
            yield Timed(self, model, self._clock)

    def text(self) -> bytes:
        return generate_latest(self.registry)
