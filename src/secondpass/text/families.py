"""The known families and checkpoints: data only. A new checkpoint of a known family is a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from secondpass.errors import UnknownModel
from secondpass.text.recipe import Prompt, Recipe

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
_LIGHT = replace(_YES, family="gemma2-lightweight", prompt=LIGHT_PROMPT, head="layers_by_place", answers=())
# The same architecture, other scores: by the last part of the name
MIDPOINTS = {"mxbai-rerank-base-v2": 4.5}

# model_type in config.json, with "+start_layer" where that is set (one head per layer) -> recipe
RECIPES: dict[str, Recipe] = {
    "bert": Recipe(family="bert"),
    "roberta": Recipe(family="roberta"),
    # FlagEmbedding is the reference of bge-reranker-base, -large and -v2-m3
    "xlm-roberta": Recipe(family="xlm-roberta", truncation="only_second"),
    "modernbert": Recipe(family="modernbert"),
    "new": Recipe(family="gte"),
    "gte": Recipe(family="gte"),
    "deberta-v2": Recipe(family="deberta-v2"),
    "gemma": _YES,
    "gemma2": replace(_YES, family="gemma2"),
    "llama": replace(_YES, family="llama"),
    "mistral": replace(_YES, family="mistral"),
    "minicpm+start_layer": replace(_YES, family="minicpm-layerwise", head="layers", answers=()),
    "gemma2+start_layer": _LIGHT,
    "cost_wise_gemma+start_layer": _LIGHT,
    "qwen2": Recipe(
        family="qwen2",
        truncation="only_second",
        template="chat",
        prompt=MXBAI_PROMPT,
        head="token",
        answers=("1", "0"),
        midpoint=6.0,  # half of the largest score that the reference estimates
        default_length=8192,
    ),
    "qwen3": Recipe(
        family="qwen3",
        truncation="only_second",
        template="one_text",
        prompt=QWEN3_PROMPT,
        head="token",
        answers=("yes", "no"),
        default_length=8192,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What `secondpass models` shows of a checkpoint."""

    name: str
    family: str
    languages: str
    parameters: str
    max_length: int
    licence: str
    use: str
    loads_as: str = "Reranker"  # or ColBERT, or Embedder


