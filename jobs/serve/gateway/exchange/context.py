"""What all exchanges of a gateway share."""

from dataclasses import dataclass

from jobs.serve.gateway.exchange.archive import Archive
from jobs.serve.gateway.exchange.cache import AnswerCache
from jobs.serve.gateway.exchange.metrics import Metrics
from jobs.serve.gateway.http.upstream import Upstreams
from jobs.serve.gateway.routing.table import Table
from jobs.serve.gateway.settings import GatewaySettings
from jobs.serve.gateway.sockets.journal import Journal


@dataclass(frozen=True)
class Context:
    """Settings, journal, replicas, and where exchanges go when they are over."""

    settings: GatewaySettings
    journal: Journal
    table: Table
    upstreams: Upstreams
    cache: AnswerCache
    metrics: Metrics
    archive: Archive
