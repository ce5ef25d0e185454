"""`make test-real`: everything marked `real`, against real servers. A test that is skipped has failed."""

import sys

import pytest


class NothingSkipped:
    """Turns a run with skipped or no tests into a failed one."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.skipped:
            print(f"\nskipped, and so failed: {', '.join(self.skipped)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


if __name__ == "__main__":
    arguments = [
        "-o",
        "addopts=",
        "--strict-markers",
        "--import-mode=importlib",
        "-m",
        "real",
        "-v",
        "--durations=25",
        "--tb=native",
    ]
    sys.exit(pytest.main([*arguments, *sys.argv[1:]], plugins=[NothingSkipped()]))
