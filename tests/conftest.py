"""How hypothesis runs: without wall-clock limits, which a busy machine breaks."""

from hypothesis import HealthCheck, settings

settings.register_profile("dsobs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dsobs")
