"""Templates of annotations and labels; expected texts are what Go's text/template and Prometheus give."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.model.samples import Sample, labels
from dsobs.rules.go_text import TemplateError, UnsupportedTemplateError, format_float
from dsobs.rules.templates import Data, Template


def _render(text: str, value: float = 1.5, **names: str) -> str:
    data = Data(
        {"instance": "host.example:8000", "gpu": "0", **names},
        value,
        {"cluster": "eu"},
        "http://prometheus",
        lambda query: [Sample(labels("up", job=query), 7.0)] if query != "none" else [],
    )
    return Template(text).render(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain { text }", "plain { text }"),
        ("{{ $labels.gpu }}/{{ .Labels.gpu }}/{{$labels.absent}}.", "0/0/."),
        ("{{ $value }} {{ .Value }}", "1.5 1.5"),
        ("{{ $externalLabels.cluster }} {{ .ExternalLabels.cluster }} {{ $externalURL }}", "eu eu http://prometheus"),
        ("{{ externalURL }}/x{{ pathPrefix }}", "http://prometheus/x"),
        ('{{ index $labels "gpu" }} {{ len "é" }}', "0 2"),
        ("a {{- /* why */ -}} b", "ab"),
        ("a {{- 1 -}} b {{ 2 }} c", "a1b 2 c"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ if $labels.absent }}a{{ else if eq $labels.gpu `0` }}b{{ else }}c{{ end }}", "b"),
        ("{{ if gt $value 2.0 }}high{{ else }}low{{ end }}", "low"),
        ("{{ if and (gt $value 1.0) (not $labels.absent) }}x{{ end }}", "x"),
        ("{{ or $labels.absent `none` }}", "none"),
        ("{{ with $labels.gpu }}gpu {{ . }}{{ end }}", "gpu 0"),
        ("{{ with $labels.absent }}x{{ else }}no gpu{{ end }}", "no gpu"),
        ('{{ print 1 2 "a" 3.5 }}', "1 2a3.5"),
        (
            '{{ printf "%.2f|%5.1f|%-6s|%06.2f|%q|%g|%.3g|%d%%" $value 2.25 "a" 1.5 "x" 1e7 12345.678 3 }}',
            '1.50|  2.2|a     |001.50|"x"|1e+07|1.23e+04|3%',
        ),
        ('{{ printf "%d %s %f" 3.0 2.0 }}', "%!d(float64=3) %!s(float64=2) %!f(MISSING)"),
        ('{{ $value | printf "%.1f s" }}', "1.5 s"),
        ('{{ query "x" | first | value | humanize }}', "7"),
        ('{{ query "x" | first | label "job" }} {{ (query "y" | first).Value }}', "x 7"),
        ('{{ if query "none" }}a{{ else }}b{{ end }}', "b"),
        (
            "{{ $labels.instance | stripPort }} {{ stripPort `[::1]:80` }} {{ stripDomain $labels.instance }}",
            "host.example ::1 host:8000",
        ),
        ("{{ toUpper `a` }}{{ toLower `B` }} {{ title `a bc` }}", "Ab A Bc"),
        ("{{ reReplaceAll `(.*)\\.example:(.*)` `$2 on $1` $labels.instance }}", "8000 on host"),
        ("{{ if match `^host` $labels.instance }}y{{ end }}", "y"),
        ("{{ parseDuration `1h30m` }}", "5400"),
        # What promtool 3 gives for these.
        ('{{ printf "%[2]s %[1]s|%[3]s|%[x]d" "a" "b" }}', "b a|%!s(BADINDEX)|%!d(BADINDEX)"),
        ('{{ printf "%*d|%-*d|%.*f|%[1]*d" 5 3 4 2 1 2.25 }}', "    3|2   |2.2|    3"),
        ('{{ printf "%*d" "a" 1 }} {{ printf "%.*f" "a" 1.5 }}', "%!(BADWIDTH)1 %!(BADPREC)1.500000"),
        ('{{ printf "%[1]2d %[1].1f" 1 }} {{ printf "%[1]d %[1]v" 3 }}', "%!d(BADINDEX) %!f(BADINDEX) 3 3"),
        ('{{ printf "%d" 1 2 }} {{ printf "%[1]v" "a" "b" }}', "1%!(EXTRA int=2) a"),
        (
            '{{ printf "100%" }} {{ printf "%z" 3 }} {{ printf "%5" 3 }}',
            "100%!(NOVERB) %!z(int=3) %!(NOVERB)%!(EXTRA int=3)",
        ),
        ('{{ printf "%c %U %q %b %O %#x %#o" 65 8364 65 5 8 255 8 }}', "A U+20AC 'A' 101 0o10 0xff 010"),
        ('{{ printf "%+d|% d|%05d|%-05d|%x" 5 6 -42 42 -255 }}', "+5| 6|-0042|42   |-ff"),
        ('{{ printf "%05s|%#v|%#x|% x|%.1s" "ab" "a" "hi" "hi" "éa" }}', '000ab|"a"|0x6869|68 69|é'),
        ('{{ printf "%T %T %T %v" 1 1.5 "a" true }}', "int float64 string true"),
        (
            '{{ printf "%3s %d" $labels $labels }}',
            "map[gpu:  0 instance:host.example:8000] map[%!d(string=gpu):%!d(string=0) "
            "%!d(string=instance):%!d(string=host.example:8000)]",
        ),
        ('{{ printf "%G %E %s" 1e-10 1e21 5 }}', "1E-10 1.000000E+21 %!s(int=5)"),
        ('{{ printf "%x %X % x" "hi" "hi" "hi" }}', "6869 6869 68 69"),
        ("{{ 0x10 }} {{ 0b11 }} {{ 0o17 }} {{ 017 }} {{ 1_000 }} {{ 0 }} {{ -0x1F }}", "16 3 15 15 1000 0 -31"),
        ("{{ 90.5 | toDuration }} {{ toDuration 0.0 }} {{ toDuration 3661.0 }}", "1m30.5s 0s 1h1m1s"),
        ("{{ toDuration 0.0015 }} {{ toDuration 0.0000015 }} {{ toDuration -90.0 }}", "1.5ms 1.5µs -1m30s"),
        ("{{ 90.5 | toTime }} {{ toTime -1.5 }}", "1970-01-01 00:01:30.5 +0000 UTC 1969-12-31 23:59:58.5 +0000 UTC"),
        ("{{ humanizeTimestamp 1700000000.25 }}", "2023-11-14 22:13:20.249 +0000 UTC"),
        ('{{ urlQueryEscape "a b&c/ä~" }} {{ urlquery "a b" }} {{ safeHtml "<b>" }}', "a+b%26c%2F%C3%A4~ a+b <b>"),
        ('{{ slice "hello" 1 3 }} {{ slice "hello" 2 }}', "el llo"),
        ("{{ js `a<b>'\"\\` }} {{ html `<a>` }}", r"a\u003Cb\u003E\'\"\\ &lt;a&gt;"),
        ('{{ println "a" 2.5 }}', "a 2.5\n"),
        ('{{ (args 1 "b").arg1 }} {{ args 1 2 }}', "b map[arg0:1 arg1:2]"),
        ('{{ graphLink `up{a="b"}` }}', "/graph?g0.expr=up%7Ba%3D%22b%22%7D&g0.tab=0"),
        ('{{ tableLink "up" }}', "/graph?g0.expr=up&g0.tab=1"),
        ("{{ $labels }}", "map[gpu:0 instance:host.example:8000]"),
        ('{{ range query "x" }}{{ .Labels.job }} {{ .Value }};{{ end }}', "x 7;"),
        ('{{ range query "none" }}a{{ else }}nothing{{ end }}', "nothing"),
        ("{{ range $name, $value := $labels }}{{ $name }}={{ $value }},{{ end }}", "gpu=0,instance=host.example:8000,"),
        ("{{ range $value := .Labels }}[{{ $value }}{{ . }}]{{ end }}", "[00][host.example:8000host.example:8000]"),
        (
            "{{ range 4 }}{{ if eq . 1 }}{{ continue }}{{ end }}{{ if eq . 3 }}{{ break }}{{ end }}{{ . }}{{ end }}.",
            "02.",
        ),
        ("{{ $n := 0 }}{{ range $n = 3 }}{{ end }}{{ $n }}", "2"),
        ("{{ range 2 }}{{ range 2 }}{{ break }}{{ end }}x{{ end }}{{ range 0 }}y{{ end }}", "xx"),
        ("{{ range $i, $s := query `a` }}{{ $i }}{{ $s.Value }}{{ $.Value }}{{ end }}", "071.5"),
        ('{{ range sortByLabel "job" (query "a") }}{{ . | value }}{{ strvalue . }}{{ end }}', "7"),
    ],
)
def test_template_renders_as_in_prometheus(text: str, expected: str) -> None:
    assert _render(text) == expected


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        ("humanize", 0.0, "0"),
        ("humanize", 1234567.0, "1.235M"),
        ("humanize", 0.00012, "120u"),
        ("humanize", math.nan, "NaN"),
        ("humanize", math.inf, "+Inf"),
        ("humanize1024", 1048576.0, "1Mi"),
        ("humanize1024", 0.5, "0.5"),
        ("humanizePercentage", 0.8567, "85.67%"),
        ("humanizeDuration", 0.0, "0s"),
        ("humanizeDuration", 0.05, "50ms"),
        ("humanizeDuration", 12.5, "12.5s"),
        ("humanizeDuration", 90.0, "1m 30s"),
        ("humanizeDuration", 3600.0, "1h 0m 0s"),
        ("humanizeDuration", -90061.0, "-1d 1h 1m 1s"),
        ("humanizeTimestamp", 1435065584.128, "2015-06-23 13:19:44.128 +0000 UTC"),
    ],
)
def test_number_is_humanized_as_in_prometheus(function: str, value: float, expected: str) -> None:
    assert _render(f"{{{{ $value | {function} }}}}", value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (123456.0, "123456"),
        (0.0001, "0.0001"),
        (0.00001234, "1.234e-05"),
        (1e21, "1e+21"),
        (100000.0, "100000"),
        (-2.5e-7, "-2.5e-07"),
        (3.0, "3"),
        (-0.0, "-0"),
        (math.nan, "NaN"),
        (-math.inf, "-Inf"),
    ],
)
def test_float_is_printed_as_go_prints_it(value: float, expected: str) -> None:
    assert format_float(value) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_printed_float_reads_back(value: float) -> None:
    assert float(format_float(value)) == value


@given(st.text(alphabet='{}-|"`$. \nabif()end/*1', max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        template = Template(text)
    except TemplateError:
        return
    try:
        template.render(Data({}, 1.0))
    except TemplateError:
        return


BLOCKS = (
    *("{{ range $labels }}", "{{ range $i, $x := 2 }}", "{{ range $x = 1 }}", "{{ if . }}", "{{ with 1 }}"),
    *("{{ else }}", "{{ end }}", "{{ break }}", "{{ continue }}", "{{ $x }}", "{{ . }}", "{{ .Value }}"),
    *("{{ $x := 1 }}", "a"),
)


@given(st.lists(st.sampled_from(BLOCKS), max_size=9))
def test_blocks_in_any_order_are_rendered_or_refused(parts: list[str]) -> None:
    try:
        Template("".join(parts)).render(Data({"a": "b"}, 1.0))
    except TemplateError:
        return


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ range $labels }}x", "{{ range }} has no {{ end }}"),
        ("{{ range 2 }}{{ end }}{{ break }}", "{{ break }}: break stands alone, inside {{ range }}"),
        ("{{ range $x = 2 }}{{ end }}", "undefined variable $x"),
        ("{{ range $x := $y := 2 }}{{ end }}", "{{ range }} takes one or two variables before :="),
        ("{{ range $x := 2 }}{{ end }}{{ $x }}", "undefined variable $x"),
        ("{{ range }}{{ end }}", "missing value"),
        ("{{ define `x` }}{{ end }}", "{{ define }} is not supported"),
    ],
)
def test_block_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match="^" + re.escape(message)):
        Template(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ gt $value 1 }}", "gt: incompatible types for comparison: float64 and int"),
        ("{{ humanize $labels.gpu.x }}", "'0' has no field .x"),
        ("{{ humanize `x` }}", "humanize: 'x' is no number"),
        ("{{ query `none` | first }}", "first: the query gave nothing"),
        ("{{ humanizeTimestamp 1e300 }}", "humanizeTimestamp: 1e+300 is no time"),
        ("{{ reReplaceAll `(` `` `` }}", "reReplaceAll: bad regular expression"),
        ("{{ range $value }}x{{ end }}", "range can't go over 1.5"),
        ("{{ range 10001 }}{{ end }}", "range over 10001: more than 10000 turns"),
    ],
)
def test_data_that_a_function_can_not_take_is_an_error(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match="^" + re.escape(message)):
        _render(text)


def test_the_path_of_the_external_address_is_the_prefix() -> None:
    data = Data({}, 1.0, external_url="https://host:9090/a/b")
    assert Template("{{ pathPrefix }} {{ externalURL | len }}").render(data) == "/a/b 21"


@pytest.mark.parametrize(
    "text",
    [
        '{{ define "x" }}{{ end }}',
        '{{ template "x" }}',
        "{{ now }}",
        "{{ print now }}",
    ],
)
def test_what_prometheus_has_and_dsobs_has_not_is_told_from_mistakes(text: str) -> None:
    with pytest.raises(UnsupportedTemplateError, match="is not supported"):
        Template(text)
