"""Trunkline's consumers mounted in Starlette."""

from __future__ import annotations

from frameworks.framework_claims import FrameworkClaims


class TestStarlette(FrameworkClaims):
    application = "starlette_app:app"
