"""What decodes the picture that a gradient comes from: how it is set, where it acts, and where it must not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from doubles import Curved
from runs import records
from small import SmallModel, SmallVideo, start_of
from torch import Tensor

from reneg_core import load_embedding
from reneg_core.sampling import Sampling, Size
from reneg_core.training import AdaptConfig, ConfigError, Prompts, Session, TrainConfig, Trainer, adapt
from reneg_core.training.decoding import MARGIN, PAYS, Decoder, Decoding, cropped, recomputing
from reneg_core.training.run_config import RunConfig

SAMPLING = Sampling(steps=4, size=Size(12, 16)).at_scale(3.0)  # 6x8 latents of a SmallModel
BASE = TrainConfig(
    steps=3, batch_size=4, micro_batch=3, sampling=SAMPLING, learning_rate=0.05, points=2, window=(1, 4),
    validate_every=3, validation_pairs=2, checkpoint_every=1, checkpoint_minutes=0,
)  # fmt: skip
CORNERS = [(9, 6), (8, 9), (6, 5)]
ADAPT = AdaptConfig(steps=2, sampling=SAMPLING, learning_rate=0.05, points=2, window=(1, 4))


def trainer(folder: Path, config: TrainConfig, model: Any = None, reward: Any = None, **session: Any) -> Trainer:
    prompts = Prompts(["a red fox", "blue", "sun over sea"], ["moon"])
    return Trainer(model or SmallModel(), reward or Curved(), prompts, config, folder, session=Session(**session))


def learned(folder: Path, config: TrainConfig, **others: Any) -> Tensor:
    run = trainer(folder, config, **others)
    run.run()
    return run.learner.negative(torch.device("cpu")).tokens


def tiny(folder: Path, seed: int = 0, **options: Any) -> str:
    """A tiny decoder whose pictures are as large as its latents, which a SmallModel has."""
    torch.manual_seed(seed)
    sizes = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    AutoencoderTiny(**{"latent_channels": 3, **sizes, **blocks, **options}).save_pretrained(folder)
    return f"tiny:{folder}"


@pytest.mark.parametrize(
    ("text", "expected", "gradient"),
    [
        ("auto", Decoder("auto"), ""),
        ("full", Decoder("full"), ""),
        ("recomputed", Decoder("recomputed"), ""),
        ("tiny:a:b.safetensors", Decoder("tiny", "a:b.safetensors"), "tiny"),
        ("crop:0.50", Decoder("crop", share=0.5), "crop:0.5"),
    ],
)
def test_the_setting_is_read(text: str, expected: Decoder, gradient: str) -> None:
    assert Decoder.read(text) == expected and expected.gradient == gradient


@pytest.mark.parametrize(
    "text",
    ["", "Full", "tiny", "tiny:", "crop", "crop:", "crop:0", "crop:1", "crop:-1", "crop:nan", "crop:half", "0.5"],
)
def test_what_is_no_decoder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"decoder: got '.*', expected auto, full, recomputed, tiny:FILE or crop:SH"):
        TrainConfig(decoder=text)


def test_when_it_is_recomputed() -> None:
    """auto from a number of pixels in a pass on, recomputed and a crop always, the others never."""
    for name, few, many in (("auto", 0, 1), ("full", 0, 0), ("recomputed", 1, 1), ("tiny:x", 0, 0), ("crop:0.5", 1, 1)):
        decoder = Decoder.read(name)
        assert (decoder.recomputes(PAYS - 1), decoder.recomputes(PAYS)) == (bool(few), bool(many)), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (False, False)),
        ({"decoder": "recomputed"}, (False, True)),
        ({"checkpointing": True, "decoder": "full"}, (True, True)),
        ({"micro_batch": PAYS // (12 * 16)}, (False, False)),
        ({"micro_batch": PAYS // (12 * 16) + 1}, (False, True)),
    ],
)
def test_it_is_switched_for_the_work_and_back(changes: dict, expected: tuple) -> None:
    model = SmallModel()
    with pytest.raises(KeyError), recomputing(model, replace(BASE, **changes)):
        assert model.checkpointed == [expected]
        raise KeyError
    assert model.checkpointed == [expected, (False, False)]
    adapt(model, Curved(), ["ice"], [1], start_of(model), replace(ADAPT, **changes))
    assert model.checkpointed[2:] == [expected, (False, False)]


class Doubling:
    """Decodes each latent to a square of four, and notes what it was given."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        self.given.append(list(latents.shape))
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2) + frames


