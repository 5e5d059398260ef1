#!/usr/bin/env bash
# Makes an image of the newest Bento: deploy/containerize.sh <image> <cpu, cuda, or where torch's wheels are found>; `make containerize` calls it.
# With Docker where its engine answers, else with buildah, which needs no engine: its steps run in a chroot and on the host's network.
# BACKEND=podman (or another one of `bentoml containerize`) decides otherwise; CONTAINERIZE_ARGS are further options of it.
set -euo pipefail
image=$1
case $2 in
  cpu) wheels=https://download.pytorch.org/whl/cpu/torch/ ;;
  cuda) wheels= ;; # PyPI's own wheels bring CUDA
  *) wheels=$2 ;;
esac
if [ -n "${BACKEND:-}" ]; then
  command -v "${BACKEND/buildx/docker}" >/dev/null || { echo "error: BACKEND=$BACKEND is not installed here" >&2; exit 1; }
elif docker info >/dev/null 2>&1; then
  BACKEND=docker
elif command -v buildah >/dev/null; then
  BACKEND=buildah
  [ "$(id -u)" -eq 0 ] || echo "no root here: buildah needs the user namespaces of /etc/subuid then" >&2
else
  echo "error: no Docker engine answers, and buildah is not installed: start Docker, or (Debian) apt-get install buildah" >&2
  exit 1
fi
options=(--opt "build-arg=UV_FIND_LINKS=$wheels")
[ "$BACKEND" = buildah ] && options+=(--opt isolation=chroot --opt network=host)
read -ra more <<<"${CONTAINERIZE_ARGS:-}"
"${BENTOML:-bentoml}" containerize reranker:latest --backend "$BACKEND" "${options[@]}" ${more[@]+"${more[@]}"} --image-tag "$image"
case $BACKEND in
  docker | buildx) size=$(docker images --format '{{.Size}}' "$image") ;;
  buildah | podman) size=$("$BACKEND" images --noheading --format '{{.Size}}' "$image") ;;
  *) size="its size is for $BACKEND to say" ;;
esac
echo "$image is made by $BACKEND: $size, base included"
