#!/usr/bin/env bash
# Regenerates everything that is generated and fails if anything changes: an
# edited, a missing or a new file. Works in a tree with uncommitted work as well,
# for it compares with what was there before, not with a commit.
set -euo pipefail
cd "$(dirname "$0")/.."

generated=(api config/crd/bases docs/reference charts)
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT

for path in "${generated[@]}"; do
  mkdir -p "$before/$(dirname "$path")"
  if [ -e "$path" ]; then cp -a "$path" "$before/$path"; fi
done

make --no-print-directory generate

status=0
for path in "${generated[@]}"; do
  if ! diff -ruN "$before/$path" "$path"; then status=1; fi
done
if [ "$status" -ne 0 ]; then
  echo "verify: the files above were not up to date; they are now: look at them and commit them" >&2
  exit 1
fi
echo "verify: everything that is generated is up to date"
