import pytest

from dsobs.collectors.detect import adapters, detect, named
from dsobs.collectors.engines.vllm import Vllm
from tests.collectors import pages


def test_a_page_of_vllm_is_vllms() -> None:
    for text in (pages.busy(), pages.constructed_v08(), *pages.captured().values()):
        assert isinstance(detect(pages.parsed(text)), Vllm)


def test_a_page_that_nobody_knows_is_nobodys() -> None:
    assert detect(pages.parsed("up 1\n")) is None


def test_the_setting_names_an_engine() -> None:
    assert isinstance(named("vllm"), Vllm)
    assert "vllm" in {adapter.name for adapter in adapters()}


def test_a_name_that_is_not_there_says_which_are() -> None:
    with pytest.raises(LookupError, match=r"no engine named 'vlm'; there are: .*vllm"):
        named("vlm")
