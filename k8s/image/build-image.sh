#!/bin/bash
# Builds the image of all pods from this checkout, uncommitted changes included.
#   k8s/image/build-image.sh NAME [options of the builder]      such as --build-arg BASE=python:3.12-slim
#   k8s/image/build-image.sh NAME --push                        and pushes it to NAME's registry
# Uses docker, podman or buildah, whichever is there first; BUILDER names another one of these.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# \?//p' "$0"; exit 2; }
name=$1; shift
push=; options=()
for word in "$@"; do if [ "$word" = --push ]; then push=yes; else options+=("$word"); fi; done
cd "$(dirname "$0")/../.."

builder=${BUILDER:-}
for candidate in docker podman buildah; do
  [ -n "$builder" ] || ! command -v "$candidate" > /dev/null || builder=$candidate
done
[ -n "$builder" ] || { echo "no docker, podman or buildah here: install one of them" >&2; exit 1; }

"$builder" build --file k8s/image/Dockerfile --tag "$name" "${options[@]}" .
[ -z "$push" ] || "$builder" push "$name"
