#!/usr/bin/env bash
# Scans the chart, as each ci file renders it, and the Dockerfile: with checkov (.checkov.yaml says what is excepted), hadolint,
# and trivy where it is installed.
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
"$(dirname "$python")/hadolint" "$scratch/Dockerfile"
if command -v trivy > /dev/null; then
  trivy config --quiet --severity HIGH,CRITICAL --exit-code 1 "$scratch"
else
  echo "scan: TRIVY SKIPPED: it is not installed; https://trivy.dev says how" >&2
fi
echo "scan: nothing found in $(find "$scratch" -type f | wc -l) files"
