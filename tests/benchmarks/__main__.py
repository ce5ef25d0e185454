"""`make bench`: all benchmarks, one JSON object each."""

from tests.benchmarks import cycle, process

if __name__ == "__main__":
    print("parsing, one turn, replay:", flush=True)
    cycle.main()
    print("dsobs run beside a busy engine, ten minutes:", flush=True)
    process.main()
