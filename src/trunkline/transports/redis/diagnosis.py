"""Why a server cannot be reached, in the words of whoever has to mend it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from ...errors import ConfigurationError, TrunklineError
from ...transport import Finding
from .connection import ReplyError
from .hosts import Host

__all__ = ["why_unreachable"]


def why_unreachable(host: Host, error: BaseException) -> Finding:
    """One finding: the cause and the cure. ``error`` is ours, or the one that a socket or a server gave."""
    cause = error.__cause__ if isinstance(error, TrunklineError) and error.__cause__ else error
    if isinstance(cause, ReplyError):
        what, fix = _refused(host, str(cause))
    elif isinstance(error, ConfigurationError):  # files of certificates, read before anything is sent
        what, _, fix = str(error).rpartition(": ")
    else:
        what, fix = _unreachable(host, cause)
    return Finding("error", f"{host.address}: {what}", fix)


#: Beginning of a refusal -> (what it means, what to do); ``{}`` is the user.
_REFUSALS = {
    "NOAUTH": ("it wants a password, and none is configured", 'write it in hosts: "redis://:PASSWORD@…"'),
    "WRONGPASS": (
        "it knows no user {} with this password",
        "check both; in a URL write special characters as %XX: urllib.parse.quote(password, safe='')",
    ),
    "ERR invalid password": ("the password is wrong", "compare it with requirepass in the server's settings"),
    "ERR AUTH": (
        "a password is configured here, but the server has none",
        "take it out of hosts, or set one there: CONFIG SET requirepass …",
    ),
    "NOPERM": ("user {} may not even PING", "ACL SETUSER {} +ping, and see docs/redis.md for the whole line"),
    "DENIED": (
        "it is in protected mode: it has no password and takes local connections only",
        "give it a password: CONFIG SET requirepass … on its own machine",
    ),
    "ERR max number": (
        "it has no room for another client",
        "CONFIG SET maxclients, or find who keeps so many",
    ),
    "MISCONF": (
        "it could not save to its disk and refuses messages until it can",
        "make room on its disk; its log says more. Or: CONFIG SET stop-writes-on-bgsave-error no",
    ),
    "LOADING": ("it is still loading its data", "wait; the layer waits too"),
}


def _refused(host: Host, reply: str) -> tuple[str, str]:
    user = host.username or "default"
    if "DB index" in reply:
        return (
            f"it has no database {host.db}",
            "use a smaller number in hosts, or raise `databases` in its settings",
        )
    for begin, (what, fix) in _REFUSALS.items():
        if reply.startswith(begin):
            return f"{what.format(user)} ({reply})", fix.format(user)
    return f"it refuses us: {reply}", "look into the server's log"


def _unreachable(host: Host, cause: BaseException) -> tuple[str, str]:
    for kinds, explain in _CAUSES:
        if isinstance(cause, kinds):
            return explain(host, cause)
    return str(cause) or type(
        cause
    ).__name__, "check host, port and network, and that it is Redis that listens there"


def _untrusted(host: Host, cause: BaseException) -> tuple[str, str]:
    reason = getattr(cause, "verify_message", "") or str(cause)
    if "ostname" in reason or "IP address" in reason:
        return (
            f"its certificate is for another name ({reason})",
            "use the certificate's name in hosts, or ssl_check_hostname=false if you know why",
        )
    if "expired" in reason:
        return (
            f"its certificate is not valid any more ({reason})",
            "renew it on the server; if it was renewed, compare the clocks of both machines",
        )
    return (
        f"its certificate is not trusted ({reason})",
        "for a CA of your own: rediss://…?ssl_ca_certs=/path/ca.pem",
    )


def _tls(host: Host, cause: BaseException) -> tuple[str, str]:
    if "certificate required" in str(cause).lower() or "handshake failure" in str(cause).lower():
        return (
            f"it wants a certificate from us ({cause})",
            "rediss://…?ssl_certfile=/path/me.pem&ssl_keyfile=/path/me.key",
        )
    return f"no TLS on this port ({cause})", "use redis:// if it has none, else the port that speaks TLS"


def _ended(host: Host, cause: BaseException) -> tuple[str, str]:
    if host.ssl and not host.ssl_certfile:
        # TLS 1.3 lets us finish before the server has looked for our certificate, so its reason may be lost.
        return (
            "it ends the connection at once; it may want a certificate from us, or not speak TLS on this port",
            "rediss://…?ssl_certfile=/path/me.pem&ssl_keyfile=/path/me.key, or try redis://",
        )
    if host.ssl:
        return "it ends the connection at once; it may not speak TLS on this port", "try redis://"
    return "it ends the connection at once; it may speak TLS only", "try rediss://"


def _silent(host: Host, cause: BaseException) -> tuple[str, str]:
    if host.ssl:
        return (
            "it does not answer in TLS (timeout)",
            "try redis://; if that is silent too, a firewall may drop packets",
        )
    return (
        "it does not answer (timeout)",
        "a firewall may drop packets, or the server is stopped or overloaded",
    )


_Explain = Callable[[Host, BaseException], tuple[str, str]]

#: The first kind that matches counts.
_CAUSES: list[tuple[type[BaseException], _Explain]] = [
    (
        socket.gaierror,
        lambda host, cause: (
            f"no machine of the name {host.host!r} is known ({cause.args[-1]})",
            "check the name in hosts; in a container, that both are in one network",
        ),
    ),
    (ssl.SSLCertVerificationError, _untrusted),
    (ssl.SSLError, _tls),
    (
        ConnectionRefusedError,
        lambda host, cause: (
            "nothing listens there (connection refused)",
            "start the server; check the port, and `bind` in its settings",
        ),
    ),
    (
        FileNotFoundError,
        lambda host, cause: ("there is no such socket", "check the path, and `unixsocket` in its settings"),
    ),
    (
        PermissionError,
        lambda host, cause: (
            "we may not open this socket (permission denied)",
            "check `unixsocketperm` in the server's settings, and the group of this process",
        ),
    ),
    (ConnectionError, _ended),
    (TimeoutError, _silent),
]
