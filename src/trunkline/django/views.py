"""Views for a project's ``urls.py``."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse

from ..health import check

__all__ = ["health"]


async def health(request: HttpRequest, alias: str = "default") -> HttpResponse:
    """The health of a layer of ``CHANNEL_LAYERS``: 200 while it is ok or degraded, 503 while it is down."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    found = await check(alias=alias)
    status = 503 if found.state == "down" else 200
    return JsonResponse(found.asdict(), status=status, headers={"Cache-Control": "no-store"})
