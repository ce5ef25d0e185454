"""`dsobs k8s inject`: the sidecar, put into a manifest or taken out of it."""

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.output import print_error, print_json, printable

if TYPE_CHECKING:
    from dsobs.manifests import Finding, Options, Outcome


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `k8s`."""
    parser = subparsers.add_parser("k8s", help="put the sidecar into manifests of Kubernetes", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inject = commands.add_parser(
        "inject",
        help="add the sidecar to a manifest of a vLLM workload, or take it out",
        description="Reads a manifest (Pod, Deployment, StatefulSet, LeaderWorkerSet, Job, KServe InferenceService and "
        "others; several documents, Lists, JSON) and writes it to stdout with dsobs beside each vLLM server; what is "
        "not about dsobs stays as it is, byte by byte. The difference and remarks go to stderr. Nothing is sent to a "
        "cluster. Done twice it changes nothing. The engine's image must have sh, and date with +%s, for its probes: "
        "without sh its pods never get ready, without such a date every request of dsobs is ignored. "
        "Exit status 2 if the manifest can't be used: then nothing is written, and everything that is wrong is said.",
        allow_abbrev=False,
    )
    inject.add_argument("file", metavar="FILE", help="the manifest; `-` reads stdin")
    inject.add_argument("--remove", action="store_true", help="take out what an earlier run put there")
    inject.add_argument("--image", metavar="IMAGE", help="the sidecar's image (default: dsobs of this version)")
    inject.add_argument(
        "--container",
        metavar="NAME",
        default="",
        help="the engine's container, where it can't be told or there are two",
    )
    inject.add_argument(
        "--port", metavar="PORT", type=_port, help="the engine's port, where the manifest does not tell it"
    )
    inject.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="sidecar_settings",
        help="a setting of the sidecar, as remediation.mode=enforce; may be repeated",
    )
    inject.add_argument(
        "--config-map", metavar="NAME", default="", help="a ConfigMap whose dsobs.yaml is the sidecar's settings file"
    )
    inject.add_argument(
        "--secret", metavar="NAME", default="", help="a Secret whose keys are variables, for settings as env:KEY"
    )
    inject.add_argument(
        "--token",
        action="store_true",
        help="mount a token of the pod's service account in the sidecar, and there only, for the rights given to it",
    )
    inject.add_argument(
        "--replace-liveness-probe",
        action="store_true",
        help="replace a liveness probe of your own; one that only asks the API server is replaced anyway",
    )
    inject.add_argument("--no-diff", action="store_true", help="leave the difference out")
    inject.add_argument(
        "--json",
        action="store_true",
        help="remarks and problems as one object a line: kind, file, line, workload, message; no difference",
    )
    inject.set_defaults(run=run_inject)


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write 1 to 65535")
    return int(text)


def run_inject(args: argparse.Namespace) -> int:
    """0, with the result on stdout; 2 with every problem on stderr."""
    from dsobs.manifests import inject, remove

    options = _options(args)
    text = _read(args.file)
    outcome = remove(text, args.file) if args.remove else inject(text, args.file, options)
    if not args.json and not args.no_diff and not outcome.problems:
        _print_diff(text, outcome, args.file)
    for kind, findings in (("remark", outcome.remarks), ("problem", outcome.problems)):
        for finding in findings:
            _print(kind, finding, as_json=args.json)
    if outcome.problems:
        return ExitCode.USAGE
    sys.stdout.buffer.write(outcome.text.encode())
    sys.stdout.buffer.flush()
    return ExitCode.DONE


def _options(args: argparse.Namespace) -> "Options":
    from importlib.metadata import version

    from dsobs.manifests import Options

    return Options(
        image=args.image or f"dsobs:{version('dsobs')}",
        image_given=args.image is not None,
        container=args.container,
        port=args.port,
        settings=_settings(args.sidecar_settings),
        config_map=args.config_map,
        secret=args.secret,
        token=args.token,
        replace_liveness=args.replace_liveness_probe,
    )


def _settings(given: list[str]) -> dict[str, str]:
    """`--set` as variables of the sidecar; CommandError with everything that is wrong with them."""
    from dsobs.config import ConfigError, load
    from dsobs.config.settings import settings

    named: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise CommandError("--set takes NAME=VALUE, such as remediation.mode=enforce", ExitCode.USAGE)
        named[name.strip()] = value
    try:
        load(None, {}, named)
    except ConfigError as error:
        raise CommandError("\ndsobs: ".join(map(str, error.problems)), ExitCode.USAGE) from None
    known = {".".join(key): setting.variable for key, setting in settings().items()}
    return {known[name]: value for name, value in named.items()}


def _read(name: str) -> str:
    from dsobs.manifests.inject import MAX_BYTES

    if name == "-":
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        path = Path(name)
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except IsADirectoryError:
            raise CommandError(f"{name}: is a directory; give a manifest", ExitCode.USAGE) from None
        except OSError as error:
            raise CommandError(f"{name}: can't be read ({error.strerror}); give a manifest", ExitCode.USAGE) from None
    if len(raw) > MAX_BYTES:
        raise CommandError(f"{name}: is larger than {MAX_BYTES >> 20} MiB; give the workload alone", ExitCode.USAGE)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{name}:{line}: is not UTF-8; save it as UTF-8 text", ExitCode.USAGE) from None


def _print_diff(text: str, outcome: "Outcome", name: str) -> None:
    shown = "stdin" if name == "-" else name
    before, after = text.splitlines(keepends=True), outcome.text.splitlines(keepends=True)
    for line in difflib.unified_diff(before, after, shown, f"{shown} (result)"):
        body = line.rstrip("\r\n").expandtabs()
        print(printable(body), file=sys.stderr)


def _print(kind: str, finding: "Finding", *, as_json: bool) -> None:
    if as_json:
        row = {"kind": kind, "file": finding.file, "line": finding.line or None, "workload": finding.workload or None}
        print_json({**row, "message": finding.message}, file=sys.stderr)
    else:
        print_error(str(finding))
