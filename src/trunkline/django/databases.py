"""One entry of Django's ``DATABASES`` as a URL, for a layer that lives in the same database."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from ..errors import ConfigurationError
from ..settings import nearest

__all__ = ["url"]

#: What OPTIONS says about the connection itself; the rest is between Django and its driver.
_PASSED_ON = frozenset(
    {
        "channel_binding",
        "gsslib",
        "krbsrvname",
        "passfile",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
    }
)


def url(alias: str) -> str:
    """The ``postgresql://`` URL of a database of this project, as it is at this moment.

    Raises:
        ConfigurationError: There is no such alias, or it is no PostgreSQL.
    """
    from django.core.exceptions import ImproperlyConfigured
    from django.db import connections

    try:
        if alias not in connections.settings:
            raise ConfigurationError(f"DATABASES has no {alias!r}{nearest(alias, connections.settings)}")
        connection = connections[alias]
    except ImproperlyConfigured as error:
        raise ConfigurationError(f'database="{alias}" is an alias of Django\'s DATABASES: {error}') from error
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"DATABASES[{alias!r}] is {connection.vendor}, not PostgreSQL: write the database's URL as dsn"
        )
    given = connection.settings_dict
    options = {key: value for key, value in given["OPTIONS"].items() if key in _PASSED_ON}
    named = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    options |= {key: given[name] for key, name in named.items() if given[name]}
    return f"postgresql:///{quote(str(given['NAME'] or ''), safe='')}?{urlencode(options)}"
