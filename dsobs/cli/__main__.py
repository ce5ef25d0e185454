"""`python -m dsobs.cli` is `dsobs`."""

import sys

from dsobs.cli import main

sys.exit(main())
