#!/usr/bin/env bash
# What waits for a GPU, the most important first; it ends within 8 minutes.
#
#   bash benchmarks/on_gpu.sh OUT                      all, on one GPU
#   bash benchmarks/on_gpu.sh OUT checks merge         these steps alone
#   TINY=1 bash benchmarks/on_gpu.sh OUT               all in miniature, on any
#                                                      machine; SECONDS_IN_ALL
#
# Each step has a limit of its own and writes its table to OUT as it goes; a
# step that fails or is cut is told, and the next one begins. `python3` must
# have jax, jaxmerge's other needs, for train_step PyTorch, and for evaluate
# transformers too; where lm-eval is not there, our side is timed alone.

set -u
cd "$(dirname "$0")/.." || exit 1
out=$1
shift
all=(variants train_step checks pretrain search flags resume merge derivatives
  evaluate)
steps=("${@:-${all[@]}}")
in_all=${SECONDS_IN_ALL:-480}
python=${PYTHON:-python3}
runs=$(mktemp -d)
mkdir -p "$out"
log=$out/log.txt

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XDG_CACHE_HOME=$runs/cache
export JAX_COMPILATION_CACHE_DIR=$runs/cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export XLA_PYTHON_CLIENT_PREALLOCATE=false

tiny=() best=$runs/best.json
train=(--config=configs/pretrain/llama_125m.py
  --config.data.source=python_source --config.data.max_documents=0
  --config.data.vocab_size=8192 --config.batch_size=32
  --config.step.accumulate=1 --config.num_steps=120 --config.save_every=40
  --config.log_every=20 --config.optimizer.warmup_steps=20
  --config.validation_sequences=64)
search=(--config=configs/search/quickstart.py
  "--config.checkpoint_steps=(80,120)")
small=(--config.model.hidden_size=256 --config.model.num_hidden_layers=4
  --config.model.num_attention_heads=4 --config.model.num_key_value_heads=4
  --config.batch_size=8 --config.save_every=4 --config.log_every=2)
trees=(--sequences=32)
if [[ -n ${TINY:-} ]]; then
  tiny=(--tiny)
  train=(--config=configs/pretrain/tiny.py --config.model.dtype=bfloat16)
  search=(--config=configs/search/tiny.py)
  small=()
  trees=(--width=128 --depth=2 --sequences=4 --length=64)
fi

wanted() { [[ " ${steps[*]} " == *" $1 "* ]]; }

# step NAME LIMIT COMMAND...: stdout goes to OUT/NAME.md, stderr to OUT/log.txt.
step() {
  local name=$1 limit=$2 file=$out/$1.md start=$SECONDS code
  shift 2
  [[ $name =~ ^(pretrain|search|resume)$ ]] && file=$out/verbs.md
  [[ -n ${TINY:-} ]] && limit=$(( 6 * limit ))  # a machine that is busy
  (( limit > in_all - SECONDS )) && limit=$(( in_all - SECONDS ))
  if (( limit < 15 )); then
    echo "== $name: no time is left" | tee -a "$log"
    return 1
  fi
  echo "== $name: $*" >>"$log"
  timeout -k 5 "$limit" "$@" 2>>"$log" | tee -a "$file"
  code=${PIPESTATUS[0]}
  (( code )) && tail -n 4 "$log"
  echo "== $name: $(( SECONDS - start )) s, exit code $code" |
    tee -a "$log" "$file"
  return $code
}

# Equal digests of all parameters, and equal metrics, at the last step.
equal() {
  "$python" - "$1" "$2" <<'PYTHON'
import json, pathlib, sys
runs = [pathlib.Path(run) for run in sys.argv[1:]]
last = max(int(p.name) for p in (runs[0] / "checkpoints").iterdir())
found = [
  json.loads((r / f"checkpoints/{last}/metadata/metadata").read_text())["leaves"]
  for r in runs
]
metrics = [(r / "metrics.jsonl").read_text() for r in runs]
print(f"step {last}: {len(found[0]['params'])} parameters, ", end="")
print("leaves equal:", found[0] == found[1], end=", ")
print("metrics equal:", metrics[0] == metrics[1])
sys.exit(found[0] != found[1] or metrics[0] != metrics[1])
PYTHON
}

