"""The key indicators: one catalogue; recording rules, dashboards, reference and status page are made from it.

from dsobs.indicators import INDICATORS

for indicator in INDICATORS.values():
    indicator.title, indicator.question, indicator.record  # the series that holds it, each 15 s
    indicator.threshold_of(config)                         # None: it has none
    indicator.is_bad(value, config)                        # None: nothing to compare, or not known
    indicator.shown(value)                                 # "480 ms", "93.1 %"
"""

from dsobs.indicators.catalogue import INDICATORS
from dsobs.indicators.documents import RULES_FILE, indicators_page, rules_file
from dsobs.indicators.indicator import Better, Class, Indicator, Threshold

__all__ = [
    "INDICATORS",
    "RULES_FILE",
    "Better",
    "Class",
    "Indicator",
    "Threshold",
    "indicators_page",
    "rules_file",
]
