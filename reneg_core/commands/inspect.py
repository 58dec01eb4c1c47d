"""``reneg inspect``: what is in an embedding file, whether it fits a model, how it compares with another."""

import argparse
import json
import math
from dataclasses import asdict
from typing import Any

from ..embedding import NegativeEmbedding, describe_family, load_embedding
from ..text_file import printable


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("inspect", help="say what is in an embedding file", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--compare", default="", metavar="FILE", help="another embedding of the same family")
    parser.add_argument("--model", default="", help="check that it fits this model, and compare with its empty prompt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts; an embedding that does not fit --model is an error."""
    embedding = load_embedding(args.file)
    facts = describe(embedding)
    if args.model:
        from ..backends import load_model

        model = load_model(args.model, device="cpu", dtype="fp32")
        embedding.require(model.family, model.width, model.max_tokens)
        null = model.encode([""])
        facts["fits"] = model.name
        if null.tokens.shape[1] == embedding.length:
            facts["against the empty prompt"] = embedding.compare(NegativeEmbedding(null.tokens, model.family))
    if args.compare:
        facts[f"against {args.compare}"] = embedding.compare(load_embedding(args.compare))
    print(as_json(facts) if args.json else as_text(facts))
    return 0


def describe(embedding: NegativeEmbedding) -> dict[str, Any]:
    """Family, shape, norms and provenance as plain values."""
    norms = embedding.tokens[0].norm(dim=-1)
    facts = {
        "family": describe_family(embedding.family),
        "tokens": embedding.length,
        "width": embedding.width,
        "mask": None if embedding.mask is None else int(embedding.mask.sum()),
        "pooled width": None if embedding.pooled is None else embedding.pooled.shape[1],
        "norm": round(embedding.tokens.norm().item(), 4),
        "token norms": f"{norms.min():.3f} .. {norms.max():.3f}, mean {norms.mean():.3f}",
    }
    facts["learned for"] = embedding.sampling.describe() if embedding.sampling else "unknown: the file does not say"
    known = {name: value for name, value in asdict(embedding.provenance).items() if value not in ("", None, {}, 0, 0.0)}
    return facts | {"provenance": known or "none: the file does not say where it comes from"}


def as_json(facts: dict[str, Any]) -> str:
    """The facts as JSON; NaN and infinity, which it does not have, as null."""
    return json.dumps(_finite(facts), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(facts: dict[str, Any], indent: str = "") -> str:
    """Aligned ``name: value`` lines, safe to print whatever the file says (:func:`reneg_core.text_file.printable`)."""
    return printable(_lines(facts, indent))


def _lines(facts: dict[str, Any], indent: str) -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: " + " ".join(map(_short, value)))
        else:
            lines.append(f"{indent}{name}: {value:.4f}" if isinstance(value, float) else f"{indent}{name}: {value}")
    return "\n".join(lines)


def _short(item: Any) -> str:
    return f"{item:.3f}" if isinstance(item, float) else str(item)
