"""Metrics pages: the Prometheus text format 0.0.4 and OpenMetrics 1.0.

Written for one page that is read again and again: a parser remembers the last page line by line, and where only
values moved it reads only those. What it remembers is that one page, so it never grows beyond it.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
"""

import re
from collections.abc import Mapping
from itertools import compress
from operator import ne
from typing import Final

from dsobs.model.samples import Labels, Page, Sample

_TYPES: Final = frozenset(
    {"counter", "gauge", "histogram", "summary", "untyped", "unknown", "gaugehistogram", "stateset", "info"}
)
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r'[a-zA-Z_][a-zA-Z0-9_]*="[^"\\]*"')
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_SERIES: Final = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)?[ \t]*(?:\{{((?:[^\"}}]|{_QUOTED})*)\}})?")
_PAIR: Final = re.compile(rf"[ \t]*([a-zA-Z_][a-zA-Z0-9_]*|{_QUOTED})[ \t]*(?:=[ \t]*({_QUOTED}))?[ \t]*(?:,|\Z)")
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)|[nN][aA][nN]"
)
_NUMBER_BYTES: Final = b"0123456789+-.eEiInNfFaAtTyY"
"""What a number can be made of. `float` takes more (underscores, other scripts' digits, line ends)."""
_ESCAPE: Final = re.compile(r'\\([\\n"])')
_HELP_ESCAPE: Final = re.compile(r"\\([\\n])")
_SHOWN: Final = 60


class ExpositionError(ValueError):
    """A page that is not in the format. `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Parser:
    """Reads the successive pages of one target.

    `max_lines` bounds what one page can take in memory: a page with more lines is refused. Memory held between calls
    is that of the last good page. Not for use by several threads at once.
    """

    def __init__(self, max_lines: int = 500_000) -> None:
        self._max_lines = max_lines
        self._openmetrics = False
        self._lines: list[str] = []
        self._heads: list[str | None] = []
        """By line: the text before the value; None where the line is more than series and value."""
        self._places: list[int] = []
        """By line: where its sample stands in `_samples`; -1 for a line without one."""
        self._samples: list[Sample] = []
        self._series: dict[str, Labels] = {}
        self._types: Mapping[str, str] = {}
        self._helps: Mapping[str, str] = {}

    def parse(self, body: str | bytes, openmetrics: bool = False) -> Page:
        """The page's samples in the page's order, with its types and helps under the names that stand there.

        Timestamps are in seconds whichever the format; exemplars are checked and left out. An empty text body is a
        page without samples.

        Raises
        ------
        ExpositionError
            Naming the line. A page that does not end with a line feed (OpenMetrics: `# EOF`) was cut short, and its
            last value with it, so it is refused.
        """
        text = body if isinstance(body, str) else _decoded(body)
        lines = text.split("\n")
        if len(lines) > self._max_lines:
            raise ExpositionError(self._max_lines + 1, f"more than {self._max_lines} lines")
        if lines.pop():
            # A page of another kind is named as such, rather than as one that was cut short.
            _Reading({}, openmetrics).line(len(lines) + 1, lines[0] if lines else text)
            raise ExpositionError(len(lines) + 1, "the page ends within a line: it was cut short")
        if openmetrics == self._openmetrics and len(lines) == len(self._lines):
            page = self._again(lines)
            if page is not None:
                return page
        return self._anew(lines, openmetrics)

    def _again(self, lines: list[str]) -> Page | None:
        """The page, where it differs from the last one in values only."""
        samples = self._samples.copy()
        heads, places = self._heads, self._places
        new, kind = tuple.__new__, Sample
        tails: list[str] = []
        for at in compress(range(len(lines)), map(ne, lines, self._lines)):
            head, _, tail = lines[at].rpartition(" ")
            place = places[at]
            if head != heads[at] or place < 0:
                return None
            tails.append(tail)
            try:
                samples[place] = new(kind, (samples[place][0], float(tail), None))
            except ValueError:
                return None
        if not _numeric(tails):
            return None
        self._lines, self._samples = lines, samples
        # The caller gets a list of its own: what it does with it must not reach the next page.
        return Page(samples.copy(), self._types, self._helps)

    def _anew(self, lines: list[str], openmetrics: bool) -> Page:
        reading = _Reading(self._series, openmetrics)
        reading.page(lines)
        self._openmetrics = openmetrics
        self._lines, self._heads, self._places = lines, reading.heads, reading.places
        self._samples, self._series = reading.samples, reading.series
        self._types, self._helps = reading.types, reading.helps
        return Page(reading.samples.copy(), reading.types, reading.helps)


class _Reading:
    """One page being read from nothing but the series known from the page before."""

    def __init__(self, known: Mapping[str, Labels], openmetrics: bool) -> None:
        self.samples: list[Sample] = []
        self.types: dict[str, str] = {}
        self.helps: dict[str, str] = {}
        self.heads: list[str | None] = []
        self.places: list[int] = []
        self.series: dict[str, Labels] = {}
        self._known = known
        self._openmetrics = openmetrics
        self._names: dict[str, str] = {}
        self._pairs: dict[str, tuple[str, str]] = {}
        self._label_sets: dict[str, Labels] = {}

    def page(self, lines: list[str]) -> None:
        if self._openmetrics and (not lines or lines[-1] != "# EOF"):
            # The first line says more about a page of another kind than the missing end does.
            if lines:
                self.line(1, lines[0])
            raise ExpositionError(len(lines) + 1, "no `# EOF` at the end: the page was cut short")
        samples, heads, places, series = self.samples, self.heads, self.places, self.series
        known, new, kind = self._known, tuple.__new__, Sample
        names, types, helps = self._names, self.types, self.helps
        tails: list[str] = []
        last = len(lines)
        for number, line in enumerate(lines, 1):
            if line.startswith("# "):
                # Well-formed metadata in its usual spelling; everything else goes the long way below.
                heads.append(None)
                places.append(-1)
                words = line.split(" ", 3)
                if len(words) == 4 and "\\" not in line:
                    _, keyword, name, rest = words
                    if name in names or _NAME.fullmatch(name):
                        names[name] = name
                        if keyword == "TYPE" and rest in _TYPES:
                            types[name] = rest
                            continue
                        if keyword == "HELP" and rest and rest[0] not in " \t" and rest[-1] not in " \t":
                            helps[name] = rest
                            continue
                if line != "# EOF" or number != last or not self._openmetrics:
                    self.line(number, line)
                continue
            head, _, tail = line.rpartition(" ")
            labels = known.get(head) or self._simple_series(head)
            if labels is not None:
                try:
                    sample = new(kind, (labels, float(tail), None))
                except ValueError:
                    pass
                else:
                    tails.append(tail)
                    series[head] = labels
                    heads.append(head)
                    places.append(len(samples))
                    samples.append(sample)
                    continue
            found = self.line(number, line)
            heads.append(None)
            places.append(-1 if found is None else len(samples))
            if found is not None:
                samples.append(found)
        if not _numeric(tails):
            for number, (head_, line) in enumerate(zip(heads, lines, strict=True), 1):
                if head_ is not None:
                    self.line(number, line)
        if lines and not samples and not self.types and not self.helps and not self._openmetrics:
            raise ExpositionError(1, "neither a sample nor a TYPE or HELP line on the whole page")

    def _simple_series(self, head: str) -> Labels | None:
        """Labels of a series text without escapes or odd spacing; None for anything else, right or wrong."""
        name, brace, rest = head.partition("{")
        names = self._names
        if name not in names:
            if not _NAME.fullmatch(name):
                return None
            names[name] = name
        named = ("__name__", names[name])
        if not brace:
            return (named,)
        pairs = self._label_sets.get(rest)
        if pairs is None:
            pairs = self._simple_labels(rest)
            if pairs is None:
                return None
            self._label_sets[rest] = pairs
        if pairs and pairs[0][0] < "__name__":
            return tuple(sorted((named, *pairs)))
        return (named, *pairs)

    def _simple_labels(self, text: str) -> Labels | None:
        """Of `a="b",c="d"}`, label by label: most of them stand on a page many times."""
        if not text.endswith("}"):
            return None
        known = self._pairs
        pairs = []
        for piece in text[:-1].removesuffix(",").split(","):
            pair = known.get(piece)
            if pair is None:
                if not _LABEL.fullmatch(piece):
                    return None
                name, _, value = piece.partition("=")
                if name == "__name__":
                    return None
                pair = known[piece] = (name, value[1:-1])
            pairs.append(pair)
        return _sorted(pairs)

    def line(self, number: int, line: str) -> Sample | None:
        """The sample of one line, if it is one; raises if it is neither that nor metadata nor a comment."""
        text = line.strip(" \t")
        if text.startswith("#"):
            self._metadata(number, text)
            return None
        if not text:
            if self._openmetrics:
                raise ExpositionError(number, "an empty line, which OpenMetrics does not allow")
            return None
        found = _SERIES.match(text)
        if found is None or not found.group():
            raise ExpositionError(number, f"expected a metric name, found {_shown(text)}")
        labels = _labels(number, found[1], found[2])
        rest = text[found.end() :]
        if found[2] is None and rest[:1] not in {"", " ", "\t"} and not found.group().endswith((" ", "\t")):
            raise ExpositionError(number, f"{_shown(rest[:1])} does not belong into the name of a metric")
        if self._openmetrics and " # " in rest:
            rest, _, exemplar = rest.partition(" # ")
            _check_exemplar(number, exemplar)
        fields = rest.replace("\t", " ").split(" ")
        words = [field for field in fields if field]
        if not words:
            raise ExpositionError(number, f"{_shown(text)} has no value")
        if len(words) > 2:
            raise ExpositionError(number, f"unexpected {_shown(words[2])} after the timestamp")
        value = _number(number, "value", words[0])
        if len(words) == 1:
            return Sample(labels, value)
        stamp = _number(number, "timestamp", words[1])
        if stamp - stamp != 0:
            raise ExpositionError(number, f"the timestamp {_shown(words[1])} is not finite")
        return Sample(labels, value, stamp if self._openmetrics else stamp / 1000)

    def _metadata(self, number: int, text: str) -> None:
        words = text[1:].split(None, 2)
        keyword = words[0] if words and text[1:2] in {" ", "\t"} else ""
        if keyword not in {"HELP", "TYPE", "UNIT"}:
            if self._openmetrics:
                what = "text after `# EOF`" if keyword == "EOF" else f"unknown comment {_shown(text)}"
                raise ExpositionError(number, what)
            return
        if len(words) < 2:
            raise ExpositionError(number, f"{keyword} without a metric name")
        name, rest = words[1], words[2] if len(words) > 2 else ""
        if name.startswith('"'):
            name, rest = self._quoted_name(number, text.split(None, 2)[2])
        elif not _NAME.fullmatch(name):
            raise ExpositionError(number, f"{_shown(name)} is not a metric name")
        if keyword == "TYPE":
            if rest.strip() not in _TYPES:
                raise ExpositionError(number, f"{_shown(rest)} is not a metric type")
            self.types[name] = rest.strip()
        elif keyword == "HELP":
            escape = _ESCAPE if self._openmetrics else _HELP_ESCAPE
            self.helps[name] = _unescaped(rest, escape)

    @staticmethod
    def _quoted_name(number: int, text: str) -> tuple[str, str]:
        found = re.match(_QUOTED, text)
        if found is None:
            raise ExpositionError(number, f"{_shown(text)}: the quote is not closed")
        return _unescaped(found.group()[1:-1], _ESCAPE), text[found.end() :].strip(" \t")


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ExpositionError(body.count(b"\n", 0, error.start) + 1, "not UTF-8") from error


def _labels(number: int, name: str | None, text: str | None) -> Labels:
    """The labels of a series in any spelling, names in quotes included."""
    pairs: list[tuple[str, str]] = []
    at = 0
    text = "" if text is None else text
    while text[at:].strip(" \t"):
        found = _PAIR.match(text, at)
        if found is None:
            raise ExpositionError(number, f'expected `label="value"`, found {_shown(text[at:])}')
        at = found.end()
        key, value = found[1], found[2]
        quoted = key.startswith('"')
        if quoted:
            key = _unescaped(key[1:-1], _ESCAPE)
        if value is not None:
            pairs.append((key, _unescaped(value[1:-1], _ESCAPE)))
        elif quoted and key and not name and not pairs:
            name = key
        else:
            raise ExpositionError(number, f"label {_shown(key)} has no value")
    if not name:
        raise ExpositionError(number, "a series without a metric name")
    labels = _sorted([("__name__", name), *pairs])
    if labels is None:
        names = [key for key, _ in pairs]
        twice = next((key for key in names if names.count(key) > 1), "__name__")
        raise ExpositionError(number, f"label {_shown(twice)} stands there twice")
    return labels


def _sorted(pairs: list[tuple[str, str]]) -> Labels | None:
    """Sorted, without empty values; None if a name stands there twice."""
    if len(pairs) > 1:
        if len(dict(pairs)) != len(pairs):
            return None
        pairs.sort()
    for _, value in pairs:
        if not value:
            return tuple([pair for pair in pairs if pair[1]])
    return tuple(pairs)


def _check_exemplar(number: int, text: str) -> None:
    found = _SERIES.match(text)
    if found is None or found[1] or found[2] is None:
        raise ExpositionError(number, f"{_shown(text)} is not an exemplar")
    _labels(number, "exemplar", found[2])
    words = text[found.end() :].split()
    if not 1 <= len(words) <= 2:
        raise ExpositionError(number, f"an exemplar has a value and perhaps a timestamp, found {_shown(text)}")
    for word in words:
        _number(number, "exemplar", word)


def _number(number: int, what: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ExpositionError(number, f"the {what} {_shown(text)} is not a number")
    return float(text)


def _numeric(texts: list[str]) -> bool:
    """Whether all of what `float` took is made of a number's characters."""
    return not "".join(texts).encode().translate(None, _NUMBER_BYTES)


def _unescaped(text: str, escape: re.Pattern[str]) -> str:
    """With `\\n`, `\\\\` and, where the pattern has it, `\\"` resolved; other escapes stand for themselves."""
    if "\\" not in text:
        return text
    return escape.sub(lambda found: "\n" if found[1] == "n" else found[1], text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
