"""Vocabulary files of the published tokenizers: given by the caller, beside the weights, or known by hub id."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reneg_core.rewards.published import BERT_VOCAB, CLIP_BPE, CLIP_MERGES, CLIP_VOCAB, PublishedFile
from reneg_core.rewards.tokenizers import (
    Tokenizer,
    bert_tokenizer,
    clip_tokenizer,
    read_bpe_gzip,
    read_bpe_json,
)
from reneg_core.rewards.weights import Given, Source, find_beside, find_file, locate


def find_bert_tokenizer(source: Source, rows: int, context: int) -> Tokenizer:
    """ImageReward's tokenizer. source.vocab: a `vocab.txt`, a directory with one, a hub id, or None to look in
    `source`; rows: of the network's embedding table."""
    return bert_tokenizer(_companion(BERT_VOCAB, source.vocab, source), rows, context)


def find_clip_tokenizer(source: Source, *, rows: int, context: int, clean: str) -> Tokenizer:
    """CLIP's tokenizer. source.vocab: a `vocab.json` (with source.merges), a `bpe_simple_vocab_16e6.txt.gz`, a
    directory with either, a hub id, or None to look in `source`."""
    vocab = source.vocab
    if vocab is not None and str(vocab).endswith(".gz"):
        origin, (entries, pairs) = vocab, read_bpe_gzip(_existing(vocab))
    elif (packed := _packed(source)) is not None:
        origin, (entries, pairs) = packed, read_bpe_gzip(packed)
    else:
        origin = _companion(CLIP_VOCAB, vocab, source)
        merges = _companion(CLIP_MERGES, source.merges or _sibling(vocab), source)
        entries, pairs = read_bpe_json(origin, merges)
    return clip_tokenizer(entries, pairs, source=origin, rows=rows, context=context, clean=clean)


def locate_clip(files: Sequence[PublishedFile], source: Source) -> dict[PublishedFile, Path | None]:
    """`locate` for CLIP weights and the vocabulary of two files, for which the packed one stands in."""
    found = locate([*files, CLIP_VOCAB, CLIP_MERGES, CLIP_BPE], source)
    packed = found.pop(CLIP_BPE)
    if packed is not None:
        del found[CLIP_MERGES]
        found[CLIP_VOCAB] = packed
    return found


def _packed(source: Source) -> Path | None:
    if source.vocab is None:
        return find_beside(CLIP_BPE, source)
    folder = Path(source.vocab)
    return find_beside(CLIP_BPE, Source(folder)) if folder.is_dir() else None


def _sibling(vocab: Given) -> Given:
    """Where the merges are when only the vocabulary was given: in the same directory or repository."""
    return Path(vocab).parent if vocab is not None and Path(vocab).is_file() else vocab


def _companion(file: PublishedFile, given: Given, source: Source) -> Path:
    if given is None:
        return find_file(file, source)
    if Path(given).exists():
        return find_file(file, Source(Path(given)))
    if str(given).count("/") == 1 and not Path(given).suffix:
        return find_file(replace(file, repository=str(given)), Source(download=source.download))
    return _existing(given)


def _existing(path: str | os.PathLike) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"vocabulary {path} does not exist; expected a file, a directory or a hub id")
    return Path(path)
