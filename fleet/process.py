"""One process of the fleet, from its settings: the only place that composes database, queue and registry."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arq.connections import ArqRedis

from config import Settings
from db.database import Database, open_database
from fleet.app import App, load_app
from fleet.plan_check import check_plan
from fleet.queue import open_queue
from fleet.registry import Identity, JobCounts, Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """What a process of the fleet has at hand while it runs."""

    settings: Settings
    database: Database
    queue: ArqRedis
    registry: Registry
    app: App

    @property
    def id(self) -> str:
        """As in the registry: `worker@host:123`."""
        return self.registry.identity.id


@asynccontextmanager
async def open_process(
    settings: Settings, *, job_counts: Callable[[], JobCounts] = JobCounts
) -> AsyncIterator[Process]:
    """Open database, queue and registry, in this order; close them in reverse, whatever the body or a close raises.

    Tortoise's models work in the calling task and in all tasks that it starts inside. `job_counts` is asked for the
    jobs of this process at each heartbeat. Raises DatabaseError or FleetError, with nothing left open.
    """
    app = load_app(settings)
    for warning in settings.warnings:
        logger.warning("%s", warning)
    logger.info("%s", settings.pool_line())
    async with open_database(settings, apps=app.tables) as database, open_queue(settings) as queue:
        registry = Registry(queue, Identity.own(settings.role), database.pool_snapshot, job_counts)
        async with registry.announced():
            await check_plan(settings, database, queue, registry.identity)
            logger.info("%s is up", registry.identity.id)
            yield Process(settings, database, queue, registry, app)
    logger.info("%s is down", registry.identity.id)
