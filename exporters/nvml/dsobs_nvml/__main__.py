"""`python -m dsobs_nvml` is the same as `dsobs-nvml`."""

import sys

from dsobs_nvml.exporter import main

sys.exit(main())
