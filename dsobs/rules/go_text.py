"""Values and formats as Go's `fmt` prints them (https://pkg.go.dev/fmt, print.go and format.go of Go 1.25)."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any


class TemplateError(Exception):
    """The template can't be parsed, names something that is not supported, or failed on its data."""


class UnsupportedTemplateError(TemplateError):
    """It names what Prometheus has and dsobs has not."""


def special(value: float) -> str | None:
    """What is no finite number, as Go prints it; None for what is one."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return None


def format_float(value: float) -> str:
    """As Go's `%v`: the shortest digits that read back as `value`; an exponent below -4 and from 6 on."""
    text = special(value)
    if text is not None:
        return text
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    power = len(text) + exponent - 1
    if power < -4 or power >= 6:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{'-' if sign else ''}{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return f"{'-' if sign else ''}{Decimal(repr(abs(value))).normalize():f}"


def printed(value: Any) -> str:
    """As Go prints it; TemplateError for what a template can't print."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, Mapping):
        return _mapping(value, printed)
    if isinstance(value, (str, int)):
        return str(value)
    raise TemplateError("only strings, numbers, booleans and label sets can be printed")


def _mapping(value: Mapping[str, Any], word: Callable[[Any], str]) -> str:
    return "map[" + " ".join(f"{word(k)}:{word(value[k])}" for k in sorted(value)) + "]"


def go_type(value: Any) -> str:
    """Its type's name in Go."""
    return {bool: "bool", int: "int", float: "float64", str: "string"}.get(type(value), "map[string]string")


_FLAGS = re.compile(r"[-+# 0]*")
_DIGITS = re.compile(r"\d*")


class _Printf:
    """Where one format stands: `doPrintf` of Go's print.go."""

    def __init__(self, form: str, arguments: Sequence[Any]) -> None:
        self._form = form
        self._arguments = arguments
        self._at = 0
        self._next = 0
        """The next argument."""
        self._reordered = False
        """One was named by its number: what is left over is not told."""
        self._good = True
        """The number of this verb's argument is one."""

    def text(self) -> str:
        """The whole format, filled in."""
        out = ""
        while self._at < len(self._form):
            start = self._form.find("%", self._at)
            if start < 0:
                out += self._form[self._at :]
                break
            out += self._form[self._at : start]
            self._at = start + 1
            out += self._directive()
        left = self._arguments[self._next :]
        if left and not self._reordered:
            out += "%!(EXTRA " + ", ".join(f"{go_type(v)}={printed(v)}" for v in left) + ")"
        return out

    def _directive(self) -> str:
        self._good = True
        flags, before = self._take(_FLAGS), ""
        numbered = self._number()
        starred, width = self._star_or_digits()
        if width is None and starred:
            before += "%!(BADWIDTH)"
        elif width is not None and width < 0:
            flags, width = f"{flags}-", -width
        self._good &= not (numbered and not starred and width is not None)
        numbered &= not starred
        precision = None
        if self._form[self._at : self._at + 1] == ".":
            self._at += 1
            self._good &= not numbered
            numbered = self._number()
            starred, precision = self._star_or_digits()
            if starred and (precision is None or precision < 0):
                before += "%!(BADPREC)" if precision is None else ""
                precision = None
            elif not starred:
                precision = precision or 0
            numbered &= not starred
        if not numbered:
            self._number()
        if self._at >= len(self._form):
            return f"{before}%!(NOVERB)"
        verb = self._form[self._at]
        self._at += 1
        if verb == "%":
            return f"{before}%"
        if not self._good:
            return f"{before}%!{verb}(BADINDEX)"
        if self._next >= len(self._arguments):
            return f"{before}%!{verb}(MISSING)"
        self._next += 1
        return before + _verb(self._arguments[self._next - 1], verb, flags, width, precision)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._form, self._at)
        assert match is not None
        self._at = match.end()
        return match[0]

    def _number(self) -> bool:
        """Takes `[n]`; whether it was one."""
        if self._form[self._at : self._at + 1] != "[":
            return False
        self._reordered = True
        end = self._form.find("]", self._at)
        inner = self._form[self._at + 1 : end] if end >= 0 else ""
        self._at = end + 1 if end >= 0 else self._at + 1
        if inner.isdecimal() and 1 <= int(inner) <= len(self._arguments):
            self._next = int(inner) - 1
            return True
        self._good = False
        return inner.isdecimal()

    def _star_or_digits(self) -> tuple[bool, int | None]:
        """Whether the number comes of an argument, and the number; None where there is none, or none that may be."""
        if self._form[self._at : self._at + 1] != "*":
            digits = self._take(_DIGITS)
            return False, int(digits) if digits and int(digits) <= _WIDEST else None
        self._at += 1
        if self._next >= len(self._arguments):
            return True, None
        value = self._arguments[self._next]
        self._next += 1
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _WIDEST
        return True, value if fits else None


