"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STAGES = ("prepare", "queue", "infer", "send", "total")


class Metrics:
    """Counters and histograms of one server, by checkpoint."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options = {"namespace": "pizero", "registry": self.registry}
        self.stages = Histogram(
            "stage_seconds", f"Seconds of a request: {', '.join(STAGES)}", ["checkpoint", "stage"], buckets=SECONDS,
            **options,
        )  # fmt: skip
        self.batches = Histogram(
            "batch_size", "Requests of one model call", ["checkpoint"], buckets=(1, 2, 4, 8, 16, 32, 64), **options
        )
        self.requests = Counter("requests", "Requests answered by an action chunk", ["checkpoint"], **options)
        self.errors = Counter("errors", "Requests answered by an error", ["checkpoint", "kind"], **options)
        self.connections = Counter("connections", "Connections of robots so far", ["checkpoint"], **options)
        self.robots = Gauge("robots", "Robots connected", ["checkpoint"], **options)
        self.refused = Counter("refused_connections", "Connections refused, by status", ["status"], **options)
        self.reloads = Counter("reloads", "Checkpoints loaded anew", ["checkpoint", "result"], **options)

    def watch_queue(self, checkpoint: str, length: Callable[[], float]) -> None:
        """Reads the length of a queue whenever the metrics are read."""
        if not hasattr(self, "_queue"):
            self._queue = Gauge(
                "queue_length", "Requests that wait", ["checkpoint"], namespace="pizero", registry=self.registry
            )
        self._queue.labels(checkpoint).set_function(length)

    def text(self) -> bytes:
        return generate_latest(self.registry)
