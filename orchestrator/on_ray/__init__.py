"""Ray: a cluster to work on, those who count and train there, jobs handed to its head. Only modules here import it."""

from __future__ import annotations

import os
import secrets

# Ray reads these once, when it is imported.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not any(name in os.environ for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
    # The embedded cluster gets a token of its own. Left alone, Ray writes one under the home folder, which every later
    # cluster of this user then insists on.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
