import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from dsobs.simulator.metrics import TOKEN_HISTOGRAMS, Page, Series, format_value, load_families, token_bounds
from dsobs.simulator.options import Options
from tests.contracts.engine_contract import DATA, shapes


@given(st.floats(min_value=0, allow_nan=False))
@example(1e6)
@example(1_000_000.5)
@example(math.inf)
@example(100000.0)
def test_values_are_written_as_prometheus_client_writes_them(value: float) -> None:
    assert format_value(value) == floatToGoString(value)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["idle", "load", "hang", "after", "sleep-level-0"])
def test_table_of_032_has_every_family_of_the_captured_pages(name: str) -> None:
    captured = shapes((DATA / "vllm-0.32" / f"{name}.prom").read_text())
    known = {str(family["name"]): family for family in load_families("0.32")}
    for family, shape in captured.items():
        if family.endswith("_created") or family.startswith("vllm:sleep_mode_operation"):
            continue
        assert known[family]["type"] == shape.type
        if family in TOKEN_HISTOGRAMS:
            max_model_len = 32768 if name == "sleep-level-0" else 1024
            assert shape.label_values["le"] == set(token_bounds(max_model_len))
            continue
        buckets = known[family].get("buckets", [])
        assert isinstance(buckets, list)
        assert set(buckets) == shape.label_values.get("le", set(buckets))


@pytest.mark.parametrize("version", ["0.23", "0.32"])
def test_fresh_page_reads_as_exposition_format_with_all_counters_at_zero(version: str) -> None:
    page = Page(Options(vllm_version="0.23" if version == "0.23" else "0.32", model_names=('a "b"\\',)), time.time())
    families = {family.name: family for family in text_string_to_metric_families(page.render())}
    assert families["vllm:generation_tokens"].samples[0].labels == {"engine": "0", "model_name": 'a "b"\\'}
    assert families["vllm:generation_tokens"].samples[0].value == 0
    assert families["process_start_time_seconds"].samples[0].value > 1e9


def test_each_data_parallel_engine_has_its_own_series() -> None:
    page = Page(Options(data_parallel_size=3), time.time())
    engines = shapes(page.render())["vllm:kv_cache_usage_perc"].label_values["engine"]
    assert engines == {"0", "1", "2"}


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    series = Series("x", "histogram", {}, ["0.5", "1.0", "+Inf"])
    for value in (0.5, 0.7, 9.0):
        series.observe(value)
    assert series.render() == [
        'x_bucket{le="0.5"} 1.0',
        'x_bucket{le="1.0"} 2.0',
        'x_bucket{le="+Inf"} 3.0',
        "x_count 3.0",
        "x_sum 10.2",
    ]


def test_kv_cache_size_on_the_page_is_that_of_the_options() -> None:
    page = Page(Options(num_gpu_blocks=3000, block_size=32), time.time())
    labels = shapes(page.render())["vllm:cache_config_info"].label_values
    assert (labels["num_gpu_blocks"], labels["kv_cache_size_tokens"]) == ({"3000"}, {"96000"})
    assert labels["kv_cache_memory_bytes"] == {"None"}
