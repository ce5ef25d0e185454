"""The generated parts of the README: settings, questions with their costs, metrics, DCGM's names."""

from collections.abc import Callable, Iterable

from dsobs_nvml.dcgm import DCGM_NAMES
from dsobs_nvml.families import FAMILIES
from dsobs_nvml.page import OWN
from dsobs_nvml.questions import QUESTIONS
from dsobs_nvml.settings import OPTIONS


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def settings_table() -> str:
    """Flags, variables, defaults."""
    rows = [
        (
            f"`{option.flag}{' ' + option.placeholder if option.placeholder else ''}`",
            f"`{option.variable}`",
            f"`{option.default}`" if option.default else "",
            option.help,
        )
        for option in OPTIONS
    ]
    return _table(("flag", "variable", "default", "meaning"), rows)


def questions_table() -> str:
    """What each question costs and how often it is asked."""
    rows = [
        (
            question.name.replace("_", " "),
            f"{question.cost_ms:g}" if question.cost_ms is not None else "not measured",
            f"each {question.every:g} s" if question.every else "each reading",
            question.calls,
        )
        for question in QUESTIONS
    ]
    return _table(("question", "ms a card", "asked", "NVML (`nvmlDevice…`)"), rows)


def metrics_table() -> str:
    """The exporter's families."""
    rows = [
        (
            f"`{family.name}`",
            family.type,
            family.unit,
            ", ".join(("gpu", "uuid", *family.labels) if family.name in FAMILIES else family.labels),
            family.help,
        )
        for family in (*FAMILIES.values(), *OWN.values())
    ]
    return _table(("name", "type", "unit", "labels", "meaning"), rows)


def dcgm_table() -> str:
    """DCGM's names and ours."""
    rows = [
        (
            f"`{name}`",
            f"`{row.family}`" if row.family else "",
            ", ".join(f"{label}={value}" for label, value in row.labels),
            row.help,
        )
        for name, row in DCGM_NAMES.items()
    ]
    return _table(("name", "made of", "series", "meaning and unit"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "questions": questions_table,
    "metrics": metrics_table,
    "dcgm": dcgm_table,
}


def written(text: str) -> str:
    """A README whose generated parts are as the code would write them; ValueError if one of them has no place."""
    for name, table in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed or begin in after:
            raise ValueError(f"no place, or several, for the generated part {name}")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text
