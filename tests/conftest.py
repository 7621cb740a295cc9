"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, not about us.
settings.register_profile("stn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stn")
