"""The known architectures, one row each: data only. A new one is a file in models/, a row here and a parity test.

Nothing of models/ is imported here: a row names its classes, and models/ finds them when a checkpoint is opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from secondpass.errors import UnknownModel
from secondpass.text.recipe import Prompt, Recipe

BY_LAYER = "heads_by_layer"  # config.json says so where each layer is read by its own head, whatever a reference does
YES_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
# FlagEmbedding is the reference of the bge LLM rerankers; its instruction is the task after the passage.
YES_PROMPT = Prompt(query="A: ", passage="B: ", task="{instruction}", instruction=YES_NO)
LIGHT_PROMPT = replace(YES_PROMPT, instruction="Predict whether passage B contains an answer to query A.")
MXBAI_PROMPT = Prompt(
    system=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n"
    ),
    query_lead="instruction: {instruction}\n",
    query="query: ",
    passage="document: ",
    task=(
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    ),
    answer="<|im_end|>\n<|im_start|>assistant\n",
)
QWEN3_PROMPT = Prompt(
    system=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    ),
    query_lead="<Instruct>: {instruction}\n",
    query="<Query>: ",
    passage="<Document>: ",
    answer="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)

_YES = Recipe(
    family="gemma", truncation="only_second", template="lettered", prompt=YES_PROMPT, head="token", answers=("Yes",)
)
_LIGHT = replace(_YES, family="gemma2-lightweight", prompt=LIGHT_PROMPT, head="layers_in_order", answers=())
_MXBAI = Recipe(
    family="qwen2",
    truncation="only_second",
    template="chat",
    prompt=MXBAI_PROMPT,
    head="token",
    answers=("1", "0"),
    midpoint=6.0,  # half of the largest score that the reference estimates
    default_length=8192,
)
_QWEN3 = Recipe(
    family="qwen3",
    truncation="only_second",
    template="one_text",
    prompt=QWEN3_PROMPT,
    head="token",
    answers=("yes", "no"),
    default_length=8192,
)
_ZERANK = {  # zeroentropy/zerank-1, -1-small and -2, whose probability is sigmoid(logit / 5)
    "system": "<|im_start|>system\n",
    "separator": "<|im_end|>\n<|im_start|>user\n",
    "answer": "<|im_end|>\n<|im_start|>assistant\n",
    "answers": ["Yes"],
    "temperature": 5.0,
}
# In a config.json as it is read: the words around a pair that a checkpoint has of its own, and its answers.
OWN_PROMPT = "pair_prompt"
QUERY_PROMPT = "query_prompt"  # of an encoder: the words that it was trained to read before a query
PROMPT_PARTS = ("system", "separator", "answer", "instruction")
# What the last part of a name says of language models whose files do not tell how they read a pair
_NAMED: tuple[tuple[str, Mapping[str, Any]], ...] = ((r"zerank-\d.*", _ZERANK),)
_REFUSED = (
    (
        "JinaForRanking",
        "jina-reranker-v3 reads all candidates of a query in one text, so that a score depends on the others",
    ),
    ("ctxl-rerank", "ctxl-rerank-v2 reads the passage before the query"),
)

_NEMOTRON = Recipe(
    family="llama_bidirec",
    template="one_text",
    prompt=Prompt(system="<|begin_of_text|>", query="question:", separator=" \n \n ", passage="passage:"),
    head="mean_label",
    default_length=8192,
)


@dataclass(frozen=True, kw_only=True)
class SavedHead:
    """How transformers names a classifier of one family: its class, the prefix of its backbone's names, its head."""

    architecture: str
    prefix: str
    head: Mapping[str, str]  # our module -> theirs

    def full_name(self, name: str) -> str:
        """The classifier's name of a tensor that a bare backbone has without the prefix."""
        is_head = name.rpartition(".")[0] in self.head.values()
        return name if is_head or name.startswith(self.prefix) else self.prefix + name


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its backbone and what reads the backbone's settings from config.json, as named in models/.

    recipe is None where the family only embeds. layer_recipe is for checkpoints with start_layer: a head per layer.
    midpoints holds hidden_size -> midpoint, for sizes that have another than the recipe's. saved is None where a new
    head cannot be put on the backbone.
    """

    backbone: str
    settings: str
    recipe: Recipe | None = None
    layer_recipe: Recipe | None = None
    midpoints: Mapping[int, float] = field(default_factory=dict)
    saved: SavedHead | None = None


_GTE = Family(backbone="gte.Gte", settings="gte.GteConfig.from_hf", recipe=Recipe(family="gte"))


def _bert(
    family: str,
    architecture: str,
    prefix: str = "roberta.",
    *,
    head: tuple[str, str] = ("classifier.dense", "classifier.out_proj"),
    truncation: str = "longest_first",
) -> Family:
    """BERT or a relative of it; head is what its classifier's two layers are called."""
    return Family(
        backbone="bert.Bert",
        settings="bert.BertConfig.from_hf",
        recipe=Recipe(family=family, truncation=truncation),
        saved=SavedHead(architecture=architecture, prefix=prefix, head={"head.dense": head[0], "head.out": head[1]}),
    )


