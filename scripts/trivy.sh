#!/usr/bin/env bash
# Runs trivy, which fails at findings of high severity. Where it is not installed that is said, and with STRICT=yes it fails, too.
set -euo pipefail
if command -v trivy > /dev/null; then
  exec trivy "$1" --quiet --severity HIGH,CRITICAL --exit-code 1 "${@:2}"
fi
echo "trivy $1: TRIVY SKIPPED: it is not installed; https://trivy.dev says how" >&2
[ "${STRICT:-}" != yes ]
