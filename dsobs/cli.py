"""The `dsobs` command."""


def main() -> int:
    """Entry point of the console script."""
    return 0
