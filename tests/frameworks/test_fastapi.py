"""Trunkline's consumers mounted in FastAPI."""

from __future__ import annotations

from frameworks.framework_claims import FrameworkClaims


class TestFastAPI(FrameworkClaims):
    application = "fastapi_app:app"
