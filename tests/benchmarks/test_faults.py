"""The played faults are of the catalogue, and their pages are such as collectors take."""

import time

import pytest

from dsobs import promql
from dsobs.collectors.engines.vllm import Vllm
from dsobs.collectors.gpu_exporter import _cards
from dsobs.config import Config
from dsobs.pipeline import rule_groups
from dsobs.series.exposition import Parser
from tests.benchmarks.faults import FAULTS, NATIVE_RULES, Fault, Server

SHIPPED = {rule.name for group in rule_groups(Config()) for rule in group.rules}


def test_every_fault_is_one_of_the_catalogue() -> None:
    assert {fault.alert for fault in FAULTS} <= SHIPPED
    assert {fault.native for fault in FAULTS if fault.native} == set(NATIVE_RULES)
    for expression, _, _ in NATIVE_RULES.values():
        promql.compile(expression)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.begin is not None], ids=lambda fault: fault.name)
def test_a_fault_changes_its_servers_pages(fault: Fault) -> None:
    server = Server(started=0.0)
    server.counted_at = time.time() - 100
    before = server.engine_page(), server.gpu_page(), server.silent
    assert fault.begin is not None
    fault.begin(server)
    server.counted_at -= 100
    after = server.engine_page(), server.gpu_page(), server.silent
    assert after != before
    page = Parser().parse(after[0])
    assert Vllm().recognizes(page)
    assert Vllm().canonical(page)
    cards, up, _ = _cards(Parser().parse(after[1]))
    assert up
    assert len(cards) == 1
