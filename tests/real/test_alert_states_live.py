"""Alert states against a running Prometheus 3 that scrapes a page server, as its `/api/v1/rules` tells them.

It scrapes and evaluates once a second; the page changes as soon as the states that are waited for are there. Then dsobs
gets the samples that Prometheus scraped, at their times, and evaluates at the times at which Prometheus did. So nothing
hangs on how busy the machine is. The rules look six seconds back (`query_offset`): a scrape is stored by then, even if
the machine stood still for five.
"""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from dsobs.model.samples import Labels, Sample, metric_name
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load_text
from dsobs.series.store import Store
from tests.real.prometheus import Prometheus

pytestmark = pytest.mark.real("servers")

OFFSET = 6
PATIENCE = 180.0
RULES = f"""
groups:
  - name: live
    interval: 1s
    query_offset: {OFFSET}s
    rules:
      - record: evaluated
        expr: vector(1)
      - alert: AtOnce
        expr: s > 1
        labels: {{severity: warning}}
        annotations: {{said: '{{{{ $labels.i }}}} at {{{{ $value }}}}'}}
      - alert: For
        expr: s > 1
        for: 3s
      - alert: Kept
        expr: s > 1
        keep_firing_for: 2s
      - alert: Down
        expr: up == 0
        for: 1s
      - alert: Gone
        expr: absent(s)
"""


@contextlib.contextmanager
def pages() -> Iterator[tuple[str, Callable[[str], None]]]:
    """HOST:PORT of a page, and what sets it; an empty one is answered with 503."""
    shown = [""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = shown[0].encode()
            self.send_response(200 if body else 503)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", lambda text: shown.__setitem__(0, text)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def states(prometheus: Prometheus) -> dict[str, str]:
    """State of each alerting rule."""
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    return {rule["name"]: rule["state"] for rule in group["rules"] if rule["type"] == "alerting"}


def until(prometheus: Prometheus, **wanted: str) -> None:
    """Waits until these rules are in these states."""
    deadline = time.monotonic() + PATIENCE
    while not wanted.items() <= (found := states(prometheus)).items():
        assert time.monotonic() < deadline, f"{wanted} is waited for, {found} is there"
        time.sleep(0.05)


def raw(prometheus: Prometheus, selector: str, t: float) -> list[tuple[Labels, list[tuple[int, float]]]]:
    """All samples up to `t`, as stored."""
    answer = prometheus.query(f"{selector}[10m]", t)
    assert answer.error == ""
    return answer.series


def alerts(samples: list[tuple[Labels, float]]) -> set[tuple[Labels, float]]:
    return {(labels, value) for labels, value in samples if metric_name(labels) in ("ALERTS", "ALERTS_FOR_STATE")}


def told(group: dict[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """State and alerts of each rule, with times to the millisecond."""
    found = {}
    for rule in group["rules"]:
        if rule["type"] == "alerting":
            views = [
                {key: value[:23] if key in ("activeAt", "keepFiringSince") else value for key, value in view.items()}
                for view in rule["alerts"]
            ]
            found[rule["name"]] = rule["state"], sorted(views, key=str)
    return found


def test_states_are_those_of_a_running_prometheus_at_each_evaluation() -> None:
    with pages() as (target, show), Prometheus(RULES, 1.0, target) as prometheus:
        show('s{i="1"} 0\n')
        until(prometheus, AtOnce="inactive", Gone="inactive", For="inactive")
        show('s{i="1"} 1.5\ns{i="2"} 3\n')
        until(prometheus, AtOnce="firing", For="pending")
        until(prometheus, For="firing", Kept="firing")
        show('s{i="1"} 2.5\n')
        until(prometheus, For="firing", Kept="firing", Gone="inactive")
        show("")
        until(prometheus, AtOnce="inactive", Kept="inactive", Down="firing", Gone="firing")
        show('s{i="1"} 1234567.5\ns{i="3"} 7\n')
        until(prometheus, AtOnce="firing", Down="inactive", For="firing")
        (group,) = prometheus.get("/api/v1/rules")["groups"]
        now = time.time() + 1
        ends = raw(prometheus, "evaluated", now)[0][1]
        scrapes = raw(prometheus, "up", now)
        samples = raw(prometheus, "s", now)
        theirs: dict[int, set[tuple[Labels, float]]] = {}
        for labels, points in raw(prometheus, '{__name__=~"ALERTS|ALERTS_FOR_STATE"}', now):
            for at, value in points:
                theirs.setdefault(at, set()).add((labels, value))

    store = Store()
    evaluator = Evaluator(load_text([("rules.yaml", RULES)]), store)
    for name in evaluator.metric_names:
        store.want(name)
    ((up, ups),) = scrapes
    due = iter(ups)
    scrape = next(due, None)
    differences = {}
    last = datetime.fromisoformat(group["lastEvaluation"]).timestamp()
    final: dict[str, Any] = {}
    for number, (at, _) in enumerate(ends):
        while scrape is not None and scrape[0] <= at:
            page = [Sample(labels, value) for labels, points in samples for t, value in points if t == scrape[0]]
            store.append_samples([*page, Sample(up, scrape[1])], scrape[0] / 1000, source="t")
            scrape = next(due, None)
        evaluator.evaluate(at / 1000 + OFFSET)
        ours = alerts([(one.labels, one.value) for one in evaluator.alert_samples()])
        # Prometheus writes none before it has restored states, which it does after two evaluations.
        if number >= 2 and ours != theirs.get(at, set()):
            differences[at] = ours ^ theirs.get(at, set())
        (view,) = evaluator.rules()["groups"]
        # It tells when it began to evaluate, which is soon after the time that it evaluated for.
        if at / 1000 + OFFSET <= last:
            final = view
    assert differences == {}
    assert told(final) == told(group)
    print(f"{len(ends)} evaluations, {sum(map(len, theirs.values()))} samples of alerts: differences 0")
