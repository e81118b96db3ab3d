"""Reports of benchmarks: tables, and documents in which each benchmark owns the part between its markers."""

import re
from collections.abc import Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def write_section(path: Path, section: str, text: str) -> None:
    """Replaces the text between the markers of a section; appends the section if there is none."""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    block = f"{begin}\n\n{text.strip()}\n\n{end}"
    before = path.read_text() if path.exists() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    after = pattern.sub(lambda _: block, before) if begin in before else f"{before.rstrip()}\n\n{block}\n".lstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(after)


def kept_sections(path: Path) -> str:
    """Returns the sections of a document with their markers, for a benchmark that writes the rest of it again."""
    text = path.read_text() if path.exists() else ""
    blocks = re.finditer(r"<!-- begin (.+?) -->.*?<!-- end \1 -->", text, re.DOTALL)
    return "".join(f"\n{block.group()}\n" for block in blocks)