_WIDEST = 1_000_000
"""`tooLarge` of print.go."""


def printf(form: Any, *arguments: Any) -> str:
    """As Go's Sprintf; TemplateError for what can't be printed."""
    if not isinstance(form, str):
        raise TemplateError("wants a format string first")
    return _Printf(form, arguments).text()


def _verb(value: Any, verb: str, flags: str, width: int | None, digits: int | None) -> str:
    if isinstance(value, Mapping) and verb not in "Tp":
        return _mapping(value, lambda word: _verb(word, verb, flags, width, digits))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = _unpadded(value, verb, flags, digits)
    if text is None:
        return f"%!{verb}({go_type(value)}={printed(value)})"
    if width is None:
        return text
    if "-" in flags:
        return text.ljust(width)
    if "0" not in flags:
        return text.rjust(width)
    return text.zfill(width) if number else text.rjust(width, "0")


def _unpadded(value: Any, verb: str, flags: str, digits: int | None) -> str | None:
    """None where the verb is none for such a value."""
    if isinstance(value, str) and (verb == "q" or (verb == "v" and "#" in flags)):
        return json.dumps(value, ensure_ascii=False)
    if verb == "v" or (verb == "s" and isinstance(value, str)):
        text = printed(value)
        return text[:digits] if digits is not None and isinstance(value, str) else text
    if verb == "T":
        return go_type(value)
    if isinstance(value, bool):
        return printed(value) if verb == "t" else None
    if isinstance(value, int):
        return _whole(value, verb, flags)
    if isinstance(value, float):
        return _float(value, verb, flags, digits)
    if isinstance(value, str) and verb in "xX":
        raw = value.encode()[:digits]
        prefix = "0x" if "#" in flags and raw else ""
        text = prefix + (raw.hex(" ").replace(" ", f" {prefix}") if " " in flags else raw.hex())
        return text.upper() if verb == "X" else text
    return None


def _whole(value: int, verb: str, flags: str) -> str | None:
    signs = "".join(flag for flag in flags if flag in "+ ")
    if verb in "cqU":
        letter = chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else "\ufffd"
        return {"c": letter, "q": f"'{letter}'", "U": f"U+{value:04X}"}[verb]
    if verb not in "bdoOxX":
        return None
    base = {"b": "b", "d": "d", "o": "o", "O": "o", "x": "x", "X": "X"}[verb]
    prefix = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}.get(verb, "") if "#" in flags else ""
    sign = "-" if value < 0 else "+" if "+" in signs else " " if signs else ""
    return f"{sign}{'0o' if verb == 'O' else prefix}{abs(value):{base}}"


def _float(value: float, verb: str, flags: str, digits: int | None) -> str | None:
    if verb in "bxX":
        raise UnsupportedTemplateError(f"printf with %{verb} of a number with a fraction is not supported")
    if verb not in "eEfFgG":
        return None
    if (text := special(value)) is not None:
        return text
    if verb in "gG" and digits is None:
        return format_float(value).upper() if verb == "G" else format_float(value)
    signs = "".join(flag for flag in flags if flag in "+ #")
    return f"%{signs}.{6 if digits is None else digits}{verb}" % value
