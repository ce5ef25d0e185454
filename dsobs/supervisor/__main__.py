"""`python -m dsobs.supervisor`: the same as `dsobs supervise`."""

import sys

from dsobs.supervisor.command import supervise

if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
