#!/bin/sh
# Runs on the first of 2 hosts.
set -eu
. /release/env.sh
ray start --head ${HEAD_ADDRESS:+"--node-ip-address=$HEAD_ADDRESS"} --port="${RAY_PORT:-6379}" --num-gpus=8
exec "$@"
