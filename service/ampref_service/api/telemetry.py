"""Prometheus metrics: the latencies of this process, and what the catalog counts, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from amp_core.errors import Unavailable

log = structlog.get_logger("service.telemetry")

Counts = Mapping[str, Mapping[str, int]]
"""By gauge name: label value to count."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_AGE = "ampref_oldest_due_job_seconds"

_GAUGES = {
    "ampref_jobs": ("Jobs by state", "state"),
    "ampref_clips": ("Clips by the tier of their best rollout: 0, 1, -1, unscored; and their total", "tier"),
}


class Telemetry:
    """The metrics of one application; each has its own registry, so that two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._seconds = Histogram(
            "ampref_http_request_seconds",
            "Time from a request's first byte to its answer's last",
            ("route", "method"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._requests = Counter(
            "ampref_http_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self._registry,
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request; methods that HTTP does not know share a label, because clients choose them."""
        known = method if method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} else "other"
        self._seconds.labels(route, known).observe(seconds)
        self._requests.labels(route, known, str(status)).inc()

    def watch(self, counts: Callable[[], tuple[Counts, float]]) -> None:
        """Ask `counts` at every scrape: what there is, and the age of the oldest job that is due, in seconds."""
        self._registry.register(_Counted(counts))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _Counted(Collector):
    def __init__(self, counts: Callable[[], tuple[Counts, float]]) -> None:
        self._counts = counts

    def describe(self) -> Iterable[GaugeMetricFamily]:
        # Registering must not ask the database.
        return [self._age(), *(GaugeMetricFamily(name, text, labels=[label]) for name, (text, label) in _GAUGES.items())]

    @staticmethod
    def _age(seconds: float | None = None) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            _AGE, "How long the oldest job that is due has been waiting for a worker; 0 when none is", seconds
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counts, waiting_sec = self._counts()
        except Unavailable as error:
            # The latencies are worth the most while the database is away.
            log.warning("metrics_without_catalog", reason=error.what)
            return
        yield self._age(waiting_sec)
        for name, (text, label) in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=[label])
            for value, count in counts.get(name, {}).items():
                family.add_metric([value], count)
            yield family
