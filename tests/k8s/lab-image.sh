#!/bin/bash
# Builds k8s/image/Dockerfile for real where there is no container engine and no registry:
#   tests/k8s/lab-image.sh FILE.tar NAME
# The base is made here: Debian by debootstrap (15 s), and this machine's own Python, so that packages which lie on this
# machine's disk (PIP_FIND_LINKS) fit. Needs root; apt-get install buildah debootstrap uidmap.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,6s/^# \?//p' "$0"; exit 2; }
for command in buildah debootstrap; do
  command -v $command > /dev/null || { echo "$command is missing: apt-get install buildah debootstrap uidmap" >&2; exit 3; }
done
file=$(realpath -m "$1"); name=$2
cd "$(dirname "$0")/../.."
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}"); trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs BUILDER=buildah
store=(--root "$work/store" --runroot "$work/run")
printf '#!/bin/bash\nexec buildah %s "$@"\n' "${store[*]}" > "$work/buildah"; chmod +x "$work/buildah"

debootstrap --variant=minbase --include=ca-certificates,wget trixie "$work/rootfs" > "$work/debootstrap.log"
python=$(python3 -c 'import sys; print(sys.base_prefix)')
tar -C "$python" -c --exclude=site-packages --exclude=test --exclude=__pycache__ --exclude='*.a' bin lib | tar -C "$work/rootfs/usr/local" -x
chroot "$work/rootfs" ldconfig
chroot "$work/rootfs" python3 -c 'import ssl, venv'
base=$("$work/buildah" from scratch)
"$work/buildah" add -q "$base" "$work/rootfs" / > /dev/null
"$work/buildah" commit -q "$base" local.test/base:1 > /dev/null
rm -rf "$work/rootfs"

# pip's settings of this machine and of its user: how it finds its registry; mounted while the image is built, not copied;
# the user's go to where root's are in the image, who builds it
mounts=()
for place in /etc/ssl/certs /etc/pip.conf /etc/xdg/pip ${PIP_FIND_LINKS:-}; do [ ! -e "$place" ] || mounts+=(--volume "$place:$place:ro"); done
own=$(python3 -m pip config debug | sed -n '/^user:/,$ s/^  \(.*\), exists: True$/\1/p' | tail -n 1)
[ -z "$own" ] || mounts+=(--volume "$(dirname "$own"):/root/.config/pip:ro")
options=(--build-arg BASE=local.test/base:1 --pull=never --network=host --ulimit "nofile=$(ulimit -Hn)" --ulimit "nproc=$(ulimit -Hu)" "${mounts[@]}")
export BUILDER="$work/buildah"
k8s/image/build-image.sh --lock "${options[@]}"
k8s/image/build-image.sh "$name" "${options[@]}"
"$work/buildah" push -q "$name" "docker-archive:$file:$name"
