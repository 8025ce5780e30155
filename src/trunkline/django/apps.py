"""The Django app: checks ``CHANNEL_LAYERS`` at start, and keeps stale database connections out of sync handlers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.apps import AppConfig
from django.core import checks
from django.db import close_old_connections

from ..consumers import base
from .checks import check_channel_layers, check_deployment

__all__ = ["TrunklineConfig"]


class TrunklineConfig(AppConfig):  # type: ignore[misc]
    """``INSTALLED_APPS = [..., "trunkline.django"]``."""

    name = "trunkline.django"
    label = "trunkline"
    verbose_name = "Trunkline"

    def ready(self) -> None:
        """Register the checks, and what surrounds the sync handlers of Trunkline's consumers."""
        checks.register(check_channel_layers)
        checks.register(check_deployment, deploy=True)
        if fresh_connections not in base.around_sync_handlers:
            base.around_sync_handlers.append(fresh_connections)


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """Close database connections that broke or outlived ``CONN_MAX_AGE``, as Django does around a request."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
