#!/usr/bin/env bash
# Print a Job for each task file, named after the file, with a claim and a task of its own: what job.yaml has for its one.
#   deploy/many.sh tasks/*.json | kubectl apply -f -
# Apply cache.yaml first. Values that all of them share (image, sizes, tolerations) are changed in job.yaml.
set -euo pipefail
template=$(dirname "$0")/job.yaml
[ $# -gt 0 ] || { sed -n 2,4p "$0" >&2; exit 2; }
# All of them are looked at first: kubectl would apply what was printed before a failure.
for task; do
  name=lora-$(basename "$task" .json)
  if [[ ! $name =~ ^[a-z0-9-]{1,50}[a-z0-9]$ ]]; then
    echo "$task: call it by small letters, digits and hyphens, 45 at most: the Job is named after it" >&2
    exit 2
  fi
  [ -f "$task" ] && [ -r "$task" ] || { echo "$task: no such file, or none that can be read" >&2; exit 2; }
done
for task; do
  name=lora-$(basename "$task" .json)
  # Everything of job.yaml but its task, which this file is instead: indented, it is the text of a YAML block. The 2 says how
  # far, for a file that begins with blanks.
  echo "---"
  sed -n '/^apiVersion/,/task.json: |/p;/task.json: |/q' "$template" | sed "s/lora-cat/$name/g; s/task.json: |\$/&2/"
  sed 's/^/    /' "$task"
  echo
  sed -n '/^---/,$p' "$template" | sed "s/lora-cat/$name/g"
done
