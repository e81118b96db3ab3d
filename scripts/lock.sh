#!/usr/bin/env bash
# Writes deploy/requirements-*.txt: all packages of the images, with versions from constraints.txt and hashes.
# Run it with `make lock` after a change to pyproject.toml or constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3.11}" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# resolve FILE PLATFORM ARGUMENTS...: writes the packages for a platform, on any machine.
resolve() {
  local file=$1 platform=$2
  shift 2
  "$tools/bin/uv" pip compile --quiet --system-certs --no-annotate --generate-hashes --python-version 3.11 \
    --python-platform "$platform" --default-index "${LOCK_INDEX:-https://pypi.org/simple}" \
    --custom-compile-command "make lock" --constraints constraints.txt --output-file "$file" "$@"
  sed -i '/^--default-index\|^--index-url\|^--find-links\|^--extra-index-url/d' "$file"
}

# lock NAME ARGUMENTS...: writes one lock file. It has the hashes of all wheels, and must be the same for both platforms.
lock() {
  local file="deploy/requirements-$1.txt"
  shift
  resolve "$file" x86_64-manylinux_2_28 "$@"
  cp "$file" "$tools/arm64.txt"
  resolve "$tools/arm64.txt" aarch64-manylinux_2_28 "$@"
  if ! diff "$file" "$tools/arm64.txt"; then
    echo "lock.sh: $file differs between amd64 and arm64; give each platform a file of its own, and use both in the Dockerfile" >&2
    exit 1
  fi
}

lock build deploy/build.in
lock service --extra service --extra page --extra kserve --extra tracing pyproject.toml
# The worker's image also has the service and the explainer for KServe, which needs both.
worker=(--extra worker --extra service --extra kserve --extra tracing)
lock worker-cuda "${worker[@]}" pyproject.toml deploy/worker.in
grep -E '^torch(vision)?==' constraints.txt > deploy/torch.txt
# The CPU build of torch comes from PyTorch's own index and needs no NVIDIA libraries.
mapfile -t cuda < <(grep -oE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' deploy/requirements-worker-cuda.txt | tr -d '=')
lock worker-cpu "${worker[@]}" pyproject.toml deploy/worker.in "${cuda[@]/#/--no-emit-package=}"
# Packages that EXTRAS=yes adds: their versions agree with the other files, and none is listed twice.
mapfile -t held < <(grep -oE '^[a-z0-9._-]+==' deploy/requirements-worker-cuda.txt | tr -d '=')
lock worker-extras "${worker[@]}" --extra timm --extra onnx --extra stores pyproject.toml deploy/worker.in \
  --constraints deploy/requirements-worker-cuda.txt "${held[@]/#/--no-emit-package=}"
# What `make device` installs beside the packages of a worker on CUDA.
lock device "${worker[@]}" --extra service pyproject.toml deploy/worker.in deploy/device.in \
  --constraints deploy/requirements-worker-cuda.txt "${held[@]/#/--no-emit-package=}"
