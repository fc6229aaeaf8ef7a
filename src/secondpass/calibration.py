"""Calibration: a fitted map from a model's logits to probabilities, and the threshold for a wanted precision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secondpass.atomic import at_home, write_text
from secondpass.errors import SecondpassError

FILE = "calibration.json"
FORMAT = 1


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * logit + intercept))), Platt 1999.

    It holds for one model, and for candidates like those that it was fitted on. threshold is the least logit at which
    the wanted precision was reached, or None where none was wanted or it was not reached. model is what it was fitted
    for, fitted_on says on which pairs, and held_out how well it does on pairs that it was not fitted on.
    """

    slope: float
    intercept: float
    threshold: float | None = None
    wanted_precision: float | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope > 0):
            raise ValueError(
                f"slope {self.slope} and intercept {self.intercept}; finite ones are needed, and a slope above 0, so "
                "that a better score is a greater probability"
            )

    def probability(self, score: float) -> float:
        """A raw logit as the probability that the document is relevant, in 0..1."""
        return sigmoid(self.logit(score))

    def logit(self, score: float) -> float:
        """A raw logit as that of the probability."""
        return self.slope * score + self.intercept

    def save(self, path: str | Path) -> Path:
        """Write it as JSON to a file, or into a folder as calibration.json. Returns the file.

        Raises SecondpassError where it cannot be written; an earlier one is whole then.
        """
        file = _file(path)
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=2, allow_nan=False)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SecondpassError(f"{file}: cannot be written ({error})") from error
        write_text(file, text + "\n")
        return file

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """What `save` wrote. Raises SecondpassError for a file that is not there or is none."""
        file = _file(path)
        try:
            value = json.loads(file.read_text("utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(f"its format is {value['format']!r}; this release reads {FORMAT}")
            known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            known |= {name: float(known[name]) for name in ("slope", "intercept")}
            return cls(**known)
        except OSError as error:
            raise SecondpassError(
                f"{file}: no calibration can be read there ({error.strerror or error}); "
                "secondpass calibrate makes one"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SecondpassError(
                f"{file}: is not a calibration ({error}); make it again with secondpass calibrate"
            ) from error


def _file(path: str | Path) -> Path:
    path = at_home(path)
    return path / FILE if path.is_dir() else path


def as_calibration(calibration: Calibration | str | Path | None) -> Calibration | None:
    """A calibration, or the one in a file or beside a model in its folder."""
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    if not isinstance(calibration, str | Path):
        raise TypeError(f"calibration is a {type(calibration).__name__}; give a Calibration, or the file of one")
    return Calibration.load(calibration)
