"""`python -m fuzzing TARGET... --seconds 1200 [--keep DIRECTORY]`: fuzzes the targets, one after the other."""

import argparse
import sys
from pathlib import Path

from fuzzing.campaign import COVERED, Outcome, fuzz_covered

#: Everything that can be fuzzed.
TARGETS = ("rpcs", "records", *COVERED)


def main() -> int:
    """Prints what each campaign did; 1 where one found something."""
    parser = argparse.ArgumentParser(prog="fuzzing", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which to fuzz; all if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (60)")
    parser.add_argument("--keep", type=Path, default=None, help="directory for inputs that reached something new")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    found = False
    for target in given.targets or TARGETS:
        outcome = _fuzz(target, given.seconds, given.keep)
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        found = found or bool(outcome.fault)
    return int(found)


def _fuzz(target: str, seconds: int, keep: Path | None) -> Outcome:
    if target in COVERED:
        return fuzz_covered(target, seconds, keep)
    if target == "records":
        from fuzzing.records import fuzz_records

        return fuzz_records(seconds)
    from fuzzing.rpcs import fuzz_rpcs

    return fuzz_rpcs(seconds)


if __name__ == "__main__":
    sys.exit(main())