KNOWN = (
    Known(
        name="default",
        family="bert",
        languages="English",
        parameters="23M",
        max_length=512,
        licence="Apache-2.0",
        use="embedded: works offline at once, without torch",
    ),
    Known(
        name="multilingual",
        family="bert",
        languages="many, Chinese above all",
        parameters="59M",
        max_length=512,
        licence="MIT",
        use="offline, of the package secondpass-multilingual; cosine and word matching, on the openvino engine",
    ),
    Known(
        name="BAAI/bge-reranker-base",
        family="xlm-roberta",
        languages="Chinese, English",
        parameters="278M",
        max_length=512,
        licence="MIT",
        use="Chinese and English on a CPU",
    ),
    Known(
        name="BAAI/bge-reranker-large",
        family="xlm-roberta",
        languages="Chinese, English",
        parameters="560M",
        max_length=512,
        licence="MIT",
        use="as base, better and three times slower",
    ),
    Known(
        name="BAAI/bge-reranker-v2-m3",
        family="xlm-roberta",
        languages="over 100",
        parameters="568M",
        max_length=8192,
        licence="Apache-2.0",
        use="many languages, long passages",
    ),
    Known(
        name="cross-encoder/ms-marco-MiniLM-L6-v2",
        family="bert",
        languages="English",
        parameters="23M",
        max_length=512,
        licence="Apache-2.0",
        use="fast English on a CPU",
    ),
    Known(
        name="cross-encoder/ms-marco-MiniLM-L12-v2",
        family="bert",
        languages="English",
        parameters="33M",
        max_length=512,
        licence="Apache-2.0",
        use="English; twice the cost of L6 for little",
    ),
    Known(
        name="Alibaba-NLP/gte-multilingual-reranker-base",
        family="gte",
        languages="over 70",
        parameters="306M",
        max_length=8192,
        licence="Apache-2.0",
        use="many languages and long passages on a CPU",
    ),
    Known(
        name="Alibaba-NLP/gte-reranker-modernbert-base",
        family="modernbert",
        languages="English",
        parameters="150M",
        max_length=8192,
        licence="Apache-2.0",
        use="English, long passages, code; fast for its quality",
    ),
    Known(
        name="mixedbread-ai/mxbai-rerank-xsmall-v1",
        family="deberta-v2",
        languages="English",
        parameters="71M",
        max_length=512,
        licence="Apache-2.0",
        use="small, English",
    ),
    Known(
        name="mixedbread-ai/mxbai-rerank-base-v1",
        family="deberta-v2",
        languages="English",
        parameters="184M",
        max_length=512,
        licence="Apache-2.0",
        use="English, better than xsmall",
    ),
    Known(
        name="mixedbread-ai/mxbai-rerank-large-v1",
        family="deberta-v2",
        languages="English",
        parameters="435M",
        max_length=512,
        licence="Apache-2.0",
        use="English, best of the v1; for a GPU",
    ),
    Known(
        name="BAAI/bge-reranker-v2-gemma",
        family="gemma",
        languages="over 100",
        parameters="2.5B",
        max_length=8192,
        licence="Gemma",
        use="many languages, best of the bge v2 on a GPU",
    ),
    Known(
        name="BAAI/bge-reranker-v2-minicpm-layerwise",
        family="minicpm-layerwise",
        languages="Chinese, English",
        parameters="2.7B",
        max_length=2048,
        licence="Apache-2.0",
        use="cutoff_layer: 8 to 40 of the layers",
    ),
    Known(
        name="BAAI/bge-reranker-v2.5-gemma2-lightweight",
        family="gemma2-lightweight",
        languages="over 100",
        parameters="9.2B",
        max_length=8192,
        licence="Gemma",
        use="cutoff_layer and compress_ratio trade time for quality",
    ),
    Known(
        name="mixedbread-ai/mxbai-rerank-base-v2",
        family="qwen2",
        languages="over 100",
        parameters="0.5B",
        max_length=32768,
        licence="Apache-2.0",
        use="small LLM reranker, code too",
    ),
    Known(
        name="mixedbread-ai/mxbai-rerank-large-v2",
        family="qwen2",
        languages="over 100",
        parameters="1.5B",
        max_length=32768,
        licence="Apache-2.0",
        use="as base, better and three times slower",
    ),
    Known(
        name="Qwen/Qwen3-Reranker-0.6B",
        family="qwen3",
        languages="over 100",
        parameters="0.6B",
        max_length=40960,
        licence="Apache-2.0",
        use="follows an instruction",
    ),
    Known(
        name="Qwen/Qwen3-Reranker-4B",
        family="qwen3",
        languages="over 100",
        parameters="4B",
        max_length=40960,
        licence="Apache-2.0",
        use="follows an instruction; for a GPU",
    ),
    Known(
        name="Qwen/Qwen3-Reranker-8B",
        family="qwen3",
        languages="over 100",
        parameters="8B",
        max_length=40960,
        licence="Apache-2.0",
        use="follows an instruction; for a large GPU",
    ),
    Known(
        name="colbert-ir/colbertv2.0",
        family="colbert",
        languages="English",
        parameters="110M",
        max_length=512,
        licence="MIT",
        use="thousands of stored documents per query",
        loads_as="ColBERT",
    ),
    Known(
        name="BAAI/bge-m3",
        family="xlm-roberta",
        languages="over 100",
        parameters="568M",
        max_length=8192,
        licence="MIT",
        use="first stage: dense, sparse and token vectors",
        loads_as="Embedder",
    ),
    Known(
        name="BAAI/bge-small-en-v1.5",
        family="bert",
        languages="English",
        parameters="33M",
        max_length=512,
        licence="MIT",
        use="first stage: small, English",
        loads_as="Embedder",
    ),
    Known(
        name="sentence-transformers/all-MiniLM-L6-v2",
        family="bert",
        languages="English",
        parameters="23M",
        max_length=512,
        licence="Apache-2.0",
        use="first stage: smallest, English",
        loads_as="Embedder",
    ),
    Known(
        name="nomic-ai/nomic-embed-text-v1.5",
        family="nomic_bert",
        languages="English",
        parameters="137M",
        max_length=8192,
        licence="Apache-2.0",
        use="first stage: long texts, any dimension",
        loads_as="Embedder",
    ),
)


def recipe_for(config: Mapping[str, Any], name: str = "") -> Recipe:
    """The recipe that a checkpoint's config.json asks for. Raises UnknownModel where there is none."""
    model_type = str(config.get("model_type"))
    key = model_type + ("+start_layer" if config.get("start_layer") is not None else "")
    if key not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise UnknownModel(f"no recipe for model_type {key!r}; there are {known}")
    recipe = RECIPES[key]
    if recipe.head == "classifier":
        _check_classifier(config)
        return recipe
    bos_id, max_positions = config.get("bos_token_id"), config.get("max_position_embeddings")
    recipe = replace(recipe, prompt=replace(recipe.prompt, bos_id=bos_id, max_positions=max_positions))
    if any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        _check_classifier(config)
        recipe = replace(recipe, head="label", answers=())
    midpoint = MIDPOINTS.get(name.rstrip("/").rsplit("/", 1)[-1], recipe.midpoint)
    return replace(recipe, midpoint=midpoint)


def _check_classifier(config: Mapping[str, Any]) -> None:
    """Raises UnknownModel, with what to do, where config.json does not describe a classifier of one label."""
    classes = config.get("architectures") or ()
    if classes and not any(name.endswith("ForSequenceClassification") for name in classes):
        raise UnknownModel(
            f"config.json: architectures is {', '.join(classes)}, which has no head that scores pairs; a reranker is "
            "a ...ForSequenceClassification. Open an embedding model with secondpass.Embedder"
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


def num_labels(config: Mapping[str, Any]) -> int | None:
    """Labels of a classifier; None where the config says nothing."""
    if "num_labels" in config:
        return int(config["num_labels"])
    return len(config["id2label"]) if "id2label" in config else None
