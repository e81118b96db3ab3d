#!/usr/bin/env python3
"""Looks for words that the glossary replaces, and fails if it finds any: docs/glossary.md has the words to use."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: What is not written, and what is written instead.
TERMS: Mapping[str, str] = {
    r"\bwritten anew\b": "reimplemented",
    r"\bhanded back\b": "released",
    r"\bgets? word\b": "is notified",
    r"\bfull score\b": "unmasked score",
    r"\bSees to it that\b": "Ensures that",
    r"\bbit for bit\b": "exactly",
    r"\b1-minimal\b": "one-minimal",
    r"\bhears? (?:that|of|with)\b": "is notified, gets",
    r"\bis wanted\b": "is needed, is a goal",
    r"\blets go of\b": "deletes, releases",
    r"\b(?:dead|buried) jobs?\b": "dead-lettered jobs",
    r"\bRude clients\b": "Hostile clients",
    r"pip install '?sagittal(?!\[)": "pip install . in a checkout: nothing is published",
}

#: Files that may use these words: history, and what defines them.
EXEMPT = ("CHANGELOG.md", "docs/changelog.md", "docs/decisions/", "scripts/terms.py", "tests/", "third_party/")

#: Lines that quote a word because a name or a reason code has it.
QUOTED = re.compile(r"JOB_BURIED|JobBuried")

#: Where words are looked for.
SUFFIXES = (".md", ".proto", ".toml", ".yaml", ".yml", ".py")


def files() -> Iterator[Path]:
    """Yields the files that are looked at: those that git knows."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    for name in listed.stdout.splitlines():
        if name.endswith(SUFFIXES) and not name.startswith(EXEMPT) and not name.endswith(("_pb2.py", "_pb2.pyi")):
            yield ROOT / name


def findings() -> Iterator[str]:
    """Yields a line for each word that is found."""
    for path in files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if QUOTED.search(line):
                continue
            for term, instead in TERMS.items():
                for found in re.findall(term, line, re.IGNORECASE):
                    yield f"{path.relative_to(ROOT)}:{number}: {found!r}: write {instead}"


def main() -> int:
    """Prints what is found; 1 if there is anything."""
    found = list(findings())
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
