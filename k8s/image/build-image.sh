#!/bin/bash
# Builds the image of all pods from this checkout, including uncommitted changes.
#   k8s/image/build-image.sh NAME [options of the builder]      for example --build-arg BASE=python:3.12-slim
#   k8s/image/build-image.sh NAME --push                        also pushes it to NAME's registry
# Uses docker, podman or buildah, whichever is installed (in this order), or the one named by BUILDER.
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
[ -n "$builder" ] || { echo "none of docker, podman and buildah is installed: install one of them" >&2; exit 1; }

"$builder" build --file k8s/image/Dockerfile --tag "$name" "${options[@]}" .
[ -z "$push" ] || "$builder" push "$name"
