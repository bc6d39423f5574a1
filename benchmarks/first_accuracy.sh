#!/usr/bin/env bash
# The time from a clone to the first accuracy, each step as a whole, in a fresh folder:
#   benchmarks/first_accuracy.sh [REPOSITORY] [PYTHON]
set -euo pipefail
repository=${1:-$(cd "$(dirname "$0")/.." && pwd)}
python=${2:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export METALEARN_CACHE=$work/cache
cd "$work"

step() { # NAME COMMAND...: runs it, and prints how long it took
    local name=$1 start=$SECONDS
    shift
    "$@" >"$work/step.log" 2>&1 || { cat "$work/step.log"; exit 1; }
    printf '%-44s %5d s\n' "$name" $((SECONDS - start))
}

SECONDS=0
step "git clone" git clone -q "$repository" clone
step "python -m venv" "$python" -m venv venv
step "pip install -e ." venv/bin/pip install -q -e clone
step "metalearn fit" venv/bin/metalearn fit
printf '%-44s %5d s\n' "in all" "$SECONDS"
sed -n "/╭/,/╯/p" "$work/step.log"