@pytest.mark.parametrize("frames", [(), (5,)])
def test_a_crop_is_a_piece_of_the_picture(frames: tuple[int, ...]) -> None:
    """With a margin on each side, and a gradient there alone; in a video every frame has the same piece."""
    model, places = Doubling(), torch.arange(24 * 20.0).reshape(24, 20)
    latents = places.expand(100, 3, *frames, 24, 20).clone().requires_grad_()
    found = cropped(model, 0.25, range(100), latents, 0)
    assert model.given == [[100, 3, *frames, 6 + 2 * MARGIN, 5 + 2 * MARGIN]]
    assert found.shape == (100, 3, *frames, 12, 10)
    corners = []
    for row, piece in zip(latents, found, strict=True):
        top, left = divmod(int(piece.flatten()[0].item()), 20)
        corners.append((top, left))
        whole = Doubling().decode(row[None])[0]
        assert torch.equal(piece, whole[..., 2 * top : 2 * top + 12, 2 * left : 2 * left + 10])
    tops, lefts = ({corner[i] for corner in corners} for i in (0, 1))
    assert min(tops) == 0 and max(tops) == 18 and min(lefts) == 0 and max(lefts) == 15 and len({*corners}) > 60
    (gradient,) = torch.autograd.grad(found.sum(), latents)
    assert (gradient.flatten(1) != 0).sum(1).eq(30 * 3 * (frames or (1,))[0]).all()


def test_a_row_is_cropped_by_its_own_seed() -> None:
    """As in every version: a run that is resumed by another one goes on with the same pieces."""
    places = torch.arange(24.0 * 24).reshape(1, 1, 24, 24).expand(3, 3, 24, 24)
    corners = cropped(Doubling(), 0.5, [7, 8, 9], places, 0)[:, 0, 0, 0]
    assert [divmod(int(corner), 24) for corner in corners] == CORNERS
    latents = torch.randn(3, 3, 24, 24)
    together = cropped(Doubling(), 0.5, [7, 8, 9], latents, 0)
    assert torch.equal(together[1:2], cropped(Doubling(), 0.5, [8], latents[1:2], 0))
    assert not torch.equal(together[1:2], cropped(Doubling(), 0.5, [7], latents[1:2], 0))
    assert torch.equal(
        cropped(Doubling(), 0.01, [7], latents[:1], 2), cropped(Doubling(), 0.01, [7], latents[:1], 0) + 2
    )
    assert cropped(Doubling(), 0.01, [7], latents[:1], 0).shape[-2:] == (2, 2), "at least a latent"


