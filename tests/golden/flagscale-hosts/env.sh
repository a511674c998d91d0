# What every rank must see, on this host and on the others.
export CUDA_DEVICE_MAX_CONNECTIONS=1
export USE_FLAGGEMS=1
