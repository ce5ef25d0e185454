"""How hypothesis runs: without wall-clock limits, which a busy machine breaks."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("dsobs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dsobs")

# A shell without job control starts what goes into the background with these ignored, and children inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
