"""Messages that are sent only if the caller's transaction is committed."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigurationError

__all__ = ["after_commit"]


def after_commit(call: Callable[[], None], using: str | None) -> None:
    """Do it when the running transaction of a database (None: the default one) is committed; at once without one.

    Raises:
        ConfigurationError: Django is not set up here, or has no such database.
    """
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.db import connections, transaction
    except ImportError as error:
        text = f"on_commit waits for a transaction of Django, which is not installed: {error}; leave it away"
        raise ConfigurationError(text) from error
    try:
        known = list(connections)
    except ImproperlyConfigured as error:
        raise ConfigurationError(
            f"on_commit waits for a transaction of Django, which is not set up here: {error}; leave it away"
        ) from error
    if using is not None and using not in known:
        raise ConfigurationError(
            f"on_commit={using!r} names no database of DATABASES; known are: {', '.join(known)}"
        )
    transaction.on_commit(call, using=using)
