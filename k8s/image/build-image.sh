#!/bin/bash
# Builds the image of all pods from this checkout, including uncommitted changes.
#   k8s/image/build-image.sh --lock [options of the builder]    first: writes k8s/image/requirements.txt, with hashes, for these options
#   k8s/image/build-image.sh NAME [options of the builder]      for example --build-arg BASE=python:3.12-slim@sha256:...
#   k8s/image/build-image.sh NAME --push                        also pushes it to NAME's registry
# Uses docker, podman or buildah, whichever is installed (in this order), or the one named by BUILDER.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \?//p' "$0"; exit 2; }
name=$1; shift
push=; options=()
for word in "$@"; do if [ "$word" = --push ]; then push=yes; else options+=("$word"); fi; done
cd "$(dirname "$0")/../.."

builder=${BUILDER:-}
for candidate in docker podman buildah; do
  [ -n "$builder" ] || ! command -v "$candidate" > /dev/null || builder=$candidate
done
[ -n "$builder" ] || { echo "none of docker, podman and buildah is installed: install one of them" >&2; exit 1; }

if [ "$name" = --lock ]; then
  exec "$builder" build --file k8s/image/Dockerfile --target lock --output type=local,dest=k8s/image "${options[@]}" .
fi
[ -f k8s/image/requirements.txt ] || { echo "k8s/image/requirements.txt is missing: write it with $0 --lock and the same options" >&2; exit 2; }
"$builder" build --file k8s/image/Dockerfile --tag "$name" "${options[@]}" .
[ -z "$push" ] || "$builder" push "$name"
