"""The published tokenizers from local files; each against transformers' slow or fast original where it can be built."""

import gzip

import pytest

from reneg_core.rewards import load_reward
from reneg_core.rewards.tokenizers import bert_tokenizer, clip_tokenizer, read_bpe_gzip, read_bpe_json
from reneg_core.rewards.vocabulary import find_clip_tokenizer
from reneg_core.rewards.weights import Source

AWKWARD = [
    "",
    "  Red   FOX\n\t",
    "a fox's café, 35mm!!",
    "naïve “quotes” …",
    "日本語 fox",
    "fox&amp;fox",
    "emoji 🦊 fox",
    "a_b-c",
    "it's 2024",
    "ﬁne ligature",
]


@pytest.fixture(scope="module")
def bpe(small_clip):
    return read_bpe_json(small_clip.folder / "vocab.json", small_clip.folder / "merges.txt")


def test_clip_bpe_equals_transformers(small_clip, bpe):
    from transformers import CLIPTokenizer

    vocab, merges = bpe
    theirs = CLIPTokenizer(vocab=vocab, merges=merges)
    ours = clip_tokenizer(vocab, merges, source="x", rows=len(vocab), context=77, clean="none")
    for text in AWKWARD:
        assert ours([text]).ids[0].tolist() == theirs(text)["input_ids"], text


def test_bert_wordpiece_equals_transformers(small_blip):
    from transformers import BertTokenizer

    path = small_blip.folder / "vocab.txt"
    words = path.read_text().splitlines()
    theirs = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    ours = bert_tokenizer(path, len(words) + 2, 35)
    for text in [*AWKWARD, "boats, in the snow.", "a Red unknownword"]:
        assert ours([text]).ids[0].tolist() == theirs(text, truncation=True, max_length=35)["input_ids"], text


def test_openai_vocabulary_gives_the_same_ids(bpe, tmp_path):
    vocab, merges = bpe
    packed = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    packed.write_bytes(gzip.compress(("#header\n" + "\n".join(" ".join(m) for m in merges) + "\n").encode()))
    entries, pairs = read_bpe_gzip(packed)
    assert entries == vocab and pairs == merges
    tokenizer = find_clip_tokenizer(Source(None, (tmp_path,)), rows=len(vocab), context=77, clean="none")
    assert tokenizer(["fox"]).ids.tolist() == [[vocab["<|startoftext|>"], vocab["fox</w>"], vocab["<|endoftext|>"]]]


def test_cleaning_unescapes_html_and_repairs_text_only_where_published(bpe):
    vocab, merges = bpe
    clean, raw = (
        clip_tokenizer(vocab, merges, source="x", rows=len(vocab), context=77, clean=mode) for mode in ("ftfy", "none")
    )
    assert clean(["fox &amp;amp; fox"]).ids.tolist() == raw(["fox & fox"]).ids.tolist()
    assert clean(["“fox”"]).ids.tolist() == raw(['"fox"']).ids.tolist()
    assert clean(["caf\u00c3\u00a9"]).ids.tolist() == raw(["café"]).ids.tolist()
    assert raw(["fox &amp; fox"]).ids.tolist() != raw(["fox & fox"]).ids.tolist()


def test_a_literal_special_token_is_not_the_end(bpe):
    vocab, merges = bpe
    tokenizer = clip_tokenizer(vocab, merges, source="x", rows=len(vocab), context=77, clean="none")
    assert tokenizer(["fox <|endoftext|> fox"]).ids.tolist() == tokenizer(["fox fox"]).ids.tolist()


def test_truncation_keeps_the_end_token(bpe):
    vocab, merges = bpe
    tokenizer = clip_tokenizer(vocab, merges, source="x", rows=len(vocab), context=77, clean="none")
    tokens = tokenizer(["fox " * 100, "fox"])
    assert tokens.ids.shape == (2, 77) and tokens.lengths.tolist() == [77, 3] and tokens.truncated == [True, False]
    assert tokens.ids[0, -1] == tokenizer.end and (tokens.ids[1, 3:] == tokenizer.pad).all()


def test_a_foreign_vocabulary_is_refused(bpe, tmp_path, small_clip):
    vocab, merges = bpe
    with pytest.raises(ValueError, match="entries, but the network's embedding table has 10 rows"):
        clip_tokenizer(vocab, merges, source="vocab.json", rows=10, context=77, clean="none")
    with pytest.raises(ValueError, match=r"lacks <\|startoftext\|>"):
        clip_tokenizer({}, [], source="vocab.json", rows=10, context=77, clean="none")
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ValueError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        bert_tokenizer(tmp_path / "vocab.txt", 10, 35)
    with pytest.raises(FileNotFoundError, match=r"vocabulary .* does not exist"):
        load_reward("pickscore", weights=small_clip.folder, vocab=tmp_path / "none.json")
