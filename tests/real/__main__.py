"""`make test-real`: everything marked `real`, against real servers. A test that is skipped has failed.

Without further words the lanes of tests/real/lanes.py run side by side. With words, pytest's, it is one process:
`python -m tests.real tests/real/test_story.py`; `--lane NAME` takes the tests of one lane.
"""

import argparse
import os
import sys

import pytest

from tests.real import lanes


def main(words: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.real", add_help=False, allow_abbrev=False)
    parser.add_argument("--lane", choices=lanes.LANES)
    parser.add_argument("--tell", type=int)
    given, rest = parser.parse_known_args(words)
    if not words:
        return lanes.run(lanes.LANES, [str(path) for path in sorted(lanes.files_with_real_tests())])
    plugins: list[object] = [lanes.NothingSkipped()]
    if given.lane is not None:
        told = None if given.tell is None else os.fdopen(given.tell, "w")
        plugins.append(lanes.OneLane(given.lane, told))
    return pytest.main([*lanes.PYTEST, "--tb=native", *rest], plugins=plugins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
