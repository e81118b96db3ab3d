#!/usr/bin/env bash
# Writes dist/sbom-*.cdx.json: the packages of each image, with hashes, in CycloneDX.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3.11}" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8'
mkdir -p dist
for name in service worker-cpu worker-cuda worker-extras; do
  files=("deploy/requirements-$name.txt")
  if [ "$name" = worker-cpu ]; then files+=(deploy/torch.txt); fi
  cat "${files[@]}" | PYTHONWARNINGS=ignore "$tools/bin/cyclonedx-py" requirements --output-reproducible \
    --pyproject pyproject.toml --mc-type application --output-file "dist/sbom-$name.cdx.json" -
done
