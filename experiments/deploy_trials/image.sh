#!/bin/sh
# The Containerfile built without Docker and without a registry, then compose.yaml: image.sh BASE.tar. As root, from the repository's root.
# BASE.tar is a Debian bookworm with python3 and python3-venv (tree.sh's tree without /opt/fedsec will do). Needs buildah, podman, runc, catatonit,
# netavark, aardvark-dns, and podman-compose in the PATH. Run it in a network of its own: unshare -m -n sh -c 'ip link set lo up; exec sh image.sh …'
# for all but the build, whose pip needs the network. Every step's disk: the image is 1.8 GB, and buildah's vfs driver keeps a copy a layer.
set -eu
export STORAGE_DRIVER=overlay
container=$(buildah from scratch)
root=$(buildah mount "$container")
tar -C "$root" -xf "$1"
ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
buildah umount "$container"
buildah config --env PATH=/usr/local/bin:/usr/bin:/bin "$container"
buildah commit -q --rm "$container" docker.io/library/python:3.11-slim-bookworm

buildah bud --format docker --isolation chroot --pull-never -f fedsec/edge/deploy/Containerfile -t fedsec:local .

dc() { podman-compose -f fedsec/edge/deploy/compose.yaml -f site.yaml "$@"; } # site.yaml: PYTHONPATH and the folder of records.py, read-only
dc run --rm ca ca init hearts.example --address ca:9444
dc up -d ca && sleep 5
dc exec -T ca fedsec ca token --server main > token
dc run --rm server server init --federation hearts.example
dc run --rm -T server server enroll --token-file - < token
dc up -d server
dc exec -T ca fedsec ca token --node client-7 --site basel > token
dc run --rm -T client client enroll - --server server:9443 --approver ada --source records:load < token
dc up -d client && sleep 30
dc exec -T client fedsec doctor
for part in ca server client; do podman healthcheck run "fedsec_${part}_1" && echo "$part healthy"; done
podman stop fedsec_server_1 && sleep 8
podman healthcheck run fedsec_client_1 || echo "client unhealthy without its server, as it should be"
dc down