def _decoder(
    settings: str,
    recipe: Recipe | None = None,
    *,
    by_layer: Recipe | None = None,
    midpoints: Mapping[int, float] | None = None,
) -> Family:
    return Family(
        backbone="decoder.Decoder",
        settings=f"decoder_configs.{settings}",
        recipe=recipe,
        layer_recipe=by_layer,
        midpoints=midpoints or {},
    )


# model_type in config.json -> family
FAMILIES: dict[str, Family] = {
    "bert": _bert("bert", "BertForSequenceClassification", "bert.", head=("bert.pooler.dense", "classifier")),
    "roberta": _bert("roberta", "RobertaForSequenceClassification"),
    # FlagEmbedding is the reference of bge-reranker-base, -large and -v2-m3
    "xlm-roberta": _bert("xlm-roberta", "XLMRobertaForSequenceClassification", truncation="only_second"),
    "camembert": _bert("camembert", "CamembertForSequenceClassification"),
    "electra": _bert("electra", "ElectraForSequenceClassification", "electra."),
    "distilbert": _bert(
        "distilbert", "DistilBertForSequenceClassification", "distilbert.", head=("pre_classifier", "classifier")
    ),
    "mpnet": _bert("mpnet", "MPNetForSequenceClassification", "mpnet."),
    "modernbert": Family(
        backbone="modernbert.ModernBert",
        settings="modernbert.ModernBertConfig.from_hf",
        recipe=Recipe(family="modernbert"),
        saved=SavedHead(
            architecture="ModernBertForSequenceClassification",
            prefix="model.",
            head={"head.dense": "head.dense", "head.norm": "head.norm", "head.out": "classifier"},
        ),
    ),
    "new": replace(
        _GTE,
        saved=SavedHead(
            architecture="NewForSequenceClassification",
            prefix="new.",
            head={"head.dense": "new.pooler.dense", "head.out": "classifier"},
        ),
    ),
    "gte": _GTE,
    "deberta-v2": Family(
        backbone="deberta.Deberta",
        settings="deberta.DebertaConfig.from_hf",
        recipe=Recipe(family="deberta-v2"),
        saved=SavedHead(
            architecture="DebertaV2ForSequenceClassification",
            prefix="deberta.",
            head={"head.dense": "pooler.dense", "head.out": "classifier"},
        ),
    ),
    "nomic_bert": Family(backbone="nomic.Nomic", settings="nomic.NomicConfig.from_hf"),
    "gemma": _decoder("gemma", _YES),
    "gemma2": _decoder("gemma2", replace(_YES, family="gemma2"), by_layer=_LIGHT),
    "gemma3_text": _decoder("gemma3"),
    "cost_wise_gemma": _decoder("cost_wise_gemma", by_layer=_LIGHT),
    "cost_wise_mistral": _decoder("cost_wise_mistral", by_layer=replace(_LIGHT, family="mistral-matroyshka")),
    "minicpm": _decoder("minicpm", by_layer=replace(_YES, family="minicpm-layerwise", head="layers", answers=())),
    "qwen2": _decoder("qwen2", _MXBAI, midpoints={896: 4.5}),  # the width of mxbai-rerank-base-v2
    "qwen3": _decoder("qwen3", _QWEN3),
    "llama": _decoder("llama", replace(_YES, family="llama")),
    "llama_bidirec": _decoder("llama_bidirec", _NEMOTRON),
    "mistral": _decoder("mistral", replace(_YES, family="mistral")),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The row of a config.json. Raises UnknownModel for a model_type that has none."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownModel(f"no backbone for model_type {model_type!r}; there are {known}")
    return FAMILIES[model_type]


def named_prompt(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's name adds to its config.json: the words around a pair, of one whose files do not tell them.

    Raises UnknownModel for one that reads pairs as nothing here does.
    """
    if not family_of(config).backbone.startswith("decoder."):
        return {}
    tail = name.rstrip("/").rsplit("/", 1)[-1].lower()
    for mark, why in _REFUSED:
        if mark in (config.get("architectures") or ()) or tail.startswith(mark):
            raise UnknownModel(f"{name}: {why}; that is not computed here")
    return next(({OWN_PROMPT: dict(own)} for pattern, own in _NAMED if re.fullmatch(pattern, tail)), {})


def recipe_for(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint's config.json asks for. Raises UnknownModel where there is none."""
    if OWN_PROMPT in config:
        return _own_recipe(config)
    has_layers = config.get("start_layer") is not None
    family = FAMILIES.get(str(config.get("model_type")))
    recipe = None if family is None else _recipe_of(family, has_layers)
    if family is None or recipe is None:
        with_layers = " with start_layer" if has_layers else ""
        known = ", ".join(sorted(name for name, row in FAMILIES.items() if _recipe_of(row, has_layers)))
        asked = f"{config.get('model_type')!r}{with_layers}"
        raise UnknownModel(f"no recipe for model_type {asked}; there are {known}. {_NOT_SCORED}")
    if recipe.head == "classifier":
        _check_classifier(config)
        prompt = config.get(QUERY_PROMPT)
        return recipe if prompt is None else replace(recipe, prompt=Prompt(query=str(prompt)))
    bos_id, max_positions = config.get("bos_token_id"), config.get("max_position_embeddings")
    recipe = replace(recipe, prompt=replace(recipe.prompt, bos_id=bos_id, max_positions=max_positions))
    if is_classifier(config):
        _check_classifier(config)
        recipe = replace(recipe, head="label" if recipe.head == "token" else recipe.head, answers=())
    return replace(recipe, midpoint=family.midpoints.get(config.get("hidden_size", 0), recipe.midpoint))


def _own_recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe of words and answers that are told. Raises UnknownModel for what is not as it is written here."""
    own, family = config[OWN_PROMPT], family_of(config)
    if not isinstance(own, Mapping) or not family.backbone.startswith("decoder."):
        raise UnknownModel(f"config.json: {OWN_PROMPT} is of language models, an object of words; it is {own!r}")
    parts = {part: own.get(part, "") for part in PROMPT_PARTS}
    answers, temperature = own.get("answers"), own.get("temperature", 1.0)
    is_warm = isinstance(temperature, int | float) and temperature > 0
    if not all(isinstance(part, str) for part in parts.values()) or not _are_answers(answers) or not is_warm:
        raise UnknownModel(
            f"config.json: {OWN_PROMPT} has {', '.join(PROMPT_PARTS)}, answers and temperature; {own!r}"
        )
    if any(isinstance(answer, int) and answer >= config.get("vocab_size", 0) for answer in answers):
        raise UnknownModel(
            f"config.json has {config.get('vocab_size')} words, and a score is of {answers} among them"
        )
    has_label = is_classifier(config)
    if has_label:
        _check_classifier(config)
    return Recipe(
        family=str(config["model_type"]) if family.recipe is None else family.recipe.family,
        truncation="only_second" if any(parts.values()) else "longest_first",
        template="turns" if any(parts.values()) else "pair",
        prompt=Prompt(**parts),
        head="label" if has_label else "token",
        answers=() if has_label else tuple(answers),
        temperature=float(temperature),
        default_length=8192,  # as others of the family; no memory for 40,960 tokens that nobody asked for
    )


def _are_answers(answers: Any) -> TypeGuard[list[str | int]]:
    return (
        isinstance(answers, list)
        and 1 <= len(answers) <= 2
        and all((isinstance(x, str) and x) or (isinstance(x, int) and x >= 0) for x in answers)
    )


def _recipe_of(family: Family, has_layers: bool) -> Recipe | None:
    return family.layer_recipe if has_layers else family.recipe


def saved_head(config: Mapping[str, Any]) -> SavedHead:
    """Raises UnknownModel where it is not known how a new head of this model_type is named."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or family.saved is None:
        known = ", ".join(sorted(name for name, row in FAMILIES.items() if row.saved is not None))
        raise UnknownModel(f"a head cannot be put on model_type {config.get('model_type')!r}; it can on {known}")
    return family.saved


def counted_after(config: Mapping[str, Any]) -> int | None:
    """The padding's id where the table of positions begins with that many rows and one, as RoBERTa's does; else None.

    1 where config.json has none, or null.
    """
    if config.get("model_type") not in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return None
    given = config.get("pad_token_id")
    return 1 if given is None else int(given)


def model_type_by_class(architectures: Sequence[str]) -> str | None:
    """The model_type of a config.json that names its class alone, as jina-reranker-v2's does."""
    for model_type, family in FAMILIES.items():
        if family.saved is not None and family.saved.architecture in architectures:
            return model_type
    return None


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether transformers saved it as one, as a reranker is."""
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


_NOT_SCORED = "Open an embedding model with secondpass.Embedder, late interaction with secondpass.ColBERT"


def _check_classifier(config: Mapping[str, Any]) -> None:
    """Raises UnknownModel, with what to do, where config.json does not describe a classifier of one label."""
    classes = config.get("architectures") or ()
    if classes and not is_classifier(config):
        raise UnknownModel(
            f"config.json: architectures is {', '.join(classes)}, which has no head that scores pairs; a reranker is "
            f"a ...ForSequenceClassification. {_NOT_SCORED}"
        )
    labels = num_labels(config)
    if labels is None:
        raise UnknownModel(
            "config.json does not say how many labels the classifier has, and transformers then means 2; "
            'where it is a reranker, add "num_labels": 1 to config.json'
        )
    if labels != 1:
        raise UnknownModel(
            f"config.json names {labels} labels; a reranker has one, and which of {labels} means 'relevant' "
            "cannot be known from the checkpoint. Use one that was trained as a reranker"
        )


def unlabelled_head(config: Mapping[str, Any]) -> str | None:
    """The name of a classifier's last weights where the config says nothing of its labels, which they then tell."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or not is_classifier(config) or num_labels(config) is not None:
        return None
    return "score.weight" if family.saved is None else f"{family.saved.head['head.out']}.weight"


def num_labels(config: Mapping[str, Any]) -> int | None:
    """Labels of a classifier; None where the config says nothing."""
    if config.get("num_labels") is not None:
        return int(config["num_labels"])
    return len(config["id2label"]) if config.get("id2label") is not None else None
