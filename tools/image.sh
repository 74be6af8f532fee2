#!/usr/bin/env bash
# Build the image, import everything that it consists of inside it, and print what takes its space.
#   tools/image.sh cuda|cpu [TAG]      TAG is sd-lora-task, or sd-lora-task:cpu
# From the environment: TRACKERS=1 adds what --trackers needs, TAGGER=1 what taggers do. Where the defaults do not fit: BASE_IMAGE; WHEELS, a folder
# that has torch's CPU build; PIP_CONF and CA_BUNDLE, files for pip to reach a mirror by. Nothing of the last three stays.
set -euo pipefail
cd "$(dirname "$0")/.."
cpu_base=debian:bookworm-20261005-slim@sha256:7c7b2c966bc9ee8cedfeef67e0e279108992c77681fa595db4a9d65c06ccc587
case "${1:-}" in
  cuda) tag=${2:-sd-lora-task} base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)} ;;
  cpu) tag=${2:-sd-lora-task:cpu} base=${BASE_IMAGE:-$cpu_base} ;;
  *) sed -n 2,5p "$0" >&2; exit 2 ;;
esac
flags=(--network=host --build-arg "REQUIREMENTS=requirements-$1.txt")
flags+=(--build-arg "BASE_IMAGE=$base")
case $base in
  *@sha256:*) flags+=(--build-arg "BASE_DIGEST=${base#*@}") ;;
esac
[ -n "${TRACKERS:-}" ] && flags+=(--build-arg "TRACKERS=$TRACKERS")
[ -n "${TAGGER:-}" ] && flags+=(--build-arg "TAGGER=$TAGGER")
[ -d "${WHEELS:-}" ] && flags+=(--build-context "wheels=$WHEELS")
[ -f "${PIP_CONF:-}" ] && flags+=(--secret "id=pip_conf,src=$PIP_CONF")
[ -f "${CA_BUNDLE:-}" ] && flags+=(--secret "id=ca_bundle,src=$CA_BUNDLE")
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' engine/__init__.py)
flags+=(--build-arg "VERSION=$version")
if revision=$(git rev-parse HEAD 2>/dev/null); then
  # The image's creation time is the commit's; docs/image.md has the flags that set its files' times too.
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  flags+=(--build-arg "REVISION=$revision")
  # Where the code is, if it has a public address; never the credentials in it.
  source=$({ git remote get-url origin 2>/dev/null || true; } | sed -nE 's#^(https://)([^/@]*@)?(.*)$#\1\3#p')
  flags+=(--build-arg "SOURCE=${SOURCE:-$source}")
fi
if ! docker build "${flags[@]}" -t "$tag" .; then
  echo "not built. Where no registry can be reached, name a base that is on this machine (BASE_IMAGE=…, any Debian or Ubuntu with" >&2
  echo "Python 3.11 or newer), or make one: tools/docker-engine.sh base local-base:bookworm. The head of $0 has the rest." >&2
  exit 1
fi
docker run --rm -i --network=none "$tag" python - <tools/image_report.py
docker image inspect --format "$tag: {{.Size}} bytes in {{len .RootFS.Layers}} layers" "$tag"
