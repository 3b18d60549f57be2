"""Prometheus metrics: the latencies of this process, and what the catalog counts, read at each scrape."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from amp_core.errors import Unavailable
from ampref_service.catalog import clips, damage, job_rows, webhooks, worker_rows
from ampref_service.catalog.tables import WORKER_STATES
from ampref_service.services import Services

log = structlog.get_logger("ampref_service.telemetry")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


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
        self._problems = Counter(
            "ampref_http_problems", "Errors that were answered, by the end of their type", ("slug",), registry=self._registry
        )

    def count_problem(self, slug: str) -> None:
        """Count one error that was answered, by its type."""
        self._problems.labels(slug).inc()

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request; methods that HTTP does not have share a label, because clients choose them."""
        method = method if method in _METHODS else "other"
        self._seconds.labels(route, method).observe(seconds)
        self._requests.labels(route, method, str(status)).inc()

    def watch(self, services: Services) -> None:
        """Count the catalog's clips and jobs at every scrape."""
        self._registry.register(_CatalogCollector(services))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _CatalogCollector(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with self._services.catalog.session() as session:
                job_counts, clip_counts = job_rows.counts(session), clips.count(session)
                webhook_counts = webhooks.count_states(session)
                num_damaged, scrub_age = damage.count_open(session), damage.scrub_age(session)
                workers = worker_rows.list_workers(session)
            age = self._services.queue.oldest_due()
        except Unavailable as error:
            # The latencies are worth the most while the database is away.
            log.warning("metrics_without_catalog", reason=error.what)
            return
        yield GaugeMetricFamily(
            "ampref_oldest_due_job_seconds",
            "How long the oldest job that is due has been waiting for a worker; 0 when none is",
            value=age,
        )
        yield GaugeMetricFamily(
            "ampref_damaged_blobs", "Blobs that are damaged or missing, as far as is known", value=num_damaged
        )
        if scrub_age is not None:
            yield GaugeMetricFamily(
                "ampref_scrub_age_seconds",
                "Since the last complete scrub began; absent before it",
                value=scrub_age,
            )
        yield GaugeMetricFamily(
            "ampref_worker_host_faults",
            "Jobs that the workers seen within a day gave back because their machines failed",
            value=sum(worker.host_faults for worker in workers),
        )
        by_state = Counts(worker.state for worker in workers if worker.live)
        worker_counts = {state: by_state[state] for state in WORKER_STATES}
        workers_by_state = GaugeMetricFamily("ampref_workers", "Live workers by state", labels=["state"])
        jobs = GaugeMetricFamily("ampref_jobs", "Jobs by state", labels=["state"])
        clips_by_tier = GaugeMetricFamily(
            "ampref_clips", "Clips by the tier of their best rollout: 0, 1, -1, unscored; and their total", labels=["tier"]
        )
        webhooks_by_state = GaugeMetricFamily(
            "ampref_webhooks", "Webhooks: active, failing at this time, quarantined", labels=["state"]
        )
        gauges = (
            (jobs, job_counts),
            (clips_by_tier, clip_counts),
            (webhooks_by_state, webhook_counts),
            (workers_by_state, worker_counts),
        )
        for gauge, counts in gauges:
            for label, count in counts.items():
                gauge.add_metric([label], count)
            yield gauge
