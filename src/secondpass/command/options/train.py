"""The options of `secondpass train`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import Debug, Device, Json


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reranker or a plain encoder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="FlagEmbedding's JSONL, in files or folders; BEIR folders.")
    ],
    output: Annotated[str, typer.Option(help="Folder of the result.")],
    loss: Annotated[
        str, typer.Option(help="ce, binary, margin_mse, kl, or a sum such as ce+kl or ce=0.4,kl=0.6.")
    ] = "ce",
    temperature: Annotated[float, typer.Option(help="Of kl.")] = 1.0,
    teacher: Annotated[
        str | None, typer.Option(help="Scores for kl and margin_mse: a reranker, or embedder:NAME; else the data's.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives beside each positive.")] = 7,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every query is seen.")] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Queries per step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-5,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.1,
    weight_decay: float = 0.01,
    clip: Annotated[float, typer.Option(help="Highest norm of the gradient.")] = 1.0,
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else 512.")] = None,
    lora: Annotated[int | None, typer.Option(metavar="RANK", min=1, help="Train low-rank updates only.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Else twice the rank.")] = None,
    lora_targets: Annotated[str, typer.Option(help="attention or all.")] = "all",
    adapter: Annotated[bool, typer.Option("--adapter", help="Save the updates in PEFT's layout too.")] = False,
    freeze_words: Annotated[bool, typer.Option("--freeze-words", help="Leave the word embeddings.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens in one forward pass.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16, with float32 weights.")] = "auto",
    seed: int = 1,
    eval_: Annotated[str | None, typer.Option("--eval", metavar="DATA", help="A set to measure on.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Its split; else dev, if there is one.")] = None,
    eval_depth: Annotated[int, typer.Option(min=1, help="BM25 candidates to rerank.")] = 30,
    eval_queries: Annotated[int | None, typer.Option(min=1, help="Only so many queries, drawn once.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps; else at the end of an epoch.")] = None,
    measure: Annotated[str, typer.Option(help="nDCG@10 or MRR@10: by which the best is kept.")] = "nDCG@10",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines.")] = 10,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events into OUTPUT/training.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that are wrong.")] = False,
    search: Annotated[str, typer.Option(help="For negatives of BEIR folders: bm25 or embedder:NAME.")] = "bm25",
    split: Annotated[str | None, typer.Option(help="Judgements of BEIR folders; else train.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a reranker: data is checked first, the result is an ordinary Hugging Face folder.

    Ctrl-C saves, and --resume goes on. Several processes: accelerate launch -m secondpass train ...
    """
    from secondpass.command import mine as mining
    from secondpass.command import train as command
    from secondpass.errors import WrongUse
    from secondpass.training.mining import MiningSettings

    command.check_torch()
    from secondpass.training.settings import LoraSettings, TrainingSettings, parse_losses

    try:
        updates = None
        if lora is not None:
            alpha = lora_alpha or 2.0 * lora
            updates = LoraSettings(rank=lora, alpha=alpha, targets=lora_targets, saves_adapter=adapter)
        settings = TrainingSettings(
            losses=parse_losses(loss),
            temperature=temperature,
            num_negatives=negatives,
            batch=batch,
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            max_gradient_norm=clip,
            max_length=max_length,
            token_budget=token_budget,
            device=device,
            dtype=dtype,
            has_gradient_checkpointing=checkpointing,
            has_frozen_words=freeze_words,
            lora=updates,
            seed=seed,
            measure=measure,
            eval_every=eval_every,
            save_every=save_every,
            log_every=log_every,
            has_tensorboard=tensorboard,
        )
    except ValueError as error:
        raise WrongUse(str(error)) from error
    sources = command.Sources(
        teacher=teacher,
        mining=mining.Source(search=search, split=split),
        mining_settings=MiningSettings(num_negatives=max(15, negatives)),
        is_skipping=skip_bad,
        dev=eval_,
        dev_split=eval_split,
        dev_depth=eval_depth,
        dev_queries=eval_queries,
    )
    command.train(model, data, output, settings=settings, sources=sources, is_resumed=resume, is_json=json)
