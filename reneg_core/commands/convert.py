"""``reneg convert``: read an embedding in any known layout, write it as safetensors."""

import argparse
from typing import Any

from ..embedding import FAMILIES, load_embedding


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("convert", help="change the file format of an embedding", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target", help="a .safetensors file")
    parser.add_argument("--layout", choices=("reneg", "ltx"), default="reneg", help="ltx: what LTX loaders read")
    parser.add_argument(
        "--family", choices=sorted(FAMILIES), default="", help="for files that do not name their encoder"
    )
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the target and say what it holds."""
    embedding = load_embedding(args.source, args.family)
    path = embedding.save(args.target, overwrite=args.overwrite, layout=args.layout)
    print(f"{path}: {embedding.family}, {embedding.length} tokens of width {embedding.width}")
    return 0
