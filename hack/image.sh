#!/usr/bin/env bash
# Builds the image with ko and pushes it:
#
#   hack/image.sh REPOSITORY TAG [flags of hack/image]
#   hack/image.sh ghcr.io/mintmark-dev/mintmark v0.1.0 -platforms linux/amd64
#
# Prints the image by its digest. See hack/image for what is in it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ]; then
  echo "usage: hack/image.sh REPOSITORY TAG [-base IMAGE] [-platforms LIST] [-version VERSION]" >&2
  exit 2
fi
repository=$1 tag=$2
shift 2

root=$PWD
if [ ! -x bin/ko ]; then
  go build -C hack/tools/ko -o "$root/bin/ko" github.com/google/ko
fi
exec go run -C hack/image . -root "$root" -ko "$root/bin/ko" -repository "$repository" -tag "$tag" "$@"
