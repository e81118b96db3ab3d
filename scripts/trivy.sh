#!/usr/bin/env bash
# Runs trivy and fails on findings of high severity. Without trivy it prints a notice, and fails only with STRICT=yes.
set -euo pipefail
if command -v trivy > /dev/null; then
  exec trivy "$1" --quiet --severity HIGH,CRITICAL --exit-code 1 "${@:2}"
fi
echo "trivy $1: TRIVY SKIPPED: it is not installed; see https://trivy.dev" >&2
[ "${STRICT:-}" != yes ]
