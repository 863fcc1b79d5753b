"""Prometheus metrics: requests by outcome, and time to first token and per token by where it was spent."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Record
from ropewalk.jobs.serving.serve.gateway.routing.table import Table

_FIRST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_PARTS = ("queue", "gateway", "engine")


class Metrics:
    """Counters of one gateway process; they restart at zero when it is replaced, which Prometheus handles."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ropewalk_requests", "Finished requests", ["version", "outcome", "status"], registry=self.registry
        )
        first = Histogram(
            "ropewalk_first_token_seconds",
            "Time to the first byte of an answer",
            ["part"],
            registry=self.registry,
            buckets=_FIRST,
        )
        token = Histogram(
            "ropewalk_token_seconds", "Time per further event of a stream", ["part"], registry=self.registry, buckets=_TOKEN
        )
        self._first = {part: first.labels(part) for part in _PARTS}
        self._token = {part: token.labels(part) for part in _PARTS[1:]}
        self._seconds = Histogram("ropewalk_request_seconds", "Time of a complete answer", registry=self.registry, buckets=_FIRST)
        self.moves = Counter("ropewalk_moves", "Answers continued by another replica", registry=self.registry)
        self._running = Gauge(
            "ropewalk_replica_running", "Running requests of a replica", ["version", "replica"], registry=self.registry
        )
        self._slots = Gauge("ropewalk_replica_slots", "Slots of a replica", ["version", "replica"], registry=self.registry)
        self._up = Gauge(
            "ropewalk_replica_up", "1 if the replica answers, else 0", ["version", "replica"], registry=self.registry
        )
        self._waiting = Gauge("ropewalk_waiting", "Requests waiting for a slot", ["version"], registry=self.registry)
        self._open = Gauge("ropewalk_connections", "Connected clients", registry=self.registry)
        self._unrecorded = Gauge("ropewalk_unrecorded", "Exchanges that are not yet durable", registry=self.registry)
        self._dropped = Gauge(
            "ropewalk_capture_dropped", "Exchanges stored without content, or not at all", registry=self.registry
        )
        self.totals: dict[str, list[int]] = {}  # by version: requests, errors
        self.recent_first: dict[str, list[float]] = {}

    def count(self, record: Record, clock: Clock) -> None:
        self._requests.labels(record.version, record.outcome, str(record.status)).inc()
        total = self.totals.setdefault(record.version, [0, 0])
        total[0] += 1
        total[1] += record.outcome == "failed" or record.status >= 500
        if not clock.pieces:
            return
        for part, seconds in zip(_PARTS, (clock.queue_seconds, clock.gateway_seconds, clock.engine_seconds), strict=True):
            self._first[part].observe(seconds)
        self.recent_first.setdefault(record.version, []).append(clock.first_seconds)
        self._seconds.observe(clock.last_at - clock.began)
        if clock.pieces > 1:
            event_seconds = (clock.last_at - clock.first_at) / (clock.pieces - 1)
            gateway_seconds = min(event_seconds, clock.working_seconds / (clock.pieces - 1))
            self._token["gateway"].observe(gateway_seconds)
            self._token["engine"].observe(event_seconds - gateway_seconds)

    def page(self, table: Table, num_connections: int, *, unrecorded: int, dropped: int) -> bytes:
        """Return the metrics in Prometheus' text format."""
        for gauge in (self._running, self._slots, self._up, self._waiting):
            gauge.clear()
        for version, queue in table.queues.items():
            self._waiting.labels(version).set(queue.waiting)
            for state in queue.replicas.values():
                labels = (version, state.replica.id)
                self._running.labels(*labels).set(state.running)
                self._slots.labels(*labels).set(state.replica.slots)
                self._up.labels(*labels).set(state.unhealthy_since is None)
        self._open.set(num_connections)
        self._unrecorded.set(unrecorded)
        self._dropped.set(dropped)
        return generate_latest(self.registry)
