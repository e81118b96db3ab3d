#!/usr/bin/env bash
# Builds the images and tests them: each runs read-only, without capabilities and as an unprivileged user, and explains an image.
#
#   scripts/image.sh [cuda|cpu|none]   the worker's build of torch; default cuda; none builds only the service
#
# Environment: ENGINE (podman or docker), TAG, PYTHON_IMAGE, EXTRAS=yes (timm, ONNX and stores in the worker), BUILD_OPTIONS
# such as `--isolation chroot --network host`, and STRICT=yes (skipped steps fail).
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

#: Bytes by which the service's image may exceed its base image.
room=$((250 * 1000 * 1000))
service=sagittal-service:$tag worker=sagittal-worker:$tag-$compute
build=("$engine" build --build-arg "PYTHON_IMAGE=$base" --build-arg "VERSION=$tag")
build+=(--build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)")
# shellcheck disable=SC2206  # options are words
build+=(${BUILD_OPTIONS:-})

size() { "$engine" image inspect --format '{{.Size}}' "$1"; }

# Vulnerabilities without a fix are ignored, because nothing can be done about them here.
look_for_vulnerabilities() {
  if command -v trivy > /dev/null; then "$engine" save --output "$scratch/image.tar" "$1"; fi
  scripts/trivy.sh image --ignore-unfixed --input "$scratch/image.tar"
  rm -f "$scratch/image.tar"
}

"${build[@]}" --target service --tag "$service" .
grown=$(($(size "$service") - $(size "$base")))
echo "image.sh: $service is $((grown / 1000000)) MB larger than its base"
if [ "$grown" -gt "$room" ]; then
  echo "image.sh: $service may be at most $((room / 1000000)) MB larger than its base" >&2
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
