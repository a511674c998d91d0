#!/bin/sh
# Runs on every other host.
set -eu
. /release/env.sh
exec ray start --block --address="${HEAD_ADDRESS:?is the address of the first host}:${RAY_PORT:-6379}" --num-gpus=8
