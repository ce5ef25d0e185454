"""How hypothesis runs: without wall-clock limits, which a busy machine breaks. And each real test has its lane."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.real.lanes import misplaced

settings.register_profile("dsobs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dsobs")

# A shell without job control starts what goes into the background with these ignored, and children inherit that.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if wrong := misplaced(items):
        raise pytest.UsageError("\n".join(wrong))
