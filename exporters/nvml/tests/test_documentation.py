"""The README's generated parts."""

import pytest
from dsobs_nvml import FAMILIES, QUESTIONS
from dsobs_nvml.dcgm import DCGM_NAMES
from dsobs_nvml.documentation import PARTS, written

EMPTY = "".join(f"<!-- generated: {name} -->\n<!-- end -->\nkept\n" for name in PARTS)


def test_each_part_is_put_in_its_place_and_the_rest_is_kept() -> None:
    text = written(EMPTY)
    assert text.count("kept") == len(PARTS)
    assert all(f"`{name}`" in text for name in (*FAMILIES, *DCGM_NAMES))
    assert written(text) == text


def test_a_part_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="questions"):
        written(EMPTY.replace("questions", "answers"))


def test_a_question_that_is_asked_in_each_reading_is_cheap() -> None:
    for question in QUESTIONS:
        assert question.every or (question.cost_ms is not None and question.cost_ms < 1.0)


def test_every_name_of_dcgms_is_made_of_a_family_that_there_is() -> None:
    for name in DCGM_NAMES.values():
        if name.family:
            assert tuple(label for label, _ in name.labels) == FAMILIES[name.family].labels
