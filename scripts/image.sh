#!/usr/bin/env bash
# Builds the images and tries them: read-only, without capabilities, as a user without rights, a picture is explained.
#
#   scripts/image.sh [cuda|cpu|none]   the worker's build of torch; cuda if not said; none builds the service alone
#
# ENGINE (podman or docker), TAG, PYTHON_IMAGE, EXTRAS=yes (timm, ONNX and stores in the worker), BUILD_OPTIONS, such as
# `--isolation chroot --network host`, and STRICT=yes (what is skipped fails) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

compute=${1:-cuda}
tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
engine=${ENGINE:-$(command -v podman || command -v docker || true)}
python=${BIN:-.venv/bin}/python
base=${PYTHON_IMAGE:-$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)}
if [ -z "$engine" ]; then
  echo "image.sh: SKIPPED: neither podman nor docker is installed" >&2
  if [ "${STRICT:-}" = yes ]; then exit 1; fi
  exit 0
fi
scripts/base_image.sh "$engine" "$base"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

#: Bytes that the service's image may have beyond its base's.
room=$((250 * 1000 * 1000))
service=sagittal-service:$tag worker=sagittal-worker:$tag-$compute
build=("$engine" build --build-arg "PYTHON_IMAGE=$base" --build-arg "VERSION=$tag")
build+=(--build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)")
# shellcheck disable=SC2206  # options are words
build+=(${BUILD_OPTIONS:-})

size() { "$engine" image inspect --format '{{.Size}}' "$1"; }

# What has no fix yet is left out: nobody here can do anything about it.
look_for_vulnerabilities() {
  if command -v trivy > /dev/null; then "$engine" save --output "$scratch/image.tar" "$1"; fi
  scripts/trivy.sh image --ignore-unfixed --input "$scratch/image.tar"
  rm -f "$scratch/image.tar"
}

"${build[@]}" --target service --tag "$service" .
grown=$(($(size "$service") - $(size "$base")))
echo "image.sh: $service has $((grown / 1000000)) MB more than its base"
if [ "$grown" -gt "$room" ]; then
  echo "image.sh: $service may have at most $((room / 1000000)) MB more than its base" >&2
  exit 1
fi
look_for_vulnerabilities "$service"
images=(--service "$service")
if [ "$compute" != none ]; then
  "${build[@]}" --target worker --build-arg "COMPUTE=$compute" --build-arg "EXTRAS=${EXTRAS:-no}" --tag "$worker" .
  look_for_vulnerabilities "$worker"
  images+=(--worker "$worker")
fi
"$python" scripts/try_images.py --engine "$engine" "${images[@]}"
