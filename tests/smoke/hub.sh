#!/usr/bin/env bash
# The real Hugging Face Hub and a real model, for somebody with internet; CI has none, so this is not part of it.
# Downloads about 270 MB into a folder of its own, and takes it away again.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
pipeline() { "${PYTHON:-.venv/bin/python}" -m pipeline.cli "$@"; }
say() { printf '\n== %s\n' "$*" >&2; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HF_HOME=$scratch/hf XDG_DATA_HOME=$scratch/data
unset HF_HUB_OFFLINE HF_HUB_CACHE HUGGINGFACE_HUB_CACHE GGUF_PIPELINE_STORE

say "plan: headers alone"
pipeline plan "$model" --quant Q8_0 --json >"$scratch/plan.json"
du -sh "$HF_HOME" >&2

say "pull, killed after ${KILL_AFTER:-5} seconds"
timeout --signal KILL "${KILL_AFTER:-5}" "${PYTHON:-.venv/bin/python}" -m pipeline.cli pull "$model" || true
find "$HF_HOME" -name '*.incomplete' -exec ls -l {} + >&2

say "pull again: the rest"
pipeline pull "$model"
if find "$HF_HOME" -name '*.incomplete' | grep .; then
  say "something is not whole"
  exit 1
fi
cat "$XDG_DATA_HOME/gguf-pipeline/models.lock.json" >&2

say "publish, offline"
HF_HUB_OFFLINE=1 pipeline publish "$model" --quant Q8_0

say "publish from an empty cache: converted while it comes"
rm -rf "$HF_HOME"
pipeline publish "$model" --quant Q8_0
pipeline list
say "all well"
