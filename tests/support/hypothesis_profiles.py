"""Number of examples that Hypothesis tries: all in profile "ci", an eighth in profile "dev".

``HYPOTHESIS_PROFILE`` names the profile. Without it the profile is "ci" where ``CI`` is set, else "dev".
"""

from __future__ import annotations

import os

from hypothesis import settings

FEWER = 8
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")


def examples(count: int = 100) -> settings:
    """Return settings that try this many examples in profile "ci", without a time limit for each."""
    return settings(deadline=None, max_examples=count if PROFILE == "ci" else max(6, count // FEWER))


settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("dev", settings.get_profile("ci"), max_examples=100 // FEWER)
settings.load_profile(PROFILE)
