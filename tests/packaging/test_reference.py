"""The references are complete: every reason of an error and of a warning is explained, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from packaging_support import ROOT, load_script

from sagittal.explain import EXPLAINERS

ROW = re.compile(r"^\| `([A-Z_]+)` \|", re.MULTILINE)


def rows(page: str) -> list[str]:
    return ROW.findall((ROOT / "docs" / page).read_text())


def trees() -> Iterator[ast.Module]:
    for part in ("service", "workers", "clients"):
        for path in (ROOT / part).rglob("*.py"):
            yield ast.parse(path.read_text())


def warnings_of(tree: ast.Module) -> Iterator[str]:
    """Yields the reasons of the calls `Warning("REASON", ...)` and `Warning(reason="REASON", ...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Warning"):
            given = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "reason")]
            for each in given:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value


def reasons_of(tree: ast.Module) -> Iterator[str]:
    """Yields the reasons that classes of errors declare, and those given as `SomeError(..., reason="REASON")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith("Warning"):
            given = [ast.unparse(each.value) for each in node.keywords if each.arg == "reason"]
            yield from (text.strip("'") for text in given if re.fullmatch(r"'[A-Z_]+'", text))
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                value = each.value if isinstance(each, ast.Assign | ast.AnnAssign) else None
                names = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
                is_reason = any(isinstance(name, ast.Name) and name.id == "reason" for name in names)
                if is_reason and isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                    yield value.value


def test_every_warning_is_explained_once() -> None:
    explained = rows("reading-an-explanation.md")
    assert len(explained) == len(set(explained))
    assert set(explained) == {reason for tree in trees() for reason in warnings_of(tree)}


def test_every_reason_of_an_error_is_explained_once() -> None:
    explained = rows("errors.md")
    assert len(explained) == len(set(explained))
    assert set(explained) == {reason for tree in trees() for reason in reasons_of(tree)}


def test_pages_name_files_that_exist() -> None:
    for page in ("README.md", "docs/index.md"):
        text = (ROOT / page).read_text()
        for path in re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text):
            assert (ROOT / page).parent.joinpath(path).exists(), path
        assert Path(ROOT / page).exists()


def test_pages_and_code_keep_to_the_glossary() -> None:
    assert list(load_script("terms").findings()) == []


def test_every_method_has_its_measured_cost() -> None:
    _, _, table = (ROOT / "docs/methods.md").read_text().partition("<!-- begin costs -->")
    row = re.compile(r"^\| `([^`]+)` \|(?: [\d,]+ \|){3} [\d.]+ \|$", re.MULTILINE)
    costs = row.findall(table.partition("<!-- end costs -->")[0])
    assert costs == list(EXPLAINERS)
