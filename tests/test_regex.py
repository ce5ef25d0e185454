"""Expressions that need no RE2 mean what they mean to it."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from dsobs.regex import Match, RegexError, compile_regex, compile_whole

WORDS = st.text("ab:_0", min_size=1, max_size=3)
ALTERNATIVES = st.tuples(WORDS, st.sampled_from(["", ".+", ".*"])).map("".join)
SIMPLE = st.lists(ALTERNATIVES, min_size=1, max_size=4).map("|".join) | st.sampled_from(["(.*)", "(.+)"])


def told(match: Match | None) -> object:
    return None if match is None else (match[0], match.groups())


@given(SIMPLE, st.text("ab:_0\n|.é", max_size=6))
@example("a|ab", "ab")
@example("a.+", "a\n")
@example("(.*)", "")
def test_a_simple_expression_fits_what_it_fits_to_re2(pattern: str, text: str) -> None:
    expected = compile_regex(pattern, dot_all=True).fullmatch(text)
    assert told(compile_whole(pattern).fullmatch(text)) == told(expected)


@pytest.mark.parametrize(
    "pattern", ["", "a|", "a.b", "(a)+", "a{2}", r"\d+", "(?i)ab", "a.+?", "a.++", "(.*", "(?P<a>.*)"]
)
@pytest.mark.parametrize("text", ["", "a", "ab", "aab", "AB", "12", "a.b"])
def test_any_other_expression_is_re2s(pattern: str, text: str) -> None:
    try:
        expected = compile_regex(pattern, dot_all=True).fullmatch(text)
    except RegexError:
        with pytest.raises(RegexError):
            compile_whole(pattern)
    else:
        assert told(compile_whole(pattern).fullmatch(text)) == told(expected)
