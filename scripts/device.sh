#!/usr/bin/env bash
# Tests and measures on a card for MINUTES (7) at most, and writes each result to FOLDER as it comes. Run it again with the
# same folder to continue. It installs from the lock files into .venv-device; DEVICE_PYTHON names a Python that has
# everything already, for a machine without a package index. DEVICE=cpu tries everything out without a card.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${FOLDER:?FOLDER is not set: name the folder of the results, make device FOLDER=path}
seconds=$((${MINUTES:-7} * 60))
began=$(date +%s)
left() { echo $((seconds - ($(date +%s) - began))); }

locks=(deploy/requirements-build.txt deploy/requirements-worker-cuda.txt deploy/requirements-device.txt)
python=${DEVICE_PYTHON:-}
if [ -z "$python" ]; then
  venv=.venv-device
  python=$venv/bin/python
  # A stamp for these lock files: a second run installs nothing.
  stamp=$venv/.installed-$(cat "${locks[@]}" pyproject.toml | sha256sum | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    "${PYTHON:-python3.11}" -m venv "$venv"
    pip=(timeout "$(left)" "$python" -m pip --disable-pip-version-check install --quiet)
    "${pip[@]}" --require-hashes --only-binary :all: "${locks[@]/#/--requirement=}"
    "${pip[@]}" --no-deps --no-build-isolation --editable .
    touch "$stamp"
    echo "installed in $(($(date +%s) - began)) s"
  fi
fi

arguments=(--out "$folder" --device "${DEVICE:-cuda}" --seconds "$(left)")
if [ "${DEVICE:-cuda}" = cpu ]; then arguments+=(--small); fi
exec "$python" benchmarks/device/__main__.py "${arguments[@]}"
