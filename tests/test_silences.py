"""Silences: matchers, lifetimes, state.db."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs import silences
from dsobs.silences import Matcher, MatcherError, Silence
from dsobs.state import StateDb

NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8"), max_size=30)
OPERATORS = st.sampled_from(["=", "!=", "=~", "!~"])


@st.composite
def matchers(draw: st.DrawFn) -> Matcher:
    op = draw(OPERATORS)
    value = draw(VALUES)
    return Matcher(draw(NAMES), op, re.escape(value) if "~" in op else value)


@given(matchers())
def test_a_matcher_is_read_back_as_it_was_written(matcher: Matcher) -> None:
    assert Matcher.parse(str(matcher)) == matcher
    assert Matcher.parse(f"  {matcher} ") == matcher


@given(NAMES, VALUES, st.dictionaries(NAMES, VALUES, max_size=3))
def test_a_negated_matcher_says_the_opposite(name: str, value: str, found: dict[str, str]) -> None:
    labels = {**found, "a": "b"}
    assert Matcher(name, "=", value).matches(labels) is not Matcher(name, "!=", value).matches(labels)
    pattern = re.escape(value)
    assert Matcher(name, "=~", pattern).matches(labels) is not Matcher(name, "!~", pattern).matches(labels)


@given(NAMES, VALUES)
def test_an_escaped_pattern_matches_its_text_and_nothing_longer(name: str, value: str) -> None:
    matcher = Matcher(name, "=~", re.escape(value))
    assert matcher.matches({name: value})
    assert not matcher.matches({name: value + "x"})
    assert not matcher.matches({name: "x" + value})


@given(st.text(max_size=40))
def test_any_text_is_a_matcher_or_refused_by_name(text: str) -> None:
    try:
        matcher = Matcher.parse(text)
    except MatcherError as error:
        told = str(error)
    except FutureWarning:
        # A pattern that a later Python may read in another way.
        return
    else:
        told = repr(text) if Matcher.parse(str(matcher)) == matcher else ""
    assert repr(text) in told


@pytest.mark.parametrize(
    ("text", "matcher"),
    [
        ("alertname=EngineHung", Matcher("alertname", "=", "EngineHung")),
        (' model_name =~ "r1-.*" ', Matcher("model_name", "=~", "r1-.*")),
        ("a!=b c", Matcher("a", "!=", "b c")),
        ("a=", Matcher("a", "=", "")),
        ("a==b", Matcher("a", "=", "=b")),
        (r'a="say \"hi\"\n"', Matcher("a", "=", 'say "hi"\n')),
        (r'a=~"\d+\\."', Matcher("a", "=~", r"\d+\.")),
        (r"a=~\d+", Matcher("a", "=~", r"\d+")),
    ],
)
def test_matchers_are_written_as_in_alertmanager(text: str, matcher: Matcher) -> None:
    assert Matcher.parse(text) == matcher


@pytest.mark.parametrize("text", ["", "a", "=b", "1a=b", 'a="b', 'a="b"c"', "a-b=c", "a=~(", "a!~[", "a=~x{1001}"])
def test_what_is_no_matcher_is_refused(text: str) -> None:
    with pytest.raises(MatcherError):
        Matcher.parse(text)


def test_no_expression_takes_longer_than_its_text_is_long() -> None:
    # By Python's `re` each of these would take years.
    for expression in ("(a+)+b", "(a|aa)+b", "(.*,){30}b"):
        begun = time.monotonic()
        assert not Matcher.parse(f"a=~{expression}").matches({"a": "a" * 5_000})
        assert time.monotonic() - begun < 10.0


def test_a_label_that_is_not_there_is_empty() -> None:
    assert Matcher("a", "=", "").matches({})
    assert Matcher("a", "!=", "x").matches({})
    assert Matcher("a", "=~", "x?").matches({})
    assert not Matcher("a", "=~", "x+").matches({})


def test_a_silence_holds_from_its_start_until_just_before_its_end() -> None:
    silence = silences.new(["a=b"], 100.0, 60.0, "me", "why")
    held = [silence.silences({"a": "b"}, at) for at in (99.9, 100.0, 159.9, 160.0)]
    assert held == [False, True, True, False]


def test_all_matchers_of_a_silence_must_fit() -> None:
    silence = silences.new(["a=b", "c!=d"], 0.0, 60.0, "", "")
    assert silence.silences({"a": "b"}, 1.0)
    assert not silence.silences({"a": "b", "c": "d"}, 1.0)
    assert not silence.silences({"c": "x"}, 1.0)


def test_the_first_silence_that_holds_is_named() -> None:
    other, ended, fitting = (silences.new([m], at, 60.0, "", "") for m, at in (("a=c", 100), ("a=b", 0), ("a=b", 100)))
    assert silences.holding([other, ended, fitting], {"a": "b"}, 110.0) is fitting
    assert silences.holding([], {"a": "b"}, 110.0) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, 90 * 86400 + 1.0, float("inf"), float("nan")])
def test_a_silence_lasts_some_time_and_at_most_90_days(seconds: float) -> None:
    with pytest.raises(MatcherError, match="a silence lasts more than 0 s and at most 90 days"):
        silences.new(["a=b"], 0.0, seconds, "", "")


def test_a_silence_of_everything_must_be_asked_for() -> None:
    with pytest.raises(MatcherError, match="at least one matcher"):
        silences.new([], 0.0, 60.0, "", "")
    assert silences.new(['alertname=~".+"'], 0.0, 60.0, "", "").silences({"alertname": "EngineDown"}, 1.0)


@pytest.mark.parametrize("matchers", [["foo="], ['foo=~".*"'], ["alertname!=X"], ["a=", 'b=~"x?"', "c!~y"]])
def test_a_silence_needs_a_matcher_that_fits_no_empty_label(matchers: list[str]) -> None:
    with pytest.raises(MatcherError, match="fits whatever has no such label, which may be all alerts; add a matcher"):
        silences.new(matchers, 0.0, 60.0, "", "")
    assert silences.new([*matchers, "a=b"], 0.0, 60.0, "", "").matchers


def test_two_silences_have_two_ids() -> None:
    assert silences.new(["a=b"], 0.0, 60.0, "", "").id != silences.new(["a=b"], 0.0, 60.0, "", "").id


def loaded(file: Path, now: float) -> list[Silence]:
    db = StateDb(file, silences.SCHEMA)
    try:
        return db.transact(lambda connection: silences.load(connection, now))
    finally:
        db.close()


def test_a_silence_outlives_dsobs_until_its_end(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    made = silences.new(['a="x\n\\"y"', 'b=~"r1-.*"'], 100.0, 60.0, "me", "why")
    db = StateDb(file, silences.SCHEMA)
    db.transact(lambda connection: silences.save(connection, made))
    db.close()
    assert loaded(file, 159.0) == [made]
    assert loaded(file, 160.0) == []


def test_a_silence_saved_again_replaces_the_one_of_its_id(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    made = silences.new(["a=b"], 100.0, 60.0, "", "")
    ended = Silence(made.id, made.matchers, made.starts_at, 110.0)
    db = StateDb(file, silences.SCHEMA)
    for silence in (made, ended):
        db.transact(lambda connection, silence=silence: silences.save(connection, silence))  # type: ignore[misc]
    db.close()
    assert loaded(file, 105.0) == [ended]
    assert loaded(file, 120.0) == []


def test_only_what_ended_a_week_ago_is_dropped() -> None:
    db = StateDb(":memory:", silences.SCHEMA)
    try:
        old, young = (silences.new(["a=b"], at, 60.0, "", "") for at in (0.0, 1000.0))
        for silence in (old, young):
            db.transact(lambda connection, silence=silence: silences.save(connection, silence))  # type: ignore[misc]
        assert db.transact(lambda connection: silences.prune(connection, 61.0 + 7 * 86400)) == 1
        assert db.transact(lambda connection: silences.load(connection, 1000.0)) == [young]
    finally:
        db.close()


def test_a_wall_clock_set_back_while_dsobs_was_away_neither_suspends_nor_lengthens_a_silence() -> None:
    db = StateDb(":memory:", silences.SCHEMA)
    try:
        made = silences.new(["a=b"], 10_000.0, 600.0, "", "")
        db.transact(lambda connection: silences.save(connection, made))
        (loaded,) = db.transact(lambda connection: silences.load(connection, 6500.0))
        assert loaded.silences({"a": "b"}, 6500.0)
        assert not loaded.silences({"a": "b"}, 7100.0)
    finally:
        db.close()
