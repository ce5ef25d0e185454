"""Secrets and personal data in log records, replaced by their kind in brackets: `[email]`.

All lines of a block are searched at once for what may begin one; only in records where that was found are the fields
looked at one by one. The bytes that make a record's id stay: they are hashed, never sent.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson

from dsobs.config.log_transform import Redact
from dsobs.logs.metrics import REDACTED
from dsobs.logs.record import Record
from dsobs.logs.transforms.fields import Fields
from dsobs.regex import Match, compile_regex

_KEY_WORD = r"(?:api[_-]?key|(?:access|auth|api|refresh|id|session|hf)[_-]?token|secret(?:[_-]?key)?|password|passwd)"
_KEY_FORMS = (
    r"\bsk-[A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|"
    r"\bhf_[A-Za-z0-9]{20,}|\bnvapi-[A-Za-z0-9_-]{20,}|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}|"
    r"\bAIza[0-9A-Za-z_-]{30,}|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*(?:'|\z)|"(?:[^"\\]|\\.)*(?:"|\z))"""

TRIGGERS = {
    "api_key": (
        r"\bsk-\w|\bA[KS]IA[0-9A-Z]|\bgh[pousr]_|\bgithub_pat_|\bhf_|\bnvapi-|\bglpat-|\bxox[abeprs]-|\bAIza|\beyJ|"
        r"-----BEGIN|(?i:api[_-]?key|token[\\\"']*\s*[=:]|secret|passw)|(?i:authorization)"
    ),
    "bearer": r"(?i:\b(?:bearer|basic)\s)",
    "email": r"[A-Za-z0-9]@[A-Za-z0-9]",
    "phone": r"\+\d{1,3}[ .(-]?[\d(]|\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}[-.]\d{3}[-.]\d{4}\b",
    "card": r"\b[2-6]\d{3}(?:[ -]?\d){9,15}\b",
    "prompt": r"(?i:prompt\w*[\\\"']*\s*[:=]|\b(?:messages|inputs?)[\\\"']+\s*:)",
}
"""RE2 expressions, one of which fits in every line that may hold the kind; cheap, and too often rather than not."""

_HIDDEN = r"\\u00|\x1b"
"""What is sent of a line with one of these may hold what the line does not show."""
_AT_SIGN = re.compile("@").search
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)++")
"""Nothing in it is tried twice, so that Python's engine takes linear time, and a third of what a call of RE2 costs."""
_SECRET_FIELDS = re.compile(
    r"(?i)(?:.*[._-])?(?:api[_-]?key|(?:access|auth|api|refresh|id|session|hf)[_-]?token|secret(?:[_-]?key)?|"
    r"password|passwd|authorization)|token"
)
_PROMPT_FIELDS = frozenset(
    (
        "prompt",
        "prompts",
        "messages",
        "input",
        "inputs",
        "prompt_text",
        "system_prompt",
        "user_prompt",
        "prompt_token_ids",
    )
)
_LEFT_ALONE = frozenset(("@timestamp", "trace.id", "span.id", "log.level"))


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, ISO/IEC 7812-1 annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def is_card(text: str) -> bool:
    """Whether a run of digits, blanks and hyphens is the number of a payment card, by issuer, length, check digit."""
    digits = re.sub(r"[ -]", "", text)
    length = len(digits)
    known = (
        (digits[0] == "4" and length in (16, 19))
        or (digits[:2] in ("34", "37") and length == 15)
        or (("51" <= digits[:2] <= "55" or "2221" <= digits[:4] <= "2720") and length == 16)
        or (digits[:2] in ("30", "36", "38", "39") and length in (14, 16))
        or ((digits[:2] in ("35", "62", "64", "65") or digits[:4] == "6011") and 16 <= length <= 19)
    )
    return known and luhn(digits)


def _replaced(kind: str) -> Callable[[Match], str]:
    word = f"[{kind}]"
    return lambda _: word