pretrain() { "$python" -m jaxmerge.pretrain "$@"; }

# A run that stops at its first checkpoint and goes on, against one that does
# not stop.
resume() {
  local steps=(8 4 8) runs_of=(whole cut cut) i
  for i in 0 1 2; do
    pretrain "${train[@]}" "${small[@]}" --workdir="$runs/${runs_of[$i]}" \
      --config.num_steps="${steps[$i]}" >/dev/null || return 1
  done
  equal "$runs/whole" "$runs/cut"
}
export -f resume pretrain equal

# Checkpoints say which jaxmerge wrote them: told here where it runs from a
# checkout that is not installed.
if ! "$python" -c 'import importlib.metadata as m; m.version("jaxmerge")' \
  2>/dev/null; then
  mkdir -p "$runs/site/jaxmerge-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: jaxmerge\nVersion: 0\n' \
    >"$runs/site/jaxmerge-0.dist-info/METADATA"
  export PYTHONPATH=$PYTHONPATH:$runs/site
fi

nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv 2>/dev/null
"$python" -c 'import jax, flax; print("jax", jax.__version__, "flax", flax.__version__)'

# Tokens are made on the CPU meanwhile.
if wanted pretrain || wanted resume; then
  JAX_PLATFORMS=cpu pretrain "${train[@]}" --workdir="$runs/run" --dry_run \
    >>"$log" 2>&1 &
  tokens=$!
fi

if wanted variants; then
  step variants 110 "$python" benchmarks/step_variants.py "${tiny[@]}" \
    --seconds="${VARIANTS_SECONDS:-75}" --best="$best" \
    --kernels="$out/kernels.md"
fi
if wanted train_step; then
  [[ -s $best ]] || echo '{"remat": "dots"}' >"$best"
  step train_step 240 "$python" benchmarks/train_step.py "${tiny[@]}" \
    --options="$best" --device="${DEVICE:-cuda}" ${ROWS:+--rows=$ROWS} \
    ${TORCH:+--torch=$TORCH}
fi
if wanted checks; then
  XLA_FLAGS=--xla_gpu_autotune_level=0 step checks 90 \
    "$python" benchmarks/gpu_checks.py "${tiny[@]}"
fi
[[ -n ${tokens:-} ]] && wait "$tokens"
if wanted pretrain || wanted search; then
  step pretrain 100 "$python" -m jaxmerge.pretrain "${train[@]}" \
    --workdir="$runs/run"
fi
if wanted search; then
  step search 75 "$python" -m jaxmerge.search "${search[@]}" \
    --workdir="$runs/run"
fi
if wanted flags; then
  [[ -s $best ]] || echo '{"remat": "dots"}' >"$best"
  for flags in --xla_gpu_dot_merger_threshold_mb=1000 \
    --xla_gpu_exhaustive_tiling_search=true; do
    XLA_FLAGS=$flags step flags 25 "$python" benchmarks/step_variants.py \
      "${tiny[@]}" --options="$best"
  done
fi
if wanted resume; then
  XLA_FLAGS=--xla_gpu_deterministic_ops=true
  export python runs XLA_FLAGS
  declare -p train small >"$runs/arguments"
  step resume 110 bash -c 'source "$runs/arguments"; resume'
  unset XLA_FLAGS
fi
if wanted merge; then
  step merge 90 "$python" benchmarks/device_merge.py "${trees[@]}"
fi
if wanted derivatives; then
  size=(--large)
  [[ -n ${TINY:-} ]] && size=(--tiny)
  step derivatives 90 "$python" benchmarks/weight_derivatives.py "${size[@]}"
fi
if wanted evaluate; then
  size=(--large)
  [[ -n ${TINY:-} ]] && size=(--width=64 --depth=2 --items=8 --rounds=1)
  step evaluate 120 "$python" benchmarks/evaluate.py "${size[@]}"
fi
echo "== $SECONDS s in all"
rm -rf "$runs"
