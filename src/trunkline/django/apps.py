"""The Django app: checks ``CHANNEL_LAYERS`` at start, and keeps stale database connections out of sync handlers."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from ..consumers import base
from .checks import check_channel_layers, check_deployment
from .database import fresh_connections

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
