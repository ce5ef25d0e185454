"""`dsobs` whose random delays all last their upper bound."""

import random
import sys

from dsobs.cli import main


class Longest(random.Random):
    """Draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


if __name__ == "__main__":
    random.Random = Longest  # type: ignore[misc]
    sys.exit(main())
