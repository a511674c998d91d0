#!/bin/bash
# Sets the environment of MindIE, goes where the command wants to be, and becomes it:
#   within.sh service            the daemon of MindIE-Service
#   within.sh models COMMAND …   in the folder of the ATB models
#   within.sh tests COMMAND …    in its tests/modeltest
place=$1
shift
line=("$@")
set --  # or the vendor's scripts would take our arguments for theirs
service=/usr/local/Ascend/mindie/latest/mindie-service
models=/usr/local/Ascend/atb-models
daemon="$service"/bin/mindieservice_daemon
toolkit=/usr/local/Ascend/ascend-toolkit/set_env.sh
[ -r "$toolkit" ] || toolkit=/usr/local/Ascend/cann/set_env.sh
scripts=("$toolkit" /usr/local/Ascend/nnal/atb/set_env.sh "$models/set_env.sh")
[ "$place" != service ] || scripts+=("${service%/latest/*}/set_env.sh" "$service/set_env.sh")
for script in "${scripts[@]}"; do
  if [ ! -r "$script" ]; then
    echo "within.sh: $script is not there: the base image is not the one that this release was made for" >&2
    exit 1
  fi
  source "$script"
done
# The cell's own environment comes last: the vendor's scripts set some of it themselves.
export BIND_CPU=1
export RESERVED_MEMORY_GB=3
export MIES_CONFIG_JSON_PATH=/release/conf/config.json MINDIE_LOG_TO_STDOUT=1
# The weights are mounted read-only and belong to the host's user, which MindIE refuses unless it is told not to look at owners.
export MINDIE_CHECK_INPUTFILES_PERMISSION=0
case "$place" in
  service)
    # Operators are compiled into the working folder, which has to be writable.
    cd /tmp && exec "$daemon" "${line[@]}" ;;
  models) cd "$models" && exec "${line[@]}" ;;
  tests) cd "$models/tests/modeltest" && exec "${line[@]}" ;;
  *) echo "within.sh: $place is none of service, models, tests" >&2 ;;
esac
exit 1
