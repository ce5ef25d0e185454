"""The table of log shipping's faults says what the tests show, and nothing is missing in it."""

from tests.log_faults import FAULTS, REAL, Played, played, problems, results


def test_each_fault_is_played_with_a_real_server_where_that_matters_and_with_a_good_result() -> None:
    assert problems(played(), results()) == []


def test_what_is_missing_or_failed_is_named() -> None:
    """A table that can't be wrong would show nothing."""
    all_of_them = [Played(f"tests/real/test_{n}.py", "test_it", (n,)) for n in FAULTS]
    good = {"tests": {one.id: "passed 1" for one in all_of_them}}
    assert problems(all_of_them, good) == []
    assert problems(all_of_them[1:], good) == ["fault 1 has no test"]
    assert problems([*all_of_them, Played("tests/test_x.py", "test_it", (99,))], good) == [
        "tests/test_x.py::test_it: there is no fault 99",
        "tests/test_x.py::test_it: not run",
    ]
    assert problems(all_of_them, {"tests": {**good["tests"], all_of_them[0].id: "failure"}}) == [
        f"{all_of_them[0].id}: failure"
    ]
    number = min(REAL)
    standing_in = [
        Played("tests/logs/test_x.py", "test_it", one.faults) if number in one.faults else one for one in all_of_them
    ]
    said = {"tests": {**good["tests"], "tests/logs/test_x.py::test_it": "passed 1"}}
    assert problems(standing_in, said) == [f"fault {number} has no test with a real server"]
