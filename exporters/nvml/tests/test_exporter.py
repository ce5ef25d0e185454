"""The exporter over HTTP: what holds of every source (a real card too), by the official parsers of both formats."""

import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dsobs_nvml import FAMILIES, NvmlSource
from dsobs_nvml.dcgm import DCGM_NAMES
from dsobs_nvml.exporter import Exporter
from dsobs_nvml.page import OWN, POD_LABELS
from dsobs_nvml.settings import settings_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

MakeSource = Callable[[Sequence[str]], NvmlSource]
DCGM_LABELS = {"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION"}


@pytest.fixture
def exporter(make_source: MakeSource, tmp_path: Path) -> Iterator[Exporter]:
    flags = ["--listen", "127.0.0.1:0", "--dcgm-names", "--hostname", "node-1", "--pod-resources", "off"]
    flags += ["--textfile", str(tmp_path / "gpu.prom"), "--interval", "0.2"]
    made = Exporter(settings_of(flags, {}), make_source(()))
    made.start()
    assert made.reader.wait_for_first(30)
    yield made
    made.stop()


def get(exporter: Exporter, path: str, accept: str = "", encoding: str = "") -> tuple[int, str, bytes]:
    assert exporter.server is not None
    request = urllib.request.Request(f"http://{exporter.server.address}{path}")
    request.add_header("Accept", accept)
    request.add_header("Accept-Encoding", encoding)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def samples(text: str, read: Callable[[str], Any] = read_text) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in read(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def test_the_page_is_sound_in_both_formats_and_says_the_same(exporter: Exporter) -> None:
    status, kind, text = get(exporter, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    status, kind, openmetrics = get(exporter, "/metrics", "application/openmetrics-text;version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    plain, open_ = samples(text.decode()), samples(openmetrics.decode(), read_openmetrics)
    assert {key for key in plain if key[0] in FAMILIES} == {key for key in open_ if key[0] in FAMILIES}
    assert {key for key in plain if key[0] in DCGM_NAMES} == {key for key in open_ if key[0] in DCGM_NAMES}
    assert all(math.isfinite(value) for value in plain.values())


def test_every_series_has_a_name_and_labels_of_the_tables(exporter: Exporter) -> None:
    _, _, text = get(exporter, "/metrics")
    for name, labels in samples(text.decode()):
        found = {label for label, _ in labels}
        if name in DCGM_NAMES:
            assert found <= DCGM_LABELS
        elif name in FAMILIES:
            assert found <= {"gpu", "uuid", *FAMILIES[name].labels}
        else:
            assert name.startswith("process_") or found <= set(OWN[name].labels)


def test_dcgms_names_say_the_same_in_their_own_units(exporter: Exporter) -> None:
    _, _, text = get(exporter, "/metrics")
    values = samples(text.decode())
    for name, dcgm in DCGM_NAMES.items():
        if not dcgm.family:
            continue
        ours = [
            value
            for (family, labels), value in values.items()
            if family == dcgm.family and set(dcgm.labels) <= labels and len(labels - set(dcgm.labels)) <= 2
        ]
        theirs = [value for (family, _), value in values.items() if family == name]
        assert sorted(theirs) == pytest.approx(sorted(value * dcgm.scale for value in ours), abs=1e-5)


def test_a_card_has_the_dcgm_labels_and_memory_that_adds_up(exporter: Exporter) -> None:
    _, _, text = get(exporter, "/metrics")
    values = samples(text.decode())
    cards = {labels: value for (name, labels), value in values.items() if name == "DCGM_FI_DEV_FB_TOTAL"}
    assert cards
    for labels, total in cards.items():
        assert ("Hostname", "node-1") in labels
        parts = [values.get((f"DCGM_FI_DEV_FB_{part}", labels), 0.0) for part in ("USED", "FREE", "RESERVED")]
        assert sum(parts) == pytest.approx(total, abs=0.01)


def test_the_textfile_holds_the_cards_and_is_gone_at_the_end(exporter: Exporter, tmp_path: Path) -> None:
    path = tmp_path / "gpu.prom"
    exporter.write()
    names = {name for name, _ in samples(path.read_text(encoding="utf-8"))}
    assert {"dsobs_nvml_up", "dsobs_gpu_memory_used_bytes", "DCGM_FI_DEV_FB_USED"} <= names
    assert not any(name.startswith("process_") for name in names)
    assert [one.name for one in tmp_path.iterdir()] == ["gpu.prom"]
    exporter.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_packed_for_who_takes_it(exporter: Exporter) -> None:
    import gzip

    _, _, packed = get(exporter, "/metrics", encoding="gzip")
    assert b"dsobs_nvml_up 1.0" in gzip.decompress(packed)


def test_it_is_alive_and_ready_and_names_its_pages(exporter: Exporter) -> None:
    assert get(exporter, "/livez")[::2] == (200, b"alive\n")
    assert get(exporter, "/healthz")[::2] == (200, b"alive\n")
    assert get(exporter, "/readyz")[::2] == (200, b"cards are read\n")
    assert get(exporter, "/")[0] == 200
    assert get(exporter, "/metrics/x")[0] == 404


def test_no_label_of_a_pod_is_told_where_nobody_is_asked(exporter: Exporter) -> None:
    _, _, text = get(exporter, "/metrics")
    assert not {label for _, labels in samples(text.decode()) for label, _ in labels} & set(POD_LABELS)


def test_stopping_is_legal_before_the_start_and_twice(make_source: MakeSource) -> None:
    exporter = Exporter(settings_of(["--listen", "127.0.0.1:0", "--pod-resources", "off"], {}), make_source(()))
    exporter.stop()
    exporter.stop()
