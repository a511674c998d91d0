#!/bin/bash
# The guide's chat test and the trials of this cell, one after another, in place of the server. They write below the
# models' folder: start the container without --read-only.
# The guide shows pa_fp16 alone: pa_bf16 is said here by analogy, for a cell that computes in bf16.
bash /release/within.sh models bash examples/models/qwen/run_pa.sh -m /model \
  --trust_remote_code true -c true
bash /release/within.sh tests bash run.sh pa_bf16 full_BoolQ 1 qwen /model 8
bash /release/within.sh tests env HCCL_DETERMINISTIC=false LCCL_DETERMINISTIC=0 HCCL_BUFFSIZE=120 \
  bash run.sh pa_bf16 performance '[[2048,2048],[1024,1024],[512,512],[256,256]]' 1 qwen /model 8
