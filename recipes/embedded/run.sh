#!/bin/sh
# Makes the embedded model from DATA and BI_ENCODER in OUT; see README.md. MINUTES=1 MAX_QUERIES=40 tries all steps.
set -eu
here=$(dirname "$0")
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MALLOC_ARENA_MAX=1
cap=${MAX_QUERIES:+--max-queries $MAX_QUERIES}
python "$here/mine.py" "$DATA/train" "$BI_ENCODER" "$OUT/mined" $cap
python "$here/train.py" "$OUT/mined" "$BI_ENCODER" "$OUT/checkpoint" --minutes "${MINUTES:-180}"
python "$here/export.py" "$OUT/mined" "$BI_ENCODER" "$OUT/checkpoint" "$OUT"
python "$here/evaluate.py" "$DATA/dev" "$BI_ENCODER" $cap \
  --model "$OUT/assets/openvino/openvino_model.xml" --out "$OUT/figures.json"
