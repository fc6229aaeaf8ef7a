#!/bin/sh
# Makes the embedded model from DATA and BI_ENCODER in OUT; see README.md. Goes on where it stopped.
set -eu
here=$(dirname "$0")
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
mkdir -p "$OUT"
[ -d "$OUT/lists/dev" ] || python "$here/sets.py" "$DATA" "$OUT/lists" --max-queries "${MAX_QUERIES:-28}"
[ -e "$OUT/float/config.json" ] || python "$here/build.py" "$DATA/train" "$BI_ENCODER" "$OUT/float"
python "$here/figures.py" "$OUT/lists" "$OUT/float"
python "$here/fit.py" "$OUT/lists" "$OUT/fitted.json"
python "$here/export.py" "$BI_ENCODER" "$OUT/float" "$OUT/fitted.json" "$OUT/assets"
python "$here/evaluate.py" "$DATA/dev" "$OUT/assets" --out "$OUT/dev.json"
