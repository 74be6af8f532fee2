#!/usr/bin/env bash
# Write requirements-common.txt and requirements-cuda.txt anew: requirements.txt's versions, what torch's CUDA build adds to
# them, and every file's hash. Downloads torch (half a gigabyte), as its wheel alone tells what it needs.
# requirements-cpu.txt has a single version of its own, torch's, whose hashes are on https://download.pytorch.org/whl/cpu/torch/.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pip==26.3 pip-tools==7.6.2
# No folder of wheels: it may hold torch's CPU build, which pip would prefer.
PIP_FIND_LINKS='' "$folder/venv/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
  --no-annotate --no-emit-index-url --no-emit-find-links --output-file "$folder/lock" requirements.txt
python3 tools/split_lock.py "$folder/lock"
