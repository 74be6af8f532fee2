#!/usr/bin/env bash
# Collect wheels for `make gpu` on a machine without network: gpu_wheels.sh PYTHON_VERSION FOLDER. pytest, and all of requirements.txt but
# torch and what comes with it or with nearly every Python for machine learning, whose version does not matter there.
set -euo pipefail
cd "$(dirname "$0")/.."
there='torch|numpy|pandas|pyarrow|pillow|sympy|mpmath|networkx|setuptools|protobuf|psutil|PyYAML|Jinja2|MarkupSafe|requests|urllib3'
there+='|certifi|idna|charset-normalizer|packaging|python-dateutil|tzdata|xxhash|rich|Pygments|markdown-it-py|mdurl|anyio|h11|hf-xet'
platforms=()
for version in manylinux_2_{34,31,28,27,24,17,5}_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$version")
done
mkdir -p "$2"
rm -f "$2"/*.whl
there+='|av'  # not there, but only clips need it, of which nothing is measured: 34 MB
grep -vE "^(#|($there)==)" requirements.txt >"$2/requirements.txt"
grep -E '^(pytest|pytest-timeout|pytest-xdist|execnet|iniconfig|pluggy)==' requirements-dev.txt >>"$2/requirements.txt"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "$1" "${platforms[@]}" --dest "$2" --requirement "$2/requirements.txt"
du -sh "$2"
