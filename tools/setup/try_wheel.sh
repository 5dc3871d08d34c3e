#!/usr/bin/env bash
# Builds the wheel and uses it from an empty folder, in a fresh environment for each Python named:
#   tools/setup/try_wheel.sh 3.10 3.11 3.12 3.13
# Needs uv and a package index (its own settings decide which). Records a tiny pipeline's masks,
# makes prompts, generates, verifies and reads a store, pools and hides in plain PyTorch. The whole
# way, with each framework, an S3 and the Hub's layout, is journey.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv build -q --wheel -o dist "$root"
for version in "${@:-3.11}"; do
    uv venv -q --python "$version" "$version"
    uv pip install -q --python "$version/bin/python" "$(echo dist/*.whl)[generation,prompts,pytorch]"
    (
        mkdir "run-$version" && cd "run-$version"
        export HF_HUB_OFFLINE=1 PATH="$folder/$version/bin:$PATH"
        cp "$root/tests/helpers/tiny_pipelines.py" .
        freeatm --version
        freeatm prompts imagenet prompts.jsonl --count 4 --quiet
        python - <<'PROGRAM'
from tiny_pipelines import tiny_stable_diffusion
from freeatm_mm.attention import AttentionRecorder

pipe = tiny_stable_diffusion()
recorded = AttentionRecorder(pipe).generate('a dog', nouns=['dog'], num_inference_steps=2)
assert recorded.masks[0].shape[0] == 1
pipe.save_pretrained('pipeline')
PROGRAM
        freeatm generate pipeline prompts.jsonl store --steps 2 --device cpu --quiet
        freeatm verify store
        python - <<'PROGRAM'
import torch
from torchvision.transforms import v2
from freeatm_mm.pytorch import GuidedMasking, StoreDataset, collate_views

transform = v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
batch = collate_views(list(StoreDataset('store', transform, grid=4)))
assert GuidedMasking().noise(batch.masks[0], 0.5).shape == (4, 16)
PROGRAM
    )
    echo "Python $version: sound"
done
