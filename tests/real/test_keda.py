"""deploy/keda as it stands: against KEDA's own definition, an API server, and a Prometheus that scrapes dsobs."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from dsobs.api.server import serve
from dsobs.model.samples import Sample, labels
from dsobs.runtimes.kubernetes.scaling import autoscaler_of
from tests.acceptance.scene import SIMULATOR, Scene, scene
from tests.api.conftest import MemorySource
from tests.real.kubernetes import Cluster, Namespace
from tests.real.modules import module
from tests.real.prometheus import Answer, Prometheus

KEDA = "github.com/kedacore/keda/v2@v2.21.0"
FOLDER = Path(__file__).parents[2] / "deploy" / "keda"
SCALED_OBJECT, HPA = (FOLDER / name for name in ("scaledobject.yaml", "hpa.yaml"))
DEMAND = "dsobs_engine_demand_ratio"
WAITING = 5
FULL_AT = 2
"""Waiting requests that are a full replica's demand here."""
ELSEWHERE = "elsewhere"
SERVING = "serving"


@pytest.fixture(scope="module")
def keda(cluster: Cluster) -> Iterator[None]:
    """The cluster knows ScaledObject, by KEDA's own definition."""
    file = module(KEDA) / "config/crd/bases/keda.sh_scaledobjects.yaml"
    crd = f"crd/{yaml.safe_load(file.read_text())['metadata']['name']}"
    # Too large for the annotation of a client's `apply`.
    cluster.kubectl("apply", "--server-side", f"--filename={file}")
    cluster.kubectl("wait", "--for=condition=Established", crd, "--timeout=60s")
    yield
    cluster.kubectl("delete", crd)


@pytest.mark.real("cluster")
@pytest.mark.usefixtures("keda")
@pytest.mark.parametrize(
    ("file", "resource", "kind"),
    [(SCALED_OBJECT, "scaledobjects.keda.sh", "ScaledObject"), (HPA, "hpa", "HorizontalPodAutoscaler")],
    ids=["ScaledObject", "HorizontalPodAutoscaler"],
)
def test_api_server_takes_the_manifest_and_dsobs_leaves_its_workload_alone(
    namespace: Namespace, file: Path, resource: str, kind: str
) -> None:
    strictly = ("apply", "--validate=strict", "--filename=-")
    namespace.kubectl(*strictly, stdin=file.read_text())
    taken = json.loads(namespace.kubectl("get", resource, "vllm", "--output=json"))
    given = yaml.safe_load(file.read_text())["spec"]
    assert _without_defaults(taken["spec"], given) == given
    found = autoscaler_of([taken], "Deployment", "vllm")
    assert found is not None
    assert (found.kind, found.minimum, found.maximum) == (kind, 1, 4)
    # What it takes is not anything.
    with pytest.raises(AssertionError, match=r'unknown field "spec\.scaleTargetReference"'):
        namespace.kubectl(*strictly, stdin=file.read_text().replace("scaleTargetRef", "scaleTargetReference"))


def _without_defaults(taken: object, given: object) -> object:
    """What was given, as it was taken."""
    if isinstance(given, dict) and isinstance(taken, dict):
        return {key: _without_defaults(taken.get(key), value) for key, value in given.items()}
    if isinstance(given, list) and isinstance(taken, list):
        return [_without_defaults(one, other) for one, other in zip(taken, given, strict=True)]
    return taken


def queries() -> list[str]:
    """KEDA's own, and the one that the adapter for the HPA is to have, for one namespace."""
    (trigger,) = yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]
    (told,) = re.findall(r"(?m)^#\s+(sum\(.+\))$", HPA.read_text())
    return [text.replace("NAMESPACE", SERVING) for text in (trigger["metadata"]["query"], told)]


@contextlib.asynccontextmanager
async def page_of(demand: float | None) -> AsyncIterator[str]:
    """HOST:PORT of another dsobs whose demand is this; None: it is not known."""
    source = MemorySource()
    source.samples = [] if demand is None else [Sample(labels(DEMAND), demand)]
    async with serve(source, "127.0.0.1:0", None) as (host, port):
        yield f"{host}:{port}"


async def requests_that_last(here: Scene, count: int) -> None:
    """So many, of which the engine works on one at a time and for minutes."""

    async def one() -> None:
        async with here.session.get(f"{here.url}/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        body = {"model": model, "prompt": "a", "max_tokens": 30_000, "ignore_eos": True}
        async with here.session.post(f"{here.url}/v1/completions", json=body) as answer:
            await answer.read()

    await asyncio.gather(*(one() for _ in range(count)))


@pytest.mark.real("servers")
async def test_queries_give_one_value_the_demand_of_the_namespaces_replicas(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, page_of(0.5) as half, page_of(9.0) as foreign, page_of(None) as unknown:
        await here.start_engine(*SIMULATOR, "--max-num-seqs", "1", supervised=False)
        await here.start_dsobs(enforce=False, hang__probe="off", scaling__queue_per_replica=str(FULL_AT))
        asking = asyncio.ensure_future(requests_that_last(here, WAITING + 1))
        in_namespace, outside = {"namespace": SERVING}, {"namespace": ELSEWHERE}
        targets = (
            (f"127.0.0.1:{here.api}", in_namespace),
            (half, in_namespace),
            (unknown, in_namespace),
            (foreign, outside),
        )
        expected = WAITING / FULL_AT + 0.5
        with Prometheus(interval=1.0, labelled=targets) as prometheus:
            for query in queries():
                answers: list[Answer] = []

                async def fits(query: str = query, answers: list[Answer] = answers) -> bool:
                    answers.append(await asyncio.to_thread(prometheus.query, query, time.time()))
                    return [value for _, points in answers[-1].series for _, value in points] == [expected]

                await here.until(fits, 120.0, f"{query} is {expected}")
                assert answers[-1].kind == "vector"
                assert [of for of, _ in answers[-1].series] == [()]
            # Nobody there is no demand of 0: KEDA is told not to take it for one (ignoreNullValues).
            nobody = queries()[0].replace(SERVING, "nobody")
            assert (await asyncio.to_thread(prometheus.query, nobody, time.time())).series == []
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
