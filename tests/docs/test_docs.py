"""What README and docs show: commands parse or run, settings load, links resolve, names are there."""

import contextlib
import functools
import io
import itertools
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from dsobs_nvml.settings import parser as nvml_options

from dsobs.api.application import create
from dsobs.cli import build_parser
from dsobs.cli.exit_codes import CommandError
from dsobs.cli.options import read_config
from dsobs.config import load, parse_duration
from dsobs.config.models import Config
from dsobs.config.settings import sections, settings
from dsobs.demo import STORY
from dsobs.logs import metrics
from dsobs.logs.indices.roles import READER, SETUP, WRITER
from dsobs.manifests import Options, inject
from dsobs.model.engine import EngineAdapter
from dsobs.model.samples import Page, Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.rules import files as rule_files
from dsobs.rules.unit_test_run import run_file
from dsobs.rules.unit_tests import read_unit_tests
from dsobs.supervisor.command import options_parser as supervise_options
from dsobs.telemetry import REGISTRY
from tests.api.conftest import MemorySource
from tests.contracts.adapter_contract import AdapterContract
from tests.docs.terminal import COLUMNS, drawn

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ROOT / "docs" / "reference"
HARMLESS = (
    "--version",
    "config show",
    "config schema",
    "replay ",
    "rules check mine",
    "rules test mine",
    "rules fmt mine",
    "k8s inject",
)
"""Beginnings of `dsobs` commands that are run as they stand, in a folder that has the files which they name."""
RECORDING = ROOT / "tests" / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
OTHERS = {"docker", "nvidia-smi", "dmesg", "top", "touch", "rm", "python3", "cat", "df", "du", "ls", "lspci", "ps"} | {
    "journalctl",
    "systemctl",
    "vllm",
    "kubectl",
    "amtool",
    "pip",
    "helm",
    "cd",
    "echo",
    "cp",
    "promtool",
}
"""Commands of others, which are only split into words."""
KEYS = {".".join(key) for key in settings()} | {".".join(key) for key in sections()}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@functools.cache
def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        fence: tuple[int, str, str] | None = None
        lines: list[str] = []
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            match = re.fullmatch(r"( *)```(\w*)", line)
            if match and fence is None:
                fence, lines = (number, match[1], match[2]), []
            elif match and fence is not None:
                found.append(Block(page, fence[0], fence[2], "\n".join(lines) + "\n"))
                fence = None
            elif fence is not None:
                lines.append(line.removeprefix(fence[1]))
        assert fence is None, f"{page}: a block is not closed"
    return found


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


@functools.cache
def commands() -> list[tuple[str, list[str]]]:
    """Where it stands, and the words of each command in `sh` and `console` blocks."""
    found = []
    for block in (*of("sh"), *of("console")):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for piped, one in itertools.groupby(words, lambda word: word == "|"):
                command = list(itertools.takewhile(lambda word: word != ">", one))
                if not piped and (command == words[: len(command)] or command[0] == "dsobs"):
                    found.append((str(block), command))
    return found


def commands_below(page: Path, heading: str) -> list[str]:
    """Of the page's `sh` blocks below this heading, a line each."""
    text = page.read_text(encoding="utf-8").splitlines()
    begin = text.index(f"## {heading}") + 1
    end = next((n for n, line in enumerate(text[begin:], begin) if line.startswith("## ")), len(text))
    found = [block for block in of("sh") if block.page == page and begin < block.line <= end]
    return [line for b in found for line in b.text.replace("\\\n", " ").splitlines() if line.strip()]


def routes() -> set[tuple[str, str]]:
    """(method, path) of dsobs's API."""
    app = create(MemorySource(), None)
    return {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()}  # type: ignore[attr-defined]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} <= {"sh", "console", "yaml", "text", "python", "toml"}
    assert len(commands()) > 40


