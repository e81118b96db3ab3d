#!/usr/bin/env bash
# Ensures that the Dockerfile's base image exists: pulls it, or builds it from Debian's packages.
#
#   scripts/base_image.sh ENGINE IMAGE
set -euo pipefail
engine=$1 image=$2

if "$engine" image inspect "$image" > /dev/null 2>&1 || timeout 120 "$engine" pull --quiet "$image" 2> /dev/null; then
  exit 0
fi
if ! command -v mmdebstrap > /dev/null; then
  echo "base_image.sh: $image can be neither pulled nor built; to build it: apt-get install mmdebstrap" >&2
  exit 1
fi
echo "base_image.sh: $image cannot be pulled; building it from Debian's packages" >&2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$scratch/base.tar"
"$engine" import --quiet "$scratch/base.tar" "$image" > /dev/null