def _after_first(kind: str) -> Callable[[Match], str]:
    return lambda match: f"{match[1]}[{kind}]"


def _card(match: Match) -> str:
    text = match[0] or ""
    return "[card]" if is_card(text) else text


_PATTERNS: dict[str, tuple[tuple[str, Callable[[Match], str]], ...]] = {
    "prompt": (
        (rf"""((?i:prompt)(?:_text)?["']?\s*[:=]\s*){_QUOTED}""", _after_first("prompt")),
        (r"""(prompt_token_ids["']?\s*[:=]\s*)\[[^\]]*\]?""", _after_first("prompt")),
        (r"""(\\?["'](?:messages|inputs?|prompts?)\\?["']\s*:\s*)[\[{"'\\](?s:.*)""", _after_first("prompt")),
    ),
    "bearer": ((r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", _after_first("bearer")),),
    "api_key": (
        (_KEY_FORMS, _replaced("api_key")),
        (
            rf"""(?i)((?:{_KEY_WORD}|\btoken)\\?["']?\s*[=:]\s*\\?["']?)([^\s"'\\,;&(){{}}\[\]]{{4,}})""",
            _after_first("api_key"),
        ),
    ),
    "email": ((_EMAIL.pattern, _replaced("email")),),
    "card": ((r"\b[3-6]\d{3}(?:[ -]?\d){9,15}\b|\b2[2-7]\d{2}(?:[ -]?\d){12}\b", _card),),
    "phone": (
        (
            r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,12}\b|"
            r"(?:\(\d{3}\) ?|\b\d{3}[-.])\d{3}[-.]\d{4}\b",
            _replaced("phone"),
        ),
    ),
}
"""Kind → what is replaced, and by what; in this order, so that a number in a key is part of the key."""


def redacted(text: str) -> str:
    """A line of text without what is of any kind, for showing it; not counted."""
    for kind, patterns in _PATTERNS.items():
        if compile_regex(TRIGGERS[kind]).search(text) is not None:
            for pattern, by in patterns:
                text = _EMAIL.sub(by, text) if kind == "email" else compile_regex(pattern).sub(by, text)
    return text


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is looked for in one record: the kinds that its line may hold."""

    subs: tuple[tuple[str, Callable[[str], Any], Any, Callable[[Match], str]], ...]
    """Kind, what tells whether a text may hold it, what replaces, and by what."""
    keys: bool
    prompts: bool
    cards: bool


class Redaction:
    """Redacts records of any document."""

    needs_fields = False

    def __init__(self, settings: Redact) -> None:
        self._kinds: tuple[str, ...] = tuple(kind for kind in _PATTERNS if kind in settings.kinds)
        self._trigger: Any = compile_regex("|".join([_HIDDEN, *(TRIGGERS[kind] for kind in self._kinds)])).search
        self._triggers: list[Any] = [compile_regex(f"{_HIDDEN}|{TRIGGERS[kind]}").search for kind in self._kinds]
        self._plans: dict[int, _Plan] = {}
        self._plan = self._plan_of(0)
        self._only = settings.fields
        self._except = settings.except_fields
        self._counters: dict[str, Any] = {kind: REDACTED.labels(kind) for kind in settings.kinds}

    def apply(self, records: list[Record]) -> list[Record]:
        """All of them; those in which something was found are changed."""
        for place, kinds in self._suspects([record[1] for record in records]).items():
            start, raw, document = records[place]
            self._plan = self._plans.get(kinds) or self._plan_of(kinds)
            if isinstance(document, dict):
                self._object(document, "")
            else:
                fields = orjson.loads(document)
                if self._object(fields, ""):
                    records[place] = (start, raw, fields)
        return records

    def _plan_of(self, kinds: int) -> _Plan:
        """For kinds given as bits."""
        names = [name for bit, name in enumerate(self._kinds) if kinds >> bit & 1]
        subs = tuple(
            (name, _AT_SIGN, _EMAIL.sub, by)
            if name == "email"
            else (name, compile_regex(TRIGGERS[name]).search, compile_regex(text).sub, by)
            for name in names
            for text, by in _PATTERNS[name]
        )
        plan = self._plans[kinds] = _Plan(subs, "api_key" in names, "prompt" in names, "card" in names)
        return plan

    def _suspects(self, raws: Sequence[bytes]) -> dict[int, int]:
        """Place of each line that may hold something → the kinds, as bits."""
        blob = b"\n".join(raws)
        several = blob.count(b"\n") >= len(raws)
        if self._trigger(blob) is None and not several:
            return {}
        places = self._places(self._trigger, raws, blob)
        suspects = dict.fromkeys(places, 0)
        suspected = [raws[place] for place in places]
        blob = b"\n".join(suspected)
        for bit, trigger in enumerate(self._triggers):
            for place in self._places(trigger, suspected, blob):
                suspects[places[place]] |= 1 << bit
        if several:
            # Parts of one secret may stand in two lines of a record.
            every = (1 << len(self._kinds)) - 1
            suspects.update((place, every) for place, raw in enumerate(raws) if b"\n" in raw)
        return suspects

    @staticmethod
    def _places(search: Any, raws: Sequence[bytes], blob: bytes) -> list[int]:
        """Which of `raws`, which are the lines of `blob`, fit."""
        ends = list(accumulate(len(raw) + 1 for raw in raws))
        places: list[int] = []
        match = search(blob)
        while match is not None:
            place = bisect_right(ends, match.start())
            places.append(place)
            match = search(blob, ends[place]) if place + 1 < len(ends) else None
        return places

    def _object(self, fields: Fields, path: str) -> bool:
        """Redacts the fields of an object; whether something was found."""
        found = False
        plan = self._plan
        by_text = not (self._only or self._except or plan.keys or plan.prompts)
        for key, value in fields.items():
            if by_text and type(value) is str:
                # The name of a field decides nothing here: the most frequent case, and the cheapest.
                if (new := self._text(value)) is not value and key not in _LEFT_ALONE:
                    fields[key] = new
                    found = True
                continue
            name = path + str(key)
            if name in _LEFT_ALONE or self._spared(name):
                continue
            new = self._value(key, value, name)
            if new is not value:
                fields[key] = new
                found = True
        return found

    def _spared(self, name: str) -> bool:
        if self._except and any(_is_in(name, other) for other in self._except):
            return True
        # What holds a field that is asked for is looked into.
        return bool(self._only) and not any(_is_in(name, other) or _is_in(other, name) for other in self._only)

    def _value(self, key: str, value: Any, name: str) -> Any:
        """What `value` is replaced by; the very value where nothing is."""
        kind = type(value)
        asked = not self._only or any(_is_in(name, other) for other in self._only)
        if asked and value not in (None, "", [], {}):
            if self._plan.prompts and key.rpartition(".")[2].lower() in _PROMPT_FIELDS and kind in (str, list, dict):
                self._counters["prompt"].inc()
                return "[prompt]"
            if self._plan.keys and kind in (str, list, dict) and _SECRET_FIELDS.fullmatch(key):
                self._counters["api_key"].inc()
                return "[api_key]"
        if kind is str:
            return self._text(value) if asked else value
        if kind is dict:
            return dict(value) if self._object(value, name + ".") else value
        if kind is list:
            items = [self._value("", item, name) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if kind is int and self._plan.cards and asked and 10**13 <= value < 10**19 and is_card(str(value)):
            self._counters["card"].inc()
            return "[card]"
        return value

    def _text(self, text: str) -> str:
        changed = text
        for kind, trigger, sub, replacement in self._plan.subs:
            if trigger(changed):
                new = sub(replacement, changed)
                if new != changed:
                    self._counters[kind].inc()
                    changed = new
        return text if changed == text else changed


def _is_in(name: str, other: str) -> bool:
    """Whether field `name` is `other` or in it."""
    return name == other or name.startswith(other + ".")
