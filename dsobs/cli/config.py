"""`dsobs config check | show | schema`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_with_origins, read_config
from dsobs.cli.output import print_error, print_json

if TYPE_CHECKING:
    from dsobs.config import Config, Loaded, Problem


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `config`."""
    parser = subparsers.add_parser("config", help="check, show and describe the settings", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="say everything that is wrong with the settings",
        description="Says everything that is wrong: the file, the environment, the flags, and secrets and files that "
        "are not there. Exit status 2 if anything is.",
        allow_abbrev=False,
    )
    _add_file(check)
    check.add_argument("--json", action="store_true", help="one object a line: where, name, message")
    add_config_options(check)
    check.set_defaults(run=run_check)

    show = commands.add_parser(
        "show",
        help="print the settings in force, secrets as references or stars",
        description="Prints all settings in force as YAML. Secrets are shown as references or stars.",
        allow_abbrev=False,
    )
    _add_file(show)
    show.add_argument("--json", action="store_true", help="one JSON object")
    show.add_argument("--origin", action="store_true", help="say where each value that is no default was written")
    add_config_options(show)
    show.set_defaults(run=run_show)

    schema = commands.add_parser("schema", help="print the JSON Schema of the settings file", allow_abbrev=False)
    schema.set_defaults(run=run_schema)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="settings file, in place of --config")


def _take_file(args: argparse.Namespace) -> None:
    if args.file is not None:
        if args.config is not None:
            raise CommandError("give the file once: as FILE or by --config", ExitCode.USAGE)
        args.config = args.file


def run_check(args: argparse.Namespace) -> int:
    """Prints each problem; 0 if there is none, else 2."""
    from dsobs.config import ConfigError, unready
    from dsobs.sidecar.settings import unusable

    _take_file(args)
    problems: list[Problem] = []
    try:
        loaded: Loaded | None = read_config(args)
    except ConfigError as error:
        problems, loaded = list(error.problems), error.rest
    if loaded is not None:
        findings = [*unready(loaded.config), *unusable(loaded.config)]
        told = {problem.key for problem in problems}
        problems += [problem for problem in loaded.problems(findings) if problem.key not in told]
        problems += [*_unknown_plugins(loaded), *_in_files(loaded.config)]
    for problem in problems:
        if args.json:
            print_json({"where": problem.where, "name": problem.key, "message": problem.message})
        else:
            print_error(str(problem))
    if problems:
        return ExitCode.USAGE
    if not args.json:
        print("the settings are right")
    return ExitCode.DONE


def _unknown_plugins(loaded: "Loaded") -> "list[Problem]":
    """Names of engines and runtimes that nothing has registered."""
    import difflib

    from dsobs import plugins
    from dsobs.config import Finding

    findings = []
    for key, name, group, built_in in (
        ("target.engine", loaded.config.target.engine, "dsobs.engines", ("auto",)),
        ("runtime.name", loaded.config.runtime.name, "dsobs.runtimes", ("auto", "none")),
    ):
        known = (*built_in, *plugins.available(group))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else "install its plugin or write one of them"
            findings.append(Finding(key, (key,), f"{name!r} is none of {', '.join(known)}; {advice}"))
    return loaded.problems(findings)


def _in_files(config: "Config") -> "list[Problem]":
    """What is wrong with the files that the settings name and that are there."""
    from dsobs.sidecar.settings import read_files

    problems: list[Problem] = []
    read_files(config, problems)
    absent = {str(path) for path in (*config.rules.files, *config.inhibition.files) if not path.is_file()}
    return [problem for problem in problems if problem.where not in absent]


def run_show(args: argparse.Namespace) -> int:
    """Prints the settings in force."""
    from dsobs.config.settings import tree_of

    _take_file(args)
    loaded = load_with_origins(args)
    tree = tree_of(loaded.config)
    if args.json:
        print_json({"settings": tree, "origins": loaded.origins} if args.origin else tree)
    else:
        for line in _yaml_lines(tree, loaded.origins if args.origin else {}, ""):
            print(line)
    return ExitCode.DONE


def _yaml_lines(tree: dict[str, Any], origins: Any, prefix: str) -> Iterator[str]:
    import yaml

    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, origins, f"{prefix}{name}.")
            continue
        text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10_000).strip()[1:-1]
        origin = origins.get(f"{prefix}{name}")
        yield f"{indent}{name}: {text}" + (f"  # {origin}" if origin else "")


def run_schema(_: argparse.Namespace) -> int:
    """Prints the JSON Schema."""
    from dsobs.config.reference import schema_text

    print(schema_text(), end="")
    return ExitCode.DONE
