"""Settings of the property tests; tests/conftest.py imports them before it loads a module with properties."""

import os

from hypothesis import settings

FACTOR = int(os.environ.get("EXAMPLES_FACTOR", "1"))
"""`make test-long` sets it: it repeats each property with this many times the examples."""

# A busy machine makes any example slow, so none has a deadline; pytest-timeout ends what hangs.
settings.register_profile("tests", max_examples=100 * FACTOR, deadline=None)
settings.load_profile("tests")


def examples(count: int) -> settings:
    """Choose how many examples a property tries in `make test`."""
    return settings(max_examples=count * FACTOR)
