#!/bin/sh
# Runs in the image when the packages are in it: what only serves to build upon torch or to test it goes. Where all steps make one layer (buildah,
# podman --squash) the image gets 190 MB smaller; where each step is a layer of its own (Docker) it stays as it is.
set -eu
torch=/app/.venv/lib/python3.11/site-packages/torch
rm -rf "$torch/test" "$torch/include" "$torch/share"
find "$torch/bin" -type f ! -name torch_shm_manager -delete
