"""Mutants say what is there: the text that they take away, a single test each, and the table of faults."""

import pytest

from libs.local.supervisor import ROOT
from tests.mutants.__main__ import MUTANTS, Mutant

FAULTS = 13


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_takes_away_what_is_there_once_and_names_its_tests(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.text) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_each_fault_of_the_table_has_its_mutant_and_test() -> None:
    lines = (ROOT / "tests/mutants/README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]
    assert sorted({int(row[0]) for row in rows}) == list(range(1, FAULTS + 1))
    known = {mutant.name.removeprefix("as in a bridge: "): mutant for mutant in MUTANTS}
    for _, _, name, test in rows:
        assert any(one.endswith(f"/{test}") for one in known[name].tests), name
    told = {name for _, _, name, _ in rows}
    assert told >= {name for name, mutant in known.items() if mutant.name.startswith("as in a bridge: ")}
