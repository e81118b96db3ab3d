#!/bin/sh
# Generates the Python modules beside the .proto files; with --check it only reports whether they are current.
set -eu
cd "$(dirname "$0")/.."
check=no
if [ "$1" = --check ]; then check=yes; shift; fi
bin=$1
out=protos
if [ "$check" = yes ]; then out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; fi
PATH="$PWD/$bin:$bin:$PATH"
python -m grpc_tools.protoc -I protos -I third_party/googleapis \
  --python_out="$out" --mypy_out="quiet:$out" protos/sagittal/v1/*.proto protos/sagittal/inference/v2/*.proto
python -m grpc_tools.protoc -I protos -I third_party/googleapis \
  --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" protos/sagittal/v1/*_service.proto
if [ "$check" = yes ] && ! diff -r -x '*.proto' -x __pycache__ -x py.typed "$out/sagittal" protos/sagittal; then
  echo "The generated modules are not current: run 'make protos'." >&2
  exit 1
fi