class Seen(Curved):
    """Notes the sizes of the pictures that it judges, with a gradient and without."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[bool, int, int]] = set()

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.sizes.add((images.requires_grad, *images.shape[-2:]))
        return super()._score(images, prompts)


def test_a_run_with_crops(tmp_path: Path) -> None:
    """Another gradient, the same pictures in validations; the same in any micro-batches and after any interruption."""
    config, reward = replace(BASE, decoder="crop:0.5"), Seen()
    found = learned(tmp_path / "crop", config, reward=reward)
    assert {s for s in reward.sizes if s[1:] != (64, 64)} >= {(True, 3, 4), (False, 6, 8)}
    assert (True, 6, 8) not in reward.sizes
    plain = learned(tmp_path / "plain", BASE)
    assert (found - plain).abs().max() > 1e-3
    starts = [records(tmp_path / name, "validation")[0]["reward"] for name in ("crop", "plain")]
    assert starts[0] == starts[1]
    assert torch.allclose(found, learned(tmp_path / "parts", replace(config, micro_batch=1)), atol=1e-5)
    polls = iter([False] * 3 + [True] * 9)
    assert trainer(tmp_path / "stopped", config, should_stop=lambda: next(polls)).run().reason == "stopped"
    assert torch.equal(found, learned(tmp_path / "stopped", config, resume=True))
    notes = [load_embedding(tmp_path / name / "negative.safetensors").provenance.notes for name in ("crop", "plain")]
    assert notes[0]["training"]["decoder"] == "crop:0.5" and "decoder" not in notes[1]["training"]


def test_crops_are_drawn_anew_at_each_step() -> None:
    model, run = SmallModel(), Decoding(0.5)
    latents = torch.randn(1, 3, 24, 24)
    assert len({run.of(model, [seed])(latents, 0, [0]).sum().item() for seed in range(9)}) > 6


def test_an_adaptation_with_crops() -> None:
    model, pairs, reward = SmallModel(), (["a red fox", "ice"], [1, 2]), Seen()
    config = replace(ADAPT, decoder="crop:0.5")
    found = adapt(model, reward, *pairs, start_of(model), config)
    plain = adapt(model, Curved(), *pairs, start_of(model), ADAPT)
    assert reward.sizes == {(True, 3, 4), (False, 6, 8)} and found.images.shape[-2:] == (6, 8)
    assert torch.equal(found.start_rewards, plain.start_rewards) and (found.rewards >= found.start_rewards).all()
    assert (found.negatives.tokens - plain.negatives.tokens).abs().max() > 1e-4
    alone = adapt(model, Curved(), *pairs, start_of(model), replace(config, micro_batch=1))
    assert torch.allclose(found.negatives.tokens, alone.negatives.tokens, atol=1e-5)


def test_an_adaptation_draws_its_crops_anew_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def noted(model: Any, share: float, seeds: list[int], latents: Tensor, frames: int) -> Tensor:
        places.append(tuple(seeds))
        return cropped(model, share, seeds, latents, frames)

    monkeypatch.setattr("reneg_core.training.decoding.cropped", noted)
    model, config = SmallModel(), replace(ADAPT, decoder="crop:0.5", patience=9)
    adapt(model, Seen(), ["a red fox", "ice"], [1, 2], start_of(model), config)
    steps = [place for place in places if len(place) == 2]
    assert len({*steps}) == config.steps > 1 and all(a != b for a, b in steps)


def test_a_run_with_a_tiny_decoder(tmp_path: Path) -> None:
    first, second = tiny(tmp_path / "a"), tiny(tmp_path / "b", seed=1)
    found = learned(tmp_path / "first", replace(BASE, decoder=first))
    assert (found - learned(tmp_path / "second", replace(BASE, decoder=second))).abs().max() > 1e-3
    assert (found - learned(tmp_path / "plain", BASE)).abs().max() > 1e-3
    starts = [records(tmp_path / name, "validation")[0]["reward"] for name in ("first", "second", "plain")]
    assert starts[0] == starts[1] == starts[2], "validations have the model's own decoder"
    training = load_embedding(tmp_path / "first" / "negative.safetensors").provenance.notes["training"]
    assert training["decoder"] == "tiny:a" and training["tiny decoder"].startswith("sha256:")


def test_the_gradient_is_that_of_the_tiny_decoders_pictures(tmp_path: Path) -> None:
    model = SmallModel()
    decode = Decoder.read(tiny(tmp_path / "a")).load(model).of(model, [0])
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    network = AutoencoderTiny.from_pretrained(tmp_path / "a")
    expected = (network.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(decode(latents, 0, [0]), expected, atol=1e-6)
    owned = Decoder.read(f"tiny:{tmp_path / 'a'}").load(model).parameters()
    assert [part.shape for part in owned] == [part.shape for part in network.decoder.parameters()] and owned
    assert Decoder.read("full").load(model).parameters() == []
    model.dtype = torch.bfloat16
    [kind] = {part.dtype for part in Decoder.read(f"tiny:{tmp_path / 'a'}").load(model).parameters()}
    assert kind == torch.bfloat16
    found, wanted = (
        torch.autograd.grad(images.square().sum(), latents)[0] for images in (decode(latents, 0, [0]), expected)
    )
    assert torch.allclose(found, wanted, atol=1e-6) and wanted.abs().max() > 1e-3


def test_which_decoders_are_the_same_run(tmp_path: Path) -> None:
    """Those with the same gradient, and a tiny one with the same weights wherever it lies."""
    here, moved, other = tiny(tmp_path / "a"), tiny(tmp_path / "moved"), tiny(tmp_path / "other", seed=1)
    again = {"full": ("auto", "recomputed", "full"), here: (moved,), "crop:0.5": ("crop:0.50",)}
    for number, (began, same) in enumerate(again.items()):
        folder = tmp_path / f"run{number}"
        learned(folder, replace(BASE, decoder=began))
        for decoder in same:
            trainer(folder, replace(BASE, decoder=decoder), resume=True).run()
        for decoder in {"auto", here, "crop:0.5", "crop:0.6"} - {began, *same}:
            with pytest.raises(ValueError, match=r"decoder: the run was started with .*, now it is"):
                trainer(folder, replace(BASE, decoder=decoder), resume=True).run()
    with pytest.raises(ValueError, match=r"model: the tiny decoder is not what the run was started with\."):
        trainer(tmp_path / "run1", replace(BASE, decoder=other), resume=True).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"latent_channels": 4},
            r"Got latents \[1, 3, 8, 8\] for the tiny decoder x, expected \[B,4,h,w\]\. It belongs",
        ),
        (
            {"num_decoder_blocks": (1, 1), "decoder_block_out_channels": (8, 8)},
            r"Got pictures \[3, 16, 16\] from the tiny decoder x where small makes \[3, 8, 8\] of the same latents",
        ),
    ],
)
def test_a_tiny_decoder_of_another_model_is_refused(tmp_path: Path, options: dict, words: str) -> None:
    decoder = tiny(tmp_path / "x", **options)
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path / "run", replace(BASE, decoder=decoder)).run()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"], "before anything is written"
    with pytest.raises(ValueError, match=words):
        adapt(SmallModel(), Curved(), ["ice"], [1], start_of(SmallModel()), replace(ADAPT, decoder=decoder))


def test_a_tiny_decoder_for_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Got latents \[1, 3, 5, 8, 8\] for the tiny decoder x, .* try crop:0\.5\."):
        Decoder.read(tiny(tmp_path / "x")).load(SmallVideo())


def test_the_file_is_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "x")
    assert RunConfig(decoder="tiny:x").anchored().decoder == f"tiny:{tmp_path / 'x'}"
    assert RunConfig(decoder="crop:0.5").anchored().decoder == "crop:0.5"
