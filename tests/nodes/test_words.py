"""Without a host: what the nodes say, the same in every language, and what the node search finds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .fake_host import Schema, schemas

LOCALES = Path(__file__).resolve().parents[2] / "locales"
TRANSLATED = sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")
NODES = schemas()
FROM_THE_HOST = {("ReNegLoadReward", "reward_name"), *((name, "control_after_generate") for name in NODES)}
"""What no locale tells: which rewards there are, users' own among them; and the page's control of a seed."""
SAME = {"cfg", "clip", "vae", "latent"}
"""Names that every language leaves as they are."""
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}
KEPT = re.compile(r"\d+(?:\.\d+)?|\w+(?:[_/:]\w+)+|\.\w{2,}\b|[A-Z][A-Za-z]*[A-Z]\w*")
"""What no translation may lose: numbers, file names and paths, and names such as KSampler and JSON."""


def words(language: str, file: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))


def keys(value: Any, path: str = "", leave: frozenset[str] = frozenset()) -> set[str]:
    """Every path to a text."""
    if not isinstance(value, dict):
        return {path}
    return {found for key, part in value.items() if key not in leave for found in keys(part, f"{path}/{key}", leave)}


def said(node: Schema) -> dict[str, tuple[str, list[str]]]:
    """The English texts of a node by their path in a locale, with the choices that they may mention."""
    texts = {"description": (node.description, [])}
    for part in node.inputs:
        if (node.node_id, part.id) not in FROM_THE_HOST:
            texts[f"inputs/{part.id}"] = (part.tooltip, [str(choice) for choice in part.options])
    return texts | {f"outputs/{n}": (part.tooltip, []) for n, part in enumerate(node.outputs)}


def at(entry: dict[str, Any], path: str) -> str:
    for key in path.split("/"):
        entry = entry[key]
    return entry if isinstance(entry, str) else entry["tooltip"]


def kept(text: str, choices: list[str]) -> set[str]:
    """What a translation of ``text`` has to hold; a plural in English is none elsewhere."""
    found = {part.removesuffix("s") if part.isalpha() else part.removeprefix(".") for part in KEPT.findall(text)}
    return {part for part in found if part != "A"} | {choice for choice in choices if f"{choice}:" in text}


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_has_the_keys_of_english_and_a_tooltip_for_each(language: str) -> None:
    tooltips = frozenset({"tooltip"})
    assert keys(words(language), leave=tooltips) == keys(words("en"), leave=tooltips)
    for name, node in words(language).items():
        parts = {**node["inputs"], **{f"output {n}": part for n, part in node["outputs"].items()}}
        bare = {(name, field) for field, part in parts.items() if not part.get("tooltip")}
        assert bare <= FROM_THE_HOST, f"{bare} have no tooltip in {language}"


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("name", sorted(NODES))
def test_a_translation_keeps_numbers_files_choices_and_names(name: str, language: str) -> None:
    entry = words(language)[name]
    lost = {
        path: missing
        for path, (text, choices) in said(NODES[name]).items()
        if (missing := sorted(part for part in kept(text, choices) if part not in at(entry, path)))
    }
    assert lost == {}, f"{name} in {language} does not say what the English text says"


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_is_in_its_language_and_says_the_same_the_same_way(language: str) -> None:
    ours = re.compile(SCRIPTS[language])
    by_text: dict[str, set[str]] = {}
    for name, node in words(language).items():
        for path in keys(node):
            text = at(node, path.strip("/"))
            assert ours.search(text) or text.lower() in SAME, f"{name}{path}: {text}"
        for path, (english, _) in said(NODES[name]).items():
            by_text.setdefault(english, set()).add(at(node, path))
    assert {english: texts for english, texts in by_text.items() if len(texts) > 1} == {}


def test_every_node_is_looked_at() -> None:
    assert set(NODES) == set(words("en"))


def test_what_a_translation_has_to_hold() -> None:
    text = "Files of output/reneg (paper: 0.005) for KSampler with LoRAs and a .txt; zscore: standardised. A rest."
    assert kept(text, ["zscore", "none"]) == {"output/reneg", "0.005", "KSampler", "LoRA", "txt", "zscore"}
    assert not kept("Two pictures.", ["Two"])


def test_the_page_names_its_own_control_of_a_seed_in_every_language() -> None:
    for language in ["en", *TRANSLATED]:
        for name, node in words(language).items():
            seeds = [part for part in NODES[name].inputs if part.id == "seed"]
            controlled = [part for part in seeds if vars(part).get("control_after_generate") is not False]
            assert ("control_after_generate" in node["inputs"]) == bool(controlled), f"{language} {name}"
        assert set(words(language, "main")["dataTypes"]) == {"RENEG_EMBEDDING", "RENEG_REWARD"}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("aesthetic", {"ReNegLoadReward", "ReNegRewardScore"}),
        ("negative", {"ReNegLoadEmbedding", "ReNegTrain", "ReNegCompareNegatives", "ReNegCFGSampler"}),
        ("score", {"ReNegLoadReward", "ReNegRewardScore"}),
        ("textual inversion", {"ReNegLoadEmbedding", "ReNegTrain"}),
    ],
)
def test_the_words_that_people_type_find_the_nodes(query: str, found: set[str]) -> None:
    """The page searches ids, names and aliases."""
    texts = {name: " ".join([name, node.display_name, *node.search_aliases]).lower() for name, node in NODES.items()}
    assert found <= {name for name, text in texts.items() if query in text}
    assert {name for name, node in NODES.items() if not node.search_aliases} <= {"ReNegTrainEmbedding"}, (
        "the older node"
    )
