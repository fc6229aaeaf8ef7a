"""`secondpass pretrain`: an encoder learns from plain texts before it is fine-tuned."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from secondpass.command.flags import (
    GradientCheckpointing,
    TokenBudget,
    TrainedIn,
    TrainedOn,
    output_folder,
    wrong_use,
)
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra

if TYPE_CHECKING:
    from secondpass.training.data import Texts
    from secondpass.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Hiding:
    """What is hidden, and what has to be found."""

    method: Annotated[
        str,
        option(metavar="retromae|dupmae|mlm", help="dupmae: a bag of words too; mlm: no decoder, the control."),
    ] = "retromae"
    encoder_share: Annotated[float, option("--encoder-mask", help="Share hidden from the encoder.")] = 0.3
    decoder_share: Annotated[float, option("--decoder-mask", help="Share hidden from the decoder.")] = 0.5
    has_bare_queries: Annotated[
        bool, option("--bare-queries", help="The decoder's queries as in RetroMAE, without a norm.")
    ] = False
    has_reference_masks: Annotated[
        bool, option("--reference-masks", help="Words by ## alone; hides <s> too, as the reference does.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PretrainCourse:
    """How it is trained; each field is named as the field of TrainingSettings."""

    epochs: Annotated[int, option(min=1, help="Times that every text is seen.")] = 1
    max_steps: Annotated[int | None, option(min=1, help="Stop after so many steps.")] = None
    batch: Annotated[int, option(min=1, help="Texts per step, over all processes.")] = 32
    learning_rate: Annotated[float, option("--lr", help="Highest learning rate.")] = 1e-4
    warmup: Annotated[float, option(help="Share of the steps in which the rate rises.")] = 0.1
    weight_decay: Annotated[float, option(help="Of matrices.")] = 0.01
    max_length: Annotated[int | None, option(min=8, help="Most tokens of a text; else 512.")] = None
    has_gradient_checkpointing: GradientCheckpointing = False
    token_budget: TokenBudget = None
    device: TrainedOn = "auto"
    dtype: TrainedIn = "auto"
    seed: Annotated[int, option(min=0, help="Of order, masks and new weights.")] = 1
    save_every: Annotated[int, option(min=1, help="Steps between checkpoints.")] = 200
    log_every: Annotated[int, option(min=1, help="Steps between lines.")] = 10


def pretrain(
    base: Annotated[str, argument(metavar="BASE", help="An encoder: BERT, RoBERTa, XLM-R or ModernBERT.")],
    paths: Annotated[list[str], argument(metavar="TEXTS", help="Files and folders of plain texts.")],
    *,
    folder: Annotated[str, option("--output", metavar="FOLDER", help="Folder of the result.")],
    hiding: Hiding,
    pace: PretrainCourse,
    resume: Annotated[bool, option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
) -> None:
    """Pre-train an encoder on plain texts; the result is an ordinary encoder for `train`.

    Ctrl-C saves, and --resume goes on. A falling loss says little: compare after fine-tuning, also with --method mlm.
    """
    if find_spec("torch") is None:
        raise MissingExtra("torch", "train")
    from secondpass.training.checkpointing import check_output, claimed
    from secondpass.training.processes import open_processes
    from secondpass.training.trainer import Trainer

    settings, target = _settings(hiding, pace), output_folder(folder)
    processes = open_processes(settings.device)
    with claimed(target) if processes.is_first else nullcontext():
        check_output(target, is_resumed=resume)
        texts = _texts(paths)
        with wrong_use():
            trainer = Trainer(base, texts, target, settings=settings)
        if trainer.is_first:
            _say([f"texts: {len(texts.texts):,}", *trainer.described()])
        result = trainer.train(resume=resume)
    if trainer.is_first and not result.is_finished:
        again = shlex.join(["secondpass", *(one for one in sys.argv[1:] if one != "--resume"), "--resume"])
        _say([f"stopped after step {result.step} of {result.num_steps}; all is saved. To go on: {again}"])
        raise KeyboardInterrupt(result.signal)
    if trainer.is_first:
        sys.stdout.write(f"{result.folder}\n")


def _settings(hiding: Hiding, pace: PretrainCourse) -> TrainingSettings:
    from dataclasses import asdict

    from secondpass.training.settings import PretrainingSettings, TrainingSettings

    weights = {"retromae": (1.0, 0.0), "dupmae": (1.0, 0.1), "mlm": (0.0, 0.0)}
    with wrong_use():
        if hiding.method not in weights:
            raise ValueError(f"--method is {hiding.method!r}; give {', '.join(weights)}")
        decoder, bag = weights[hiding.method]
        told = {name: value for name, value in asdict(hiding).items() if name != "method"}
        kind = PretrainingSettings(decoder_weight=decoder, bag_weight=bag, **told)
        return TrainingSettings(pretraining=kind, **asdict(pace))


def _texts(paths: list[str]) -> Texts:
    from secondpass.data.passages import ReadOptions, read_passages
    from secondpass.text.documents import clean_query
    from secondpass.training.data import Texts

    inputs = read_passages(paths, (), ReadOptions())
    _say([*inputs.problems, *inputs.left_out])
    found = [clean_query(passage.document.text) for passage in inputs.passages]
    return Texts(texts=[text for text in found if text.strip()], names=tuple(paths))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
