"""The two published tokenizers, built from local vocabulary files with the `tokenizers` library.

BERT WordPiece (ImageReward) and CLIP byte-level BPE (all others), each from an explicit vocabulary: transformers'
own classes changed the names of those arguments between versions and then built an empty vocabulary in silence.
"""

import gzip
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reneg_core.text_file import read_json, read_text

BPE_MERGES = 48894  # of the 262,144 lines of bpe_simple_vocab_16e6.txt.gz, the ones OpenAI's CLIP uses
CLIP_CONTEXT = 77
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class Tokens:
    """ids [B,T] int64 padded on the right to the longest; lengths [B], special tokens counted; truncated [B]."""

    ids: Tensor
    lengths: Tensor
    truncated: list[bool]


class Tokenizer:
    """Text to ids: start token, pieces, end token, cut to `context` with the end token kept.

    clean: "none" or "ftfy" (fix mojibake, unescape html twice; OpenAI's and open_clip's tokenizers do, transformers
    does not).
    """

    def __init__(
        self,
        pieces: object,
        *,
        start: int,
        end: int,
        pad: int,
        context: int,
        clean: str = "none",
        special: Sequence[str] = (),
    ) -> None:
        self._pieces, self._clean, self._special = pieces, clean, tuple(special)
        self.start, self.end, self.pad, self.context = start, end, pad, context

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """prompts of any number >= 1 -> Tokens."""
        bodies = [self._pieces.encode(self._cleaned(text), add_special_tokens=False).ids for text in prompts]
        room = self.context - 2
        rows = [[self.start, *body[:room], self.end] for body in bodies]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.pad)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        return Tokens(ids, lengths, [len(body) > room for body in bodies])

    def _cleaned(self, text: str) -> str:
        text = _fixed(text) if self._clean == "ftfy" else text
        for token in self._special:
            text = re.sub(re.escape(token), " ", text, flags=re.IGNORECASE)
        return text.strip()


def bert_tokenizer(vocab: Path, rows: int, context: int) -> Tokenizer:
    """bert-base-uncased WordPiece from `vocab.txt`; `rows` is the size of the network's embedding table."""
    from tokenizers import Tokenizer as Pieces
    from tokenizers import models, normalizers, pre_tokenizers

    words = read_text(vocab).splitlines()
    ids = {word: i for i, word in enumerate(words)}
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in ids]
    if missing:
        raise ValueError(f"{vocab}: lacks {', '.join(missing)}; expected the vocab.txt of bert-base-uncased")
    _check_size(vocab, len(words), rows)
    pieces = Pieces(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokenizer(pieces, start=ids["[CLS]"], end=ids["[SEP]"], pad=ids["[PAD]"], context=context)


def clip_tokenizer(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, source: object, rows: int, context: int, clean: str
) -> Tokenizer:
    """CLIP's BPE; `rows` is the size of the network's embedding table, `source` what errors call the vocabulary."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Pieces

    missing = [token for token in CLIP_SPECIAL if token not in vocab]
    if missing:
        raise ValueError(f"{source}: lacks {', '.join(missing)}; expected CLIP's vocabulary")
    _check_size(source, max(vocab.values()) + 1, rows)
    start, end = (vocab[token] for token in CLIP_SPECIAL)
    pieces = Pieces(models.BPE(dict(vocab), list(merges), end_of_word_suffix="</w>", unk_token=CLIP_SPECIAL[1]))
    pieces.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Tokenizer(pieces, start=start, end=end, pad=end, context=context, clean=clean, special=CLIP_SPECIAL)


def read_bpe_json(vocab: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """transformers' pair of files, `vocab.json` and `merges.txt`."""
    lines = read_text(merges).splitlines()
    return read_json(vocab), _pairs(lines[1:] if lines and lines[0].startswith("#") else lines)


def read_bpe_gzip(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's `bpe_simple_vocab_16e6.txt.gz`: ids are bytes, bytes with word end, merges, two special tokens."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1:]
    merges = _pairs(lines[:BPE_MERGES])
    letters = _byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), *CLIP_SPECIAL]
    return {entry: i for i, entry in enumerate(entries)}, merges


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in lines if line.strip()]


def _byte_letters() -> list[str]:
    """The printable stand-in of every byte, printable bytes first, as byte-level BPE orders them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _check_size(source: object, size: int, rows: int) -> None:
    if size > rows:
        raise ValueError(
            f"{source}: {size} entries, but the network's embedding table has {rows} rows; "
            "expected the vocabulary that belongs to these weights"
        )


def _fixed(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise ImportError(
            "this reward cleans prompts with the package ftfy, as its authors' tokenizer does; pip install ftfy"
        ) from error
    return html.unescape(html.unescape(ftfy.fix_text(text)))
