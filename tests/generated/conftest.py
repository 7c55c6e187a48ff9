"""How inputs are generated: the same ones each time, or others on request.

``FLATMIN_GENERATED=10 pytest tests/generated`` draws ten times as many, at random.
"""

import os

from hypothesis import HealthCheck, settings

_TIMES = int(os.environ.get("FLATMIN_GENERATED", "0"))

# No deadline: the first of a kind compiles. Inputs are filtered and large on purpose.
settings.register_profile(
    "flatmin",
    derandomize=_TIMES == 0,
    database=None,
    deadline=None,
    max_examples=100 * max(1, _TIMES),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("flatmin")
