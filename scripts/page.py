"""Builds the page from clients/page into service/sagittal/page/built, or checks that the committed build is current.

Node comes with the development environment, and npm with it; the packages come from the npm registry by the lock file.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from npm import environment, install

ROOT = Path(__file__).resolve().parents[1]
SOURCE, BUILT = ROOT / "clients" / "page", ROOT / "service" / "sagittal" / "page" / "built"


def main() -> int:
    """Builds or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed build is not current")
    parser.add_argument("--strict", action="store_true", help="fail if the npm registry cannot be reached")
    options = parser.parse_args()
    if not install(SOURCE):
        sys.stderr.write("page: SKIPPED: the npm registry cannot be reached, so the page was not built\n")
        return 1 if options.strict or not options.check else 0
    _run(str(_program("buf")), "generate", "../../protos", "--template", "buf.gen.yaml")
    _run(str(_program("node")), "node_modules/typescript/bin/tsc", "--noEmit")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) if options.check else BUILT
        _run(str(_program("node")), "build.mjs", str(built))
        if not options.check:
            return 0
        names = sorted(path.name for path in built.iterdir())
        _, different, missing = filecmp.cmpfiles(built, BUILT, names, shallow=False)
        if different or missing:
            sys.stderr.write(f"page: {', '.join([*different, *missing])} not current: run 'make page'\n")
            return 1
    return 0


def _program(name: str) -> Path:
    """Returns a program from this script's environment, otherwise from the PATH."""
    found = shutil.which(name, path=environment()["PATH"])
    if found is None:
        sys.exit(f"page: {name} is not installed: run 'make install'")
    return Path(found)


def _run(*command: str) -> None:
    subprocess.run(command, cwd=SOURCE, env=environment(), check=True)


if __name__ == "__main__":
    sys.exit(main())
