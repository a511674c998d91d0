#!/bin/sh
# Runs on each of 2 hosts.
set -eu
exec "$@" --nnodes 2 --node-rank "${NODE_RANK:?is 0 on the first host}" --dist-init-addr "${HEAD_ADDRESS:?is the address of the first host}:${DIST_PORT:-29500}"
