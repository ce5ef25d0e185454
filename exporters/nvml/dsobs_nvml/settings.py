"""The exporter's settings: flags, else environment variables, else defaults. Everything that is wrong is told at
once.
"""

import argparse
import math
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from dsobs_nvml.pods import SOCKET

PREFIX = "DSOBS_NVML_"


class SettingsError(Exception):
    """Settings that can't be used; the message names each with where it was set and what to write."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the exporter was told; `OPTIONS` says what each means."""

    listen: tuple[str, int] | None
    textfile: Path | None
    textfile_interval: float
    interval: float
    devices: tuple[str, ...]
    pod_resources: Path | None
    dcgm_names: bool
    hostname: str
    recording: Path | None
    log_level: str


@dataclass(frozen=True, slots=True)
class Option:
    """One setting."""

    name: str
    default: str
    placeholder: str
    """Empty for a switch."""
    help: str
    read: Callable[[str], Any]
    """From what was written; ValueError with what is wrong."""

    @property
    def flag(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """In the environment."""
        return PREFIX + self.name.upper()


def _listen(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\s\[\]]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is no address and port; write 127.0.0.1:9941, or none")
    return match[1] or match[2], int(match[3])


def _seconds(least: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            seconds = float(text.removesuffix("s"))
        except ValueError:
            seconds = math.nan
        if not least <= seconds <= 3600:
            raise ValueError(f"{text!r} is no number of seconds from {least:g} to 3600; write 1")
        return seconds

    return read


def _switch(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _textfile(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    if path.suffix != ".prom":
        raise ValueError(f"{text!r} does not end in .prom, so that node_exporter would not read it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; make it, and give it to node_exporter")
    return path


def _devices(text: str) -> tuple[str, ...]:
    devices = tuple(filter(None, (part.strip() for part in text.split(","))))
    for device in devices:
        if not re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", device):
            raise ValueError(
                f"{device!r} is neither an index nor a UUID; write 0 or GPU-… or MIG-…, with commas between"
            )
    return devices


def _pod_resources(text: str) -> Path | None:
    if text == "auto":
        return SOCKET if SOCKET.parent.is_dir() else None
    return None if text == "off" else Path(text)


def _recording(text: str) -> Path | None:
    if not text:
        return None
    if not Path(text).is_file():
        raise ValueError(f"there is no file {text}")
    return Path(text)


def _level(text: str) -> str:
    if text not in ("debug", "info", "warning", "error"):
        raise ValueError(f"{text!r} is none of debug, info, warning, error")
    return text


OPTIONS: tuple[Option, ...] = (
    Option(
        "listen",
        "127.0.0.1:9941",
        "HOST:PORT",
        "Where to serve; none for no server. The loopback unless you say otherwise, since the page names processes and "
        "pods and asks for no password: in a DaemonSet write 0.0.0.0:9941 and have a NetworkPolicy",
        _listen,
    ),
    Option("textfile", "", "PATH", "Also write the page to this .prom file for node_exporter, by rename", _textfile),
    Option("textfile_interval", "15", "SECONDS", "Between two writings of it", _seconds(1.0)),
    Option("interval", "1", "SECONDS", "Between two readings; what is dear is asked more rarely", _seconds(0.2)),
    Option("devices", "", "LIST", "Indices or UUIDs of the cards to read; all unless given", _devices),
    Option(
        "pod_resources",
        "auto",
        "PATH",
        "kubelet's pod-resources socket, for the labels namespace, pod and container: auto (the usual path, if its "
        "folder is there), off, or a path",
        _pod_resources,
    ),
    Option("dcgm_names", "false", "", "Also give DCGM_FI_* names, for dashboards made for the DCGM exporter", _switch),
    Option("hostname", "", "NAME", "DCGM's label Hostname; NODE_NAME or this host's name unless given", str),
    Option(
        "recording", "", "PATH", "Give a recording's readings in place of a driver's: to try dashboards out", _recording
    ),
    Option("log_level", "info", "LEVEL", "debug, info, warning or error, on stderr", _level),
)


class _Version(argparse.Action):
    """Prints the version; it is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"dsobs-nvml {version('dsobs-nvml')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line. Values stay text here, so that all errors are told together."""
    made = argparse.ArgumentParser(
        "dsobs-nvml",
        description="NVIDIA GPU readings for Prometheus: over HTTP and as a file for node_exporter.",
        epilog=f"Every option may be given as an environment variable too: {PREFIX}LISTEN, {PREFIX}DEVICES, …",
        allow_abbrev=False,
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    for option in OPTIONS:
        text = f"{option.help.replace('%', '%%')} (default: {option.default or 'none'})"
        if option.placeholder:
            made.add_argument(option.flag, metavar=option.placeholder, help=text)
        else:
            made.add_argument(option.flag, action="store_const", const="true", help=text)
    return made


def settings_of(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """From the command line and the environment; SettingsError for what is wrong. SystemExit for --help and unknown
    flags.

    Variables that are not known are left alone: Kubernetes sets some of its own for a Service of this name.
    """
    given = vars(parser().parse_args(arguments))
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in OPTIONS:
        text, where = option.default, "default"
        if given[option.name] is not None:
            text, where = given[option.name], option.flag
        elif option.variable in environ:
            text, where = environ[option.variable], option.variable
        try:
            values[option.name] = option.read(text)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not problems and values["listen"] is None and values["textfile"] is None:
        problems.append("--listen: is none, and there is no --textfile: nothing would be served; give one of them")
    if problems:
        raise SettingsError("\n".join(problems))
    values["hostname"] = values["hostname"] or environ.get("NODE_NAME") or socket.gethostname()
    return Settings(**values)
