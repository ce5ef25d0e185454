from pathlib import Path

import pytest

from dsobs.config import ConfigError, load

DATA = Path(__file__).parent / "data"

WRITTEN_OUT = "is a secret written out; put it into a file or a variable and write file:PATH or env:NAME here"

BAD = {
    "secrets_written_out": [
        f":2: target.api_key: {WRITTEN_OUT}",
        f":5: notifiers.pagerduty.routing_key: {WRITTEN_OUT}",
        f":8: notifiers.webhook.token: {WRITTEN_OUT}",
        f":10: api.control_token: {WRITTEN_OUT}",
    ],
    "unknown_keys": [
        ":2: target.ulr: there is no such setting; did you mean target.url?",
        ":3: tagret: there is no such setting; did you mean target?",
        ":5: url: there is no such setting; did you mean target.url or notifiers.pagerduty.url or "
        "notifiers.slack.url or notifiers.webhook.url or heartbeat.url?",
        ":7: hang.treshold: there is no such setting; did you mean hang.min_threshold?",
        ":8: hang.zzz: there is no such setting; there are idle_after, idle_probe_interval, learn_after, "
        "max_threshold, min_threshold, probe, probe_timeout, unresponsive_after",
    ],
    "duplicate_keys": [
        ":3: target.name: is set twice, first in line 2; delete one of them",
        ":7: gpu: is set twice, first in line 4; delete one of them",
    ],
    "unclosed_quote": [
        ":3: is no YAML (while scanning a quoted scalar from line 2, found unexpected end of stream); "
        "mend the line or the one above"
    ],
    "tab": [
        ":2: is no YAML (while scanning for the next token, found character '\\t' that cannot start any token); "
        "mend the line or the one above"
    ],
    "two_documents": [":2: holds a second document; keep one and delete this `---`"],
    "list_at_the_top": [":1: holds no settings; write a section such as `target:` and below it lines of `name: value`"],
    "wrong_types": [
        ":2: target.url: is a list, where a text is wanted; write one value",
        ":3: target.scrape_interval: '5 minutes' is no duration; write seconds or 500ms, 30s, 5m, 24h",
        ":4: target.scrape_timeout: is '-1'; write more than 0",
        ":5: target.name: holds settings, where a text is wanted; write it behind the colon",
        ":7: gpu: is one value, where settings are wanted; write lines of `name: value` below it",
        ":9: hang.probe: 'sometimes' is none of auto, on, off; write one of them",
        ":10: hang.idle_after: '.inf' is no duration; write seconds or 500ms, 30s, 5m, 24h",
        ":12: remediation.mode: 'enfroce' is none of observe, enforce; did you mean enforce?",
        ":13: remediation.enabled: 'maybe' is neither true nor false; write one of them",
        ":14: remediation.max_restarts_24h: '1.5' is no whole number; write a whole number",
        ":15: remediation.fleet_breaker: is '1.5'; write 1 or less",
        ":17: rules.files: is one value, where a list is wanted; write [extra.rules.yaml]",
        ":19: rules.gpu_memory.threshold: 'high' is no number; write a number",
        ":21: api.listen: has no value; write one or delete the line",
    ],
    "addresses": [
        ":2: target.url: holds a user name or password, which would be printed; leave it out and use a secret",
        ":4: runtime.docker_host: is no address of Docker's API; write unix:///var/run/docker.sock or tcp://HOST:PORT",
        ":6: notifiers.pagerduty.routing_key: is missing; write file:PATH or env:NAME",
        ":7: notifiers.pagerduty.url: 'ftp://127.0.0.1' is no http:// or https:// address; write http://HOST:PORT",
        ":9: api.listen: '127.0.0.1:99940' is no address and port; write 127.0.0.1:9940",
    ],
    "other_addresses": [
        ":2: target.url: 'http://127.0.0.1:8000/v1' has a path; write http://127.0.0.1:8000",
        ":6: notifiers.webhook.severities[0]: 'critcal' is none of critical, error, warning, info; "
        "did you mean critical?",
        ":7: notifiers.webhook.token: holds settings, where file:PATH or env:NAME is wanted; write it behind the colon",
    ],
    "contradictions": [
        ":2: hang.min_threshold: is 5s, less than two scrapes of 15s, so that every gap would be a stall; "
        "write 30s or more, or scrape more often",
        ":3: target.scrape_timeout: is 2m, more than hang.unresponsive_after of 90s; lower it or raise that",
        ":5: hang.min_threshold: is 5s, more than hang.max_threshold of 4s; lower it or raise that",
        ":6: hang.idle_probe_interval: is 2s, not more than hang.probe_timeout of 3s; raise it, or write 0 to probe "
        "no idle engine",
        ":8: runtime.container: is empty, and runtime.name is docker; write the name or id of the engine's container",
    ],
    "alertmanager": [
        ":3: notifiers.alertmanager.urls: names one address twice; each Alertmanager stands there once",
        ":4: notifiers.alertmanager.labels[0]: 'cluster' is no label; write NAME=VALUE, such as cluster=eu-1",
        ":5: notifiers.alertmanager.silence_scope[0]: 'pod=~(' holds a bad regular expression: missing ): (",
        ":6: notifiers.alertmanager.bearer_token: is set, and notifiers.alertmanager.basic_user too; keep one of them",
        ":7: notifiers.alertmanager.basic_user: and notifiers.alertmanager.basic_password belong together; set both "
        "or none",
        ":8: notifiers.alertmanager.cert_file: is missing for notifiers.alertmanager.key_file; name the certificate "
        "that the key belongs to",
        ":9: notifiers.slack.url: is missing; write file:PATH or env:NAME",
        ":11: heartbeat.interval: is '0'; write more than 0",
    ],
    "objectives": [
        ":3: rules.objectives.ttft_target: is 0.9: 14.4 times a budget of 0.1 is never burnt, so that nothing would be "
        "paged at once; write 0.931 or more",
        ":4: rules.objectives.availability_target: is 1, which leaves no budget to burn; write less than 1, such as "
        "0.9999",
    ],
    "elasticsearch": [
        ":2: logs.files[1]: ':x' is no file name pattern; write PATTERN or FORMAT:PATTERN, such as /var/log/vllm/*.log",
        ":3: logs.namespace: 'Big-Letters' is no namespace; write at most 100 small letters, digits, . and _",
        ":4: logs.labels[0]: 'no label' is no label; write NAME=VALUE, such as cluster=eu-1",
        ":6: logs.elasticsearch.urls[0]: 'elasticsearch:9200' is no http:// or https:// address; write http://HOST:PORT",
        ":7: logs.elasticsearch.index: 'Deepseek Logs' is no index name; write small letters, digits, - and _, such as "
        "deepseek-logs",
    ],
    "elasticsearch_together": [
        ":6: logs.elasticsearch.bearer_token: is set, and logs.elasticsearch.api_key too; keep one of them",
        ":7: logs.elasticsearch.password: is set without logs.elasticsearch.user; set both or neither",
        ":8: logs.elasticsearch.key_file: is set without logs.elasticsearch.cert_file; set both or neither",
    ],
    "log_elasticsearch": [
        ":3: logs.elasticsearch.urls: is empty; name at least one",
        f":4: logs.elasticsearch.api_key: {WRITTEN_OUT}",
        ":5: logs.elasticsearch.bulk_bytes: is '1000'; write 65536 or more",
        ":6: logs.elasticsearch.bulk_records: is '0'; write 1 or more",
        ":7: logs.elasticsearch.max_in_flight: is '100'; write 32 or less",
        ":8: logs.elasticsearch.lifecycle: 'slm' is none of data-stream, ilm, none; did you mean ilm?",
        ":9: logs.elasticsearch.retention: '30 days' is no duration; write seconds or 500ms, 30s, 5m, 24h",
        ":10: logs.elasticsearch.max_refused: is '5'; write 1 or less",
        ":11: logs.elasticsearch.timeout: is '0'; write more than 0",
    ],
    "log_elasticsearch_http": [
        ":4: logs.elasticsearch.ca_file: is set, and no address of logs.elasticsearch.urls is https; write https://",
        ":5: logs.elasticsearch.cert_file: is set, and no address of logs.elasticsearch.urls is https; write https://",
    ],
    "log_sinks": [
        ":2: logs.edge.max_bytes_per_second: is '-5'; write 0 or more",
        ":2: logs.edge.enabled: is true without logs.elasticsearch, where records go on to; set its urls "
        "or write false",
        ":3: logs.file.path: is a list, where a path is wanted; write one value",
        ":3: logs.file.max_bytes: is '1000'; write 1048576 or more",
        ":3: logs.file.files: is '1'; write 2 or more",
    ],
    "log_sinks_together": [
        ":2: logs.edge.enabled: is true without logs.elasticsearch, where records go on to; set its urls "
        "or write false",
    ],
    "log_sources": [
        ":2: logs.files[0]: 'vllm:-' is stdin, which only `dsobs logs ship --from -` reads; write a file name pattern",
        ":2: logs.files[1]: ':*.log' is no file name pattern; write PATTERN or FORMAT:PATTERN, such as "
        "/var/log/vllm/*.log",
        ":3: logs.max_line_bytes: is '100'; write 1024 or more",
        ":4: logs.max_held_bytes: is '-1'; write 0 or more",
        ":5: logs.timezone: 'Berlin' is no time zone of this host; write an IANA name, such as Europe/Berlin",
        ":6: logs.namespace: 'a-b' is no namespace; write at most 100 small letters, digits, . and _",
        ":7: logs.preset: 'deepseek' is none of deepseek-logs; did you mean deepseek-logs?",
        ":8: logs.patterns[0]: 'Out of memory' is no pattern; write NAME=TEXT, NAME=~REGEX or NAME=TEXT "
        "=~ REGEX, such as disk_full=No space left on device",
        ":8: logs.patterns[1]: 'oom=~(' holds a bad regular expression: missing ): (",
        ":9: logs.labels[0]: '1=x' is no label; write NAME=VALUE, such as cluster=eu-1",
    ],
    "log_transform": [
        ":3: logs.transform.min_level: 'err' is none of debug, info, warning, error, critical; did you mean error?",
        ":4: logs.transform.without_level: 'maybe' is none of keep, drop; write one of them",
        ":5: logs.transform.keep[0]: 'log.level =' is no expression at 'log.level ='; write FIELD OP "
        'VALUE joined by and or or, such as log.level = "ERROR" and url.path !~ "/(health|metrics)"',
        ":6: logs.transform.drop[0]: 'url.path =~ \"(\"' holds a bad regular expression: missing ): (",
        ":6: logs.transform.drop[1]: 'a = b c' has 'c' where and or or is wanted; quote a value of words",
        ":7: logs.transform.sample[0]: '10 log.level=INFO' begins with no share of 0 to 1; write SHARE "
        "EXPRESSION, such as 0.1 log.level=INFO",
        ":8: logs.transform.rate_limit[0]: '0' begins with no whole number above 0; write NUMBER "
        "EXPRESSION, such as 100 log.level=INFO",
        ":8: logs.transform.rate_limit[1]: 'x < y' compares with 'y', which is no number; write one",
        ":9: logs.transform.remove[0]: @timestamp can't be changed: a data stream takes no record without it",
        ":9: logs.transform.remove[1]: 'a..b' is no field; write names joined by dots, such as http.request.method",
        ":10: logs.transform.rename[0]: 'user_id' has no =; write OLD=NEW, such as user_id=user.id",
        ":11: logs.transform.add[0]: 'labels.site' has no =; write NAME=VALUE, such as labels.site=eu-1",
        ":12: logs.transform.redact.kinds[0]: 'mail' is none of api_key, bearer, email, phone, card, "
        "prompt; did you mean email?",
        ":12: logs.transform.redact.feilds: there is no such setting; did you mean logs.transform.redact.fields?",
        ":13: logs.transform.max_field_bytes: 'lots' is no whole number; write a whole number",
    ],
    "fallback_alone": [
        ":4: notifiers.pagerduty.fallback: is true, and without notifiers.alertmanager there is nothing to fall back "
        "from; write false"
    ],
    "fallback_severities": [
        ":4: notifiers.alertmanager.severities: leaves out some of notifiers.pagerduty.severities, which as a fallback "
        "would never page them; add them"
    ],
    "nothing_to_restart": [
        ":2: remediation.mode: is enforce, and with runtime.name none nothing can be restarted; name a runtime or "
        "write observe"
    ],
    "contradiction_beside_error": [
        ":2: target.max_page_bytes: 'lots' is no whole number; write a whole number",
        ":4: runtime.container: is empty, and runtime.name is docker; write the name or id of the engine's container",
    ],
    "tags": [
        ":2: target.name: has the tag tag:yaml.org,2002:python/object/apply:os.system, which means nothing here; "
        "delete the tag",
        ":3: target.engine: has the tag !mine, which means nothing here; delete the tag",
        ":5: rules.files[1]: contains itself; write the values instead of the alias",
        ":6: has a name that is no plain word; write `name: value`",
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_all_errors_of_a_bad_file_are_named_with_their_lines(name: str) -> None:
    path = DATA / f"{name}.bad.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert [str(problem).removeprefix(str(path)) for problem in caught.value.problems] == BAD[name]
    assert "hunter2" not in str(caught.value)


def test_every_bad_file_has_its_messages() -> None:
    assert {path.name.removesuffix(".bad.yaml") for path in DATA.glob("*.bad.yaml")} == set(BAD)
