"""Secrets are replaced wherever they stand, and nothing else is."""

import json
from typing import Any

import orjson
import pytest

from dsobs.config.log_transform import LogTransform, Redact
from dsobs.config.logs import Logs
from dsobs.logs.metrics import REDACTED
from dsobs.logs.record import Record
from dsobs.logs.transforms import open_transforms
from dsobs.logs.transforms.redact import is_card, luhn

_ALL: tuple[Any, ...] = ("api_key", "bearer", "email", "phone", "card", "prompt")


def _redacted(document: dict[str, Any] | bytes, *, kinds: tuple[Any, ...] = _ALL, **settings: Any) -> Any:
    redact = Redact.model_validate({"kinds": kinds, **settings})
    _, step = open_transforms(Logs(transform=LogTransform(redact=redact)))
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    other: Record = (0, b"nothing in it", {"message": "nothing in it"})
    records = step.apply([other, (14, raw, document), other])
    assert records[0] is records[2] is other
    return records[1][2]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mail to jane.doe+x@example.co.uk now", "mail to [email] now"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer [bearer]"),
        ("key sk-proj-abcdefghijklmnop0123 used", "key [api_key] used"),
        ("AKIAABCDEFGHIJKLMNOP", "[api_key]"),
        ("token hf_abcdefghijklmnopqrstuvwxyz", "token [api_key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0abc.sig-nature", "[api_key]"),
        ("api_key=verysecret1, x=1", "api_key=[api_key], x=1"),
        ('{\\"password\\": \\"hunter22\\"}', '{\\"password\\": \\"[api_key]\\"}'),
        ("HF_TOKEN=abcdef", "HF_TOKEN=[api_key]"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("card 5555-5555-5555-4444", "card [card]"),
        ("call +49 30 1234567 or (212) 555-0123 or 212-555-0123", "call [phone] or [phone] or [phone]"),
        (
            "Received request r: prompt: 'it\\'s \"me\"', params: P(n=1)",
            "Received request r: prompt: [prompt], params: P(n=1)",
        ),
        (
            'details: prompt: "it\'s", prompt_token_ids: [1, 2], x',
            "details: prompt: [prompt], prompt_token_ids: [prompt], x",
        ),
        ("Request r details: prompt: 'cut off in the mid", "Request r details: prompt: [prompt]"),
    ],
)
def test_a_secret_in_a_text_is_replaced_by_its_kind(text: str, wanted: str) -> None:
    assert _redacted({"message": text}) == {"message": wanted}
    line = b'{"@timestamp":"2026-11-24T08:00:00Z","message":' + orjson.dumps(text) + b"}"
    assert _redacted(line)["message"] == wanted


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24 08:00:00,123 took 1234567890123 ns, 1795507200123456789",
        "Avg prompt throughput: 0.4 tokens/s, prompt_tokens=512, max_tokens: 4096",
        "request cmpl-00000000000000000000000000004111 from 192.168.100.200:12345",
        "4111 1111 1111 1112 has a wrong check digit",
        "a@b, @decorator, x @ y",
        "the basic idea, bearer of news",
        "1.5e+10 and UTC+02:00 and v1.2.3-4567",
    ],
)
def test_what_only_looks_a_little_like_a_secret_stays(text: str) -> None:
    document = {"message": text}
    assert _redacted(document) is document
    assert document == {"message": text}


def test_a_line_without_secrets_is_sent_byte_for_byte() -> None:
    line = b'{"@timestamp":"2026-11-24T08:00:00Z", "n": 1.50, "mail": "none @ all"}'
    assert _redacted(line) is line


def test_fields_that_are_named_for_secrets_and_prompts_are_replaced_whole() -> None:
    document = {
        "@timestamp": "2026-11-24T08:00:00Z",
        "headers": {"Authorization": "x y z", "x-api-key": ["a"]},
        "prompt": "hello",
        "messages": [{"role": "user", "content": "hello"}],
        "usage": {"prompt_tokens": 5},
        "db.password": "p",
        "max_token": 5,
    }
    assert _redacted(document) == {
        "@timestamp": "2026-11-24T08:00:00Z",
        "headers": {"Authorization": "[api_key]", "x-api-key": "[api_key]"},
        "prompt": "[prompt]",
        "messages": "[prompt]",
        "usage": {"prompt_tokens": 5},
        "db.password": "[api_key]",
        "max_token": 5,
    }


def test_card_numbers_that_are_json_numbers_are_replaced_too() -> None:
    assert _redacted({"card": 4111111111111111, "id": 4111111111111112}) == {"card": "[card]", "id": 4111111111111112}


def test_an_escape_in_json_hides_nothing() -> None:
    line = b'{"@timestamp":"2026-11-24T08:00:00Z","a":"jane\\u0040example.com"}'
    assert _redacted(line)["a"] == "[email]"


def test_a_secret_in_two_parts_of_a_line_is_found() -> None:
    _, step = open_transforms(Logs(transform=LogTransform(redact=Redact(kinds=("email",)))))
    raw = b"2026-11-24T08:00:00Z stdout P jane\n2026-11-24T08:00:00Z stdout F @example.com"
    ((_, _, document),) = step.apply([(0, raw, {"message": "jane@example.com"})])
    assert document == {"message": "[email]"}


def test_only_the_fields_asked_for_are_redacted() -> None:
    document = {"a": "x@example.com", "b": {"c": "x@example.com", "d": "x@example.com"}, "b.c.e": "x@example.com"}
    only = _redacted(json.loads(json.dumps(document)), fields=("b.c",))
    assert only == {"a": "x@example.com", "b": {"c": "[email]", "d": "x@example.com"}, "b.c.e": "[email]"}
    spared = _redacted(json.loads(json.dumps(document)), except_fields=("a", "b.d"))
    assert spared == {"a": "x@example.com", "b": {"c": "[email]", "d": "x@example.com"}, "b.c.e": "[email]"}


def test_only_the_kinds_asked_for_are_redacted_and_counted() -> None:
    before = REDACTED.labels("email")._value.get()
    assert _redacted({"m": "x@example.com 4111111111111111"}, kinds=("email",)) == {"m": "[email] 4111111111111111"}
    assert REDACTED.labels("email")._value.get() - before == 1


@pytest.mark.parametrize("number", ["4111111111111111", "378282246310005", "5555 5555 5555 4444", "6011111111111117"])
def test_cards_are_known_by_issuer_length_and_check_digit(number: str) -> None:
    assert is_card(number)
    assert not is_card(number[:-1] + str((int(number[-1]) + 1) % 10))
    assert not is_card("1" + number[1:])
    assert luhn(number.replace(" ", ""))
