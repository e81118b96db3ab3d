"""The documents name the tests that break each promise: they exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_a_document_names_exists() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name: path.name for path in documents for name in re.findall(r"`(test_\w+)`", path.read_text())}
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    assert {"guarantees.md", "security.md"} <= set(named.values())
    assert {name: document for name, document in named.items() if name not in defined} == {}


def test_each_of_the_promises_names_a_test_that_breaks_it() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [number for number, tests in rows if "`test_" not in tests] == []


def test_each_row_about_hostile_clients_and_about_tenants_names_a_test() -> None:
    for document, header in (("security.md", "| the client |"), ("guarantees.md", "| resource |")):
        text = (ROOT / "docs" / document).read_text()
        rows = text[text.index(header) :].partition("\n\n")[0].splitlines()[2:]
        assert rows
        assert [row for row in rows if "`test_" not in row.rpartition(" | ")[2]] == []


def threat_rows() -> list[list[str]]:
    """Returns the cells of each row of the table of threats."""
    text = (ROOT / "SECURITY.md").read_text()
    table = text[text.index("| threat | what holds |") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_every_sentence_of_the_threat_table_names_tests_that_exist() -> None:
    rows = threat_rows()
    assert rows
    for row in rows:
        holds, tests = row[1], row[2]
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        assert named, f"no test is named: {holds}"
        assert holds.endswith("."), f"not one sentence: {holds}"
        assert holds.count(". ") == 0, f"more than one sentence: {holds}"
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"
