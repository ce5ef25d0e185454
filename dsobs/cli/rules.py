"""`dsobs rules show | check | test | fmt`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json, print_table, printable

if TYPE_CHECKING:
    from dsobs.rules.files import AlertRule, Group, RecordingRule
    from dsobs.rules.reader import Problem
    from dsobs.rules.unit_test_run import CaseResult


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `rules`."""
    parser = subparsers.add_parser(
        "rules", help="show, check, test and format Prometheus rule files", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    show = commands.add_parser(
        "show",
        help="print shipped rules with your settings, as a rule file for Prometheus",
        description="Prints shipped rule files with the settings in force in them, as one rule file that Prometheus "
        "loads. Without files: all of them, those that only Prometheus evaluates included.",
        allow_abbrev=False,
    )
    show.add_argument("files", metavar="FILE", nargs="*", help="names of shipped files, such as prometheus.rules.yaml")
    add_config_options(show, shorthands=False)
    show.set_defaults(run=run_show)

    check = commands.add_parser(
        "check",
        help="say everything that is wrong with rule files",
        description="Loads rule files as `dsobs run` does and says everything that is wrong, with file, line, rule and "
        "expression, what dsobs does not evaluate included. Notes metrics of dsobs's prefix and severities that there "
        "are not. "
        "Without files: the rules that would run. In a folder: "
        "`*.rules.yaml` and `*.rules.yml`, or, where there are none, every YAML file that is no unit test. Exit status "
        "2 if anything is wrong.",
        allow_abbrev=False,
    )
    check.add_argument("paths", metavar="PATH", nargs="*", type=Path, help="rule files, or folders of them")
    check.add_argument(
        "--for-prometheus",
        action="store_true",
        help="allow windows that only Prometheus can look back over (the sidecar keeps 6 hours)",
    )
    check.add_argument(
        "--json", action="store_true", help="one object a line: each problem, or each rule if all is right"
    )
    add_config_options(check, shorthands=False)
    check.set_defaults(run=run_check)

    test = commands.add_parser(
        "test",
        help="run unit tests of rules, in promtool's format",
        description="Runs unit test files of promtool's format (`promtool test rules`) and prints each failed case "
        "with what was expected and what it got. Exit status 1 if a case failed, 2 if a file can't be used; the other "
        "files are run in any case.",
        allow_abbrev=False,
    )
    test.add_argument("files", metavar="FILE", nargs="+", type=Path, help="unit test files")
    test.add_argument(
        "--json",
        action="store_true",
        help="one object a line for each case: file, line, name, expr, eval_time, ok, reason, expected, got",
    )
    test.set_defaults(run=run_test)

    fmt = commands.add_parser(
        "fmt",
        help="format the expressions of rule files",
        description="Writes the expressions of rule files in one form, in place; comments, numbers, order and all else "
        "stay as they are. Where an expression has to be left alone, as for comments among its lines, that is said "
        "on stderr, with file and line.",
        allow_abbrev=False,
    )
    fmt.add_argument(
        "paths", metavar="PATH", nargs="+", help="rule files or folders; `-` reads stdin and writes stdout"
    )
    fmt.add_argument("--check", action="store_true", help="write nothing; name what would change, exit status 1 if any")
    fmt.set_defaults(run=run_fmt)


def run_show(args: argparse.Namespace) -> int:
    """Prints one rule file."""
    from dsobs.rules import shipped

    for name in args.files:
        if name not in shipped.ALL_FILE_NAMES:
            known = ", ".join(shipped.ALL_FILE_NAMES)
            raise CommandError(f"{name} is no shipped rule file; there are {known}", ExitCode.USAGE)
    names = list(dict.fromkeys(args.files)) or shipped.ALL_FILE_NAMES
    print(shipped.rule_file(names, load_config(args)), end="")
    return ExitCode.DONE


def rule_files(paths: Iterable[Path]) -> list[Path]:
    """These files, and those of these folders; CommandError for a folder without any."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        yaml_files = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file())
        named = [p for p in yaml_files if p.stem.endswith(".rules")]
        others = [p for p in yaml_files if not p.stem.endswith(".test")]
        if not (named or others):
            raise CommandError(f"{path}: no rule files in this folder; name them *.rules.yaml", ExitCode.USAGE)
        found += named or others
    return found


def run_check(args: argparse.Namespace) -> int:
    """Prints the rules; each problem and 2 if there is any."""
    from dsobs.rules import files, shipped

    if args.paths:
        groups, problems = files.read(rule_files(args.paths))
    else:
        config = load_config(args)
        groups, problems = files.read(config.rules.files, shipped.sources(config))
    if not args.for_prometheus:
        problems += files.out_of_reach(groups)
    if problems:
        for problem in sorted(problems, key=lambda p: (p.file, p.line)):
            _print_problem(problem, as_json=args.json)
        return ExitCode.USAGE
    if not args.for_prometheus:
        _note(groups)
    rules = [(group, rule) for group in groups for rule in group.rules]
    if args.json:
        for group, rule in rules:
            print_json(_rule_row(group, rule))
        return ExitCode.DONE
    print_table(
        ("rule", "kind", "severity", "every", "for", "window", "file"),
        [
            (
                row["rule"],
                row["kind"],
                row["severity"],
                _words(row["interval"]),
                _words(row["for"]),
                _words(row["window"]),
                f"{row['file']}:{row['line']}",
            )
            for row in (_rule_row(group, rule) for group, rule in rules)
        ],
    )
    print(f"{_count(len(rules), 'rule')} in {_count(len(groups), 'group')} {'is' if len(rules) == 1 else 'are'} right")
    return ExitCode.DONE


def _note(groups: "Sequence[Group]") -> None:
    """A plugin may give more metrics than there are here, and a receiver know other severities."""
    from dsobs.cli.rule_notes import notes

    for problem in notes(groups):
        print_error(f"note: {problem}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_problem(problem: "Problem", *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "file": problem.file,
                "line": problem.line,
                "group": problem.group,
                "rule": problem.rule,
                "expr": problem.expression,
                "message": problem.message,
                "unsupported": problem.unsupported,
            }
        )
        return
    print_error(str(problem))
    for line in problem.expression.splitlines():
        print(f"    {printable(line)}", file=sys.stderr)


def _rule_row(group: "Group", rule: "AlertRule | RecordingRule") -> dict[str, Any]:
    from dsobs.rules.files import AlertRule

    row = {"file": group.file, "line": rule.line, "group": group.name, "rule": rule.name, "interval": group.interval}
    if isinstance(rule, AlertRule):
        severity = {name: template.text for name, template in rule.labels}.get("severity", "")
        row |= {"kind": "alert", "severity": severity, "for": rule.for_seconds}
    else:
        row |= {"kind": "record", "severity": "", "for": None}
    return row | {"window": rule.range_seconds, "expr": rule.expr}


def _words(seconds: float | None) -> str:
    from dsobs.config import format_duration

    return format_duration(seconds) if seconds else ""


def run_test(args: argparse.Namespace) -> int:
    """0 if all cases pass, 1 if one fails, 2 if a file is bad."""
    from dsobs.rules.unit_test_run import run_file
    from dsobs.rules.unit_tests import read_unit_tests

    status = ExitCode.DONE
    for path in args.files:
        tests, problems = read_unit_tests(path)
        results: list[CaseResult] = []
        if tests is not None:
            for pattern in tests.unmatched:
                print_error(f"{path}: no rule file is {pattern}; its rules are not there in these tests")
            results, problems = run_file(tests)
        for result in results:
            if args.json:
                print_json(_case_row(result))
            elif not result.ok:
                _print_failure(result)
        for problem in problems:
            print_error(str(problem))
            if args.json:
                print_json(
                    {"file": str(path), "name": "", "expr": problem.expression, "ok": False, "reason": str(problem)}
                )
        failed = sum(not result.ok for result in results)
        if not args.json:
            _print_count(path, len(results), failed, bad=bool(problems))
        if problems:
            status = ExitCode.USAGE
        elif failed and status == ExitCode.DONE:
            status = ExitCode.FAILED
    return status


def _case_row(result: "CaseResult") -> dict[str, Any]:
    return {
        "file": result.file,
        "line": result.line,
        "name": result.name,
        "expr": result.expr,
        "eval_time": result.eval_time,
        "ok": result.ok,
        "reason": result.reason,
        "expected": list(result.expected),
        "got": list(result.got),
    }


def _print_failure(result: "CaseResult") -> None:
    print(f"{result.file}:{result.line}: {printable(result.name)}: {_one_line(result.expr)}")
    print(f"    {printable(result.reason)}")
    if result.expected or result.got:
        for word, lines in (("expected", result.expected), ("got", result.got)):
            for line in lines or ("nothing",):
                print(f"    {word:<8}  {printable(line)}")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _print_count(path: Path, count: int, failed: int, *, bad: bool) -> None:
    if bad:
        text, colour = "not run", "31"
    elif failed:
        text, colour = f"{failed} of {count} cases failed", "31"
    else:
        text, colour = f"{count} cases passed", "32"
    print(f"{path}: {_coloured(text, colour)}")


def _coloured(text: str, colour: str) -> str:
    import os

    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"


def run_fmt(args: argparse.Namespace) -> int:
    """0; under --check 1 if something would change; 2 if a file can't be read."""
    from dsobs.rules.formatting import formatted
    from dsobs.rules.reader import Problem, read_text

    problems: list[Problem] = []
    changed = False
    for name in _fmt_names(args.paths):
        text = sys.stdin.buffer.read().decode() if name == "-" else read_text(name, problems, newline="")
        if text is None:
            continue
        done = formatted(text, "stdin" if name == "-" else name)
        problems += done.problems
        for left in done.left:
            print_error(str(left))
        if done.problems:
            continue
        if name == "-" and not args.check:
            sys.stdout.write(done.text)
        elif done.text != text:
            changed = True
            print(f"{name}: {'not formatted' if args.check else 'formatted'}")
            if not args.check:
                Path(name).write_text(done.text, encoding="utf-8", newline="")
    for problem in problems:
        print_error(str(problem))
    if problems:
        return ExitCode.USAGE
    return ExitCode.FAILED if args.check and changed else ExitCode.DONE


def _fmt_names(paths: Sequence[str]) -> list[str]:
    return [str(p) for name in paths for p in ([name] if name == "-" else rule_files([Path(name)]))]
