"""Worker processes do not find the tests: what they are to run travels by value."""

import sys

import pytest

try:
    import cloudpickle
except ImportError:  # before joblib 1.6 it is a part of it
    from joblib.externals import cloudpickle


@pytest.fixture(autouse=True)
def by_value(request):
    package = request.module.__package__
    modules = [m for name, m in sys.modules.items() if name.startswith(f"{package}.")]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
