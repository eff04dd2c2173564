#!/usr/bin/env bash
# The plans in docs/plans, all or those named: XL and 2 B parameters on three kinds of pod slices, and on several of them.
#   experiments/plans.sh [NAME...]
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p docs/plans
names=" $* "
noise='^compiling\|^WARNING\|^I0000\|^W0000\|^E0000\|^===\|^learning'

plan() { # name, then what follows --config experiments/large.py:
  local name=$1
  shift
  [[ $names == "  " || $names == *" $name "* ]] || return 0
  echo "$name"
  {
    echo "vdt plan --config experiments/large.py:$*"
    echo
    "${BIN:-.venv/bin}"/vdt plan --config experiments/large.py:"$@" --json "docs/plans/$name.json" 2>&1 | grep -v "$noise"
  } > "docs/plans/$name.txt"
}

plan xl_v5e_256 xl
plan refused 2b --topology v5e:4x4 --config.mesh.fsdp=1 --config.data.batch_size=64
plan xl_v5p_64 xl --topology v5p:4x4x4 --config.data.batch_size=512
latents=(--config.data.size=32,32 --config.model.channels=4 --config.model.patch=1,2,2)  # as many tokens
plan xl_latents_v5e_256 xl "${latents[@]}"
plan xl_latents_v5p_64 xl --topology v5p:4x4x4 --config.data.batch_size=512 "${latents[@]}"
plan 2b_v5p_64 2b
plan xl_v6e_256 xl --topology v6e:16x16
scan=(--config.data.batch_size=1024 --config.model.scan=True)  # written out, it compiles for more than 12 minutes
plan 2b_v5e_256 2b --topology v5e:16x16 "${scan[@]}" --config.micro_batches=2 --config.model.remat=dots
plan 2b_v6e_256 2b --topology v6e:16x16 "${scan[@]}"
plan xl_v5e_64 xl --topology v5e:8x8 --config.data.batch_size=320
plan xl_v5e_2x256 xl --slices 2 --config.data.batch_size=2560
plan 2b_v5p_4x64 2b --slices 4 --config.data.batch_size=4096