@pytest.mark.parametrize(
    ("where", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_command_is_one_that_there_is(where: str, words: list[str]) -> None:
    program, *arguments = words
    if program == "dsobs":
        parse_dsobs(where, arguments)
    elif program == "dsobs-nvml":
        nvml_options().parse_args(arguments)
    elif program == "make":
        targets = {name for line in (ROOT / "Makefile").read_text().splitlines() if (name := line.partition(":")[0])}
        assert arguments[0] in targets, where
    elif program == "curl":
        asked_of_dsobs(where, arguments)
    else:
        assert program in OTHERS, where


def parse_dsobs(where: str, arguments: list[str]) -> None:
    if arguments[:1] == ["supervise"]:
        cut = arguments.index("--")
        supervise_options().parse_args(arguments[1:cut])
        assert arguments[cut + 1 :], where
        return
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            args = build_parser().parse_args(arguments)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{where}: {told.getvalue()}")
        return
    if hasattr(args, "settings"):
        # Flags over the defaults: the file that a command names is a block of its own.
        args.config = None
        try:
            read_config(args, {})
        except CommandError as error:
            pytest.fail(f"{where}: {error}")


def asked_of_dsobs(where: str, arguments: list[str]) -> None:
    url = urlsplit(arguments[-1])
    if url.port != 9940:
        return
    method = arguments[arguments.index("-X") + 1] if "-X" in arguments else "GET"
    assert (method, url.path) in routes(), where


def harmless() -> list[tuple[str, ...]]:
    """Each harmless `dsobs` command once; those on files that only the reader has are not."""
    given = {tuple(words[1:]) for _, words in commands() if words[0] == "dsobs"}
    return sorted(words for words in given if " ".join(words).startswith(HARMLESS))


@pytest.mark.parametrize("words", harmless(), ids=" ".join)
def test_harmless_commands_run(words: tuple[str, ...], tmp_path: Path) -> None:
    for name, mark in (("mine.rules.yaml", "groups:"), ("mine.test.yaml", "rule_files:")):
        own = next(block for block in of("yaml") if block.page.name == "own-rules.md" and block.text.startswith(mark))
        (tmp_path / name).write_text(own.text)
    manifest = next(block for block in of("yaml") if block.page.name == "kubernetes.md").text
    (tmp_path / "vllm.yaml").write_text(manifest)
    (tmp_path / "with-dsobs.yaml").write_text(inject(manifest, "vllm.yaml", Options("dsobs:1")).text)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    words = tuple(word.replace("/var/lib/dsobs/", f"{tmp_path}/state/") for word in words)
    for word in words:
        if word.endswith(".jsonl.gz") and not (tmp_path / word).exists():
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).symlink_to(RECORDING)
    done = subprocess.run(
        [sys.executable, "-m", "dsobs.cli", *words],
        cwd=tmp_path,
        input=manifest,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _variables(service: dict[str, Any]) -> dict[str, str]:
    return {k: v for k, v in service.get("environment", {}).items() if k.startswith("DSOBS_")}


def _ports_on_the_host(service: dict[str, Any]) -> list[int]:
    """Those that Compose publishes, and dsobs's own where it is on the host's network."""
    published = [int(mapping.split(":")[-2]) for mapping in service.get("ports", ())]
    if service.get("network_mode") != "host":
        return published
    return [*published, int(load(None, _variables(service), {}).api.listen.rpartition(":")[2])]


def _rate_windows() -> list[float]:
    """Of the recording rules of indicators, seconds."""
    found = re.findall(r"\b(?:rate|increase)\([^][]*\[(\w+)\]", (ROOT / "alerts" / "indicators.rules.yaml").read_text())
    assert len(found) > 10
    return [_seconds(window) for window in found]


def _seconds(text: str) -> float:
    seconds = parse_duration(text)
    assert isinstance(seconds, int | float)
    return seconds


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_every_yaml_block_is_settings_rules_or_compose(block: Block, tmp_path: Path) -> None:
    tree: dict[str, Any] = yaml.safe_load(block.text)
    file = tmp_path / "block.yaml"
    file.write_text(block.text, encoding="utf-8")
    if "groups" in tree:
        assert rule_files.load([file])
    elif "tests" in tree:
        rules = next(b for b in of("yaml") if b.page == block.page and "groups:" in b.text)
        (tmp_path / tree["rule_files"][0]).write_text(rules.text, encoding="utf-8")
        tests, problems = read_unit_tests(file)
        assert tests is not None, problems
        results, problems = run_file(tests)
        assert problems == []
        assert [result for result in results if not result.ok] == []
    elif "apiVersion" in tree:
        assert inject(block.text, "vllm.yaml", Options("dsobs:1")).problems == []
    elif "services" in tree:
        taken = [port for service in tree["services"].values() for port in _ports_on_the_host(service)]
        assert len(taken) == len(set(taken)), "two services listen on one port of the host"
        for service in tree["services"].values():
            load(None, _variables(service), {})
            if (service.get("build") or {}).get("context") == "./dsobs":
                build_parser().parse_args(service["command"])
    elif "scrape_configs" in tree:
        # A Prometheus's; promtool checks it in tests/real/test_rules_cli.py. A rate needs two samples in its window.
        interval = _seconds(tree["global"]["scrape_interval"])
        assert [window for window in _rate_windows() if window < 2 * interval] == []
        assert min(_rate_windows()) < 2 * 60.0, "Prometheus' default would do"
    else:
        assert set(tree) <= set(Config.model_fields)
        load(file, {}, {})


def test_the_example_engine_keeps_the_promises_of_engines() -> None:
    (block,) = of("python")
    foreign = Page([Sample(labels("other"), 1.0)], {"other": "gauge"}, {})
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    page = Page(
        [
            Sample(labels("acme_requests_active", model="m"), 2.0),
            Sample(labels("acme_tokens_out_total", model="m"), 9.0),
        ],
        {"acme_requests_active": "gauge", "acme_tokens_out_total": "counter"},
        {},
    )

    class Contract(AdapterContract):
        def adapter(self) -> EngineAdapter:
            adapter: EngineAdapter = names["Acme"]()
            return adapter

    contract = Contract()
    contract.pages, contract.foreign_pages = {"made": page}, {"other": foreign}
    promises = [name for name in dir(contract) if name.startswith("test_")]
    assert promises
    for name in promises:
        getattr(contract, name)()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def written() -> list[Path]:
    return [page for page in PAGES if GENERATED not in page.parents]


@pytest.mark.parametrize("page", written(), ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_metrics_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tops = "|".join(Config.model_fields)
    for name in re.findall(rf"`((?:{tops})\.[a-z0-9_.]+)(?:: \w+)?`", text):
        known = name in KEYS or name.endswith((".log", ".yaml", ".key"))
        assert known, name
    families = [*REGISTRY.collect(), *metrics.REGISTRY.collect()]
    own = {sample.name for family in families for sample in family.samples} | {family.name for family in families}
    own |= {f"{family.name}_total" for family in families if family.type == "counter"}
    own |= {WRITER, READER, SETUP}
    for name in re.findall(r"\b(dsobs_[a-z0-9_]+)\b", text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in SIGNALS or base in SIGNALS or name in own, name


def shipped() -> list[tuple[str, dict[str, Any]]]:
    rules = []
    for file in sorted((ROOT / "alerts").glob("*.rules.yaml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            rules += [(rule["alert"], rule) for rule in group["rules"] if "alert" in rule]
    return rules


@functools.cache
def firing_cases(file: str) -> set[str]:
    """Alerts that fire in a case of this file."""
    cases = yaml.safe_load((ROOT / file).read_text())["tests"]
    return {check["alertname"] for case in cases for check in case.get("alert_rule_test", ()) if check["exp_alerts"]}


@pytest.mark.parametrize(("name", "rule"), shipped(), ids=[name for name, _ in shipped()])
def test_every_shipped_rule_has_a_runbook_and_a_line_in_the_table(name: str, rule: dict[str, Any]) -> None:
    path = rule["annotations"]["runbook"]
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\n{rule['labels']['severity'].capitalize()}.")
    assert ("`action: restart`" in text) == (rule["labels"].get("action") == "restart")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Meaning",
        "First look",
        "Causes",
        "What dsobs does",
        "By hand",
        "Silence",
        "Tested",
    ]
    tested = re.findall(r"\(\.\./\.\./(alerts/\w[\w-]*\.test\.yaml)\)", text.partition("## Tested")[2])
    assert tested
    assert all(name in firing_cases(file) for file in tested)
    silenced = text.partition("## Silence")[2].partition("## Tested")[0]
    assert name == "Watchdog" or f" silence add alertname={name} " in silenced
    assert f"| [{name}](../{path.removeprefix('docs/')}) |" in (GENERATED / "rules.md").read_text(encoding="utf-8")


def test_every_runbook_is_that_of_a_shipped_rule() -> None:
    assert {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} == {name for name, _ in shipped()}


def test_the_readme_shows_the_whole_story_of_the_demo() -> None:
    assert "](docs/demo.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
    root = ElementTree.parse(ROOT / "docs" / "demo.svg").getroot()
    session = "\n".join("".join(row.itertext()) for row in root.iter("{http://www.w3.org/2000/svg}text"))
    assert session.startswith("$ dsobs demo\n")
    for what in STORY:
        assert re.search(rf"^ +\+[0-9.]+ s  {what} ", session, re.MULTILINE), what


def test_the_recorded_session_is_drawn_as_it_was_printed() -> None:
    text = "starting\n\n  +39.0 s  \x1b[32mrestart begun  \x1b[0m incident <1>: " + "why " * 30 + "\nend\n"
    root = ElementTree.fromstring(drawn(text))
    rows = ["".join(row.itertext()) for row in root.iter("{http://www.w3.org/2000/svg}text")]
    assert rows[:4] == [
        "$ dsobs demo",
        "starting",
        "",
        "  +39.0 s  restart begun   incident <1>: " + " ".join(["why"] * 16),
    ]
    assert rows[4].startswith(" " * 27 + "why")
    assert rows[-1] == "end"
    assert all(len(row) <= COLUMNS for row in rows)
    (green,) = (part.text for part in root.iter() if part.get("class") == "green")
    assert green == "restart begun  "


def test_the_picture_is_well_formed_and_stands_alone() -> None:
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
