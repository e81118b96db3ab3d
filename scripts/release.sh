#!/usr/bin/env bash
# Writes what a release consists of, apart from the images, to FOLDER (dist): wheel, sdist, chart, notes and checksums.
# The wheel and the sdist are built twice, from two places, and must be equal. Needs no network.
#
#   scripts/release.sh VERSION [FOLDER]   VERSION as in pyproject.toml; `unreleased` takes that one, with the notes of Unreleased
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?give the version} folder=${2:-dist}
python=${BIN:-.venv/bin}/python
of() { sed -n "s/^$1//p" "$2" | tr -d '"' | head -n 1; }
here=$(of 'version = ' pyproject.toml)
section=$version
if [ "$version" = unreleased ]; then version=$here section=Unreleased; fi
for said in "pyproject.toml:$here" "Chart.yaml, version:$(of 'version: ' helm/sagittal/Chart.yaml)" \
  "Chart.yaml, appVersion:$(of 'appVersion: ' helm/sagittal/Chart.yaml)"; do
  if [ "${said##*:}" != "$version" ]; then
    echo "release.sh: ${said%:*} has ${said##*:}, not $version; set it to the version of the release" >&2
    exit 1
  fi
done

mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

awk -v heading="## [$section]" 'index($0, "## [") == 1 { inside = index($0, heading) == 1; next } inside' CHANGELOG.md \
  > "$folder/notes.md"
if ! grep -q '^- ' "$folder/notes.md"; then
  echo "release.sh: CHANGELOG.md has no changes under [$section]; rename [Unreleased] to it, with the date" >&2
  exit 1
fi
printf '\n%s\n' 'Before an upgrade, read docs/upgrading.md.' >> "$folder/notes.md"

# The time in archives: that of the commit, wherever and whenever they are built.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 1580601600)}
export SOURCE_DATE_EPOCH
# build FOLDER: builds from a copy, so that neither the place nor the times of files matter.
build() {
  mkdir -p "$1/source"
  tar --create --exclude=__pycache__ --exclude=node_modules protos third_party service workers clients .gitignore pyproject.toml README.md LICENSE CHANGELOG.md \
    | tar --extract --touch --directory "$1/source"
  "$python" -m build --no-isolation --outdir "$1/built" "$1/source" > "$1/log" 2>&1 || { cat "$1/log" >&2; exit 1; }
}
build "$scratch/first"
(umask 077 && build "$scratch/second/elsewhere")
for file in "$scratch"/first/built/*; do
  if ! cmp "$file" "$scratch/second/elsewhere/built/$(basename "$file")"; then
    echo "release.sh: two builds of $(basename "$file") differ; find out what depends on time or place" >&2
    exit 1
  fi
  cp "$file" "$folder"
done
"$python" scripts/helm.py package helm/sagittal --destination "$folder" > "$scratch/log" || { cat "$scratch/log" >&2; exit 1; }
(cd "$folder" && sha256sum ./*.whl ./*.tar.gz ./*.tgz notes.md > SHA256SUMS)
