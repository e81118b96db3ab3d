#!/usr/bin/env bash
# Builds the images and tries them: read-only, without capabilities, as a user without rights, a picture is explained.
#
#   scripts/image.sh [cuda|cpu]        the worker's build of torch; cuda if not said
#
# ENGINE (podman or docker), TAG, and BUILD_OPTIONS, such as `--isolation chroot --network host`, may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

compute=${1:-cuda}
tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
engine=${ENGINE:-$(command -v podman || command -v docker || true)}
python=${BIN:-.venv/bin}/python
if [ -z "$engine" ]; then
  echo "image.sh: SKIPPED: neither podman nor docker is installed" >&2
  exit 0
fi

service=sagittal-service:$tag worker=sagittal-worker:$tag-$compute
build=("$engine" build --build-arg "VERSION=$tag" --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)")
# shellcheck disable=SC2206  # options are words
build+=(${BUILD_OPTIONS:-})
"${build[@]}" --target service --tag "$service" .
"${build[@]}" --target worker --build-arg "COMPUTE=$compute" --tag "$worker" .
exec "$python" scripts/try_images.py --engine "$engine" --service "$service" --worker "$worker"
