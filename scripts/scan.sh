#!/usr/bin/env bash
# Scans the chart, rendered with each ci file, and the Dockerfile: with checkov (exceptions are in .checkov.yaml), hadolint, and
# trivy if it is installed. Skipped scans are reported, and fail with STRICT=yes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${BIN:-.venv/bin}/python
checkov=$1

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp Dockerfile "$scratch/Dockerfile"
for values in helm/sagittal/ci/*-values.yaml; do
  rendered=$scratch/$(basename "$values")
  "$python" scripts/helm.py template release helm/sagittal --namespace sagittal --values "$values" > "$rendered"
  if [ ! -s "$rendered" ]; then
    rm "$rendered"
    echo "scan: CHART SKIPPED: it cannot be rendered without helm" >&2
    if [ "${STRICT:-}" = yes ]; then exit 1; fi
    break
  fi
done
"$checkov" --config-file .checkov.yaml --skip-download --directory "$scratch"
"$(dirname "$python")/hadolint" "$scratch/Dockerfile"
scripts/trivy.sh config "$scratch"
echo "scan: nothing found in $(find "$scratch" -type f | wc -l) files"
