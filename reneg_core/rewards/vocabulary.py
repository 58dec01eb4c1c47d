"""Vocabulary files of the published tokenizers: given by the caller, beside the weights, or known by hub id."""

import os
from pathlib import Path

from reneg_core.rewards.tokenizers import (
    Tokenizer,
    bert_tokenizer,
    clip_tokenizer,
    read_bpe_gzip,
    read_bpe_json,
)
from reneg_core.rewards.weights import PublishedFile, Source, find_beside, find_file

VocabPath = str | os.PathLike

BERT_VOCAB = PublishedFile("vocab.txt", "google-bert/bert-base-uncased", aliases=("bert_vocab.txt",))
CLIP_VOCAB = PublishedFile("vocab.json", "openai/clip-vit-large-patch14", aliases=("clip_vocab.json",))
CLIP_MERGES = PublishedFile("merges.txt", "openai/clip-vit-large-patch14", aliases=("clip_merges.txt",))
CLIP_TOKENIZER = PublishedFile(
    CLIP_VOCAB.name, CLIP_VOCAB.repository, aliases=(*CLIP_VOCAB.aliases, "bpe_simple_vocab_16e6.txt.gz")
)
OPEN_CLIP_BPE = PublishedFile("bpe_simple_vocab_16e6.txt.gz", "openai/clip-vit-large-patch14")


def find_bert_tokenizer(vocab: VocabPath | None, source: Source, rows: int, context: int) -> Tokenizer:
    """ImageReward's tokenizer. vocab: a `vocab.txt`, a directory with one, a hub id, or None for `source`."""
    path = _companion(BERT_VOCAB, vocab, source)
    return bert_tokenizer(path, rows, context)


def find_clip_tokenizer(
    vocab: VocabPath | None, merges: VocabPath | None, source: Source, *, rows: int, context: int, clean: str
) -> Tokenizer:
    """CLIP's tokenizer. vocab: a `vocab.json` (with `merges`), a `bpe_simple_vocab_16e6.txt.gz`, a directory with
    either, a hub id, or None for `source`."""
    if vocab is not None and str(vocab).endswith(".gz"):
        origin, (entries, pairs) = vocab, read_bpe_gzip(_existing(vocab))
    elif vocab is None and (packed := find_beside(OPEN_CLIP_BPE, source)) is not None:
        origin, (entries, pairs) = packed, read_bpe_gzip(packed)
    else:
        origin = _companion(CLIP_VOCAB, vocab, source)
        entries, pairs = read_bpe_json(origin, _companion(CLIP_MERGES, merges or _sibling(vocab), source))
    return clip_tokenizer(entries, pairs, source=origin, rows=rows, context=context, clean=clean)


def _sibling(vocab: VocabPath | None) -> VocabPath | None:
    """Where the merges are when only the vocabulary was given: in the same directory or repository."""
    return Path(vocab).parent if vocab is not None and Path(vocab).is_file() else vocab


def _companion(file: PublishedFile, given: VocabPath | None, source: Source) -> Path:
    if given is None:
        return find_file(file, source)
    if Path(given).exists():
        return find_file(file, Source(Path(given)))
    if str(given).count("/") == 1 and not Path(given).suffix:
        return find_file(PublishedFile(file.name, str(given)), Source(None, (), source.download))
    return _existing(given)


def _existing(path: VocabPath) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"vocabulary {path} does not exist; expected a file, a directory or a hub id")
    return Path(path)
