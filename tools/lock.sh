#!/usr/bin/env bash
# Write requirements-cuda.txt anew: requirements.txt's versions, what torch's CUDA build adds to them, and every file's hash.
# Downloads torch (half a gigabyte), as its wheel alone tells what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pip==26.3 pip-tools==7.6.2
{ sed '/==/,$d' requirements-cuda.txt; } >"$folder/head"
# No folder of wheels: it may hold torch's CPU build, which pip would prefer.
PIP_FIND_LINKS='' "$folder/venv/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
  --no-annotate --no-emit-index-url --no-emit-find-links --output-file "$folder/lock" requirements.txt
grep -v '^# The following packages are considered' "$folder/lock" | cat "$folder/head" - >requirements-cuda.txt
