"""The LoRA: inside the encoders and out again, in every layout of files, read by diffusers and PEFT, fused, refused."""

import json
import logging
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from builders import pipeline
from pipelines import sdxl
from safetensors.torch import load_file
from tunable import LAYER, TunableSmall, encoded, random_lora

from reneg_core.backends import wrap
from reneg_core.embedding import Provenance
from reneg_core.texforce.adapter import attached
from reneg_core.texforce.lora import TextLora, fuse, load_text_lora


def equal(one: TextLora, other: TextLora, atol: float = 1e-6) -> bool:
    a, b = one.deltas(), other.deltas()
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol) for name in a)


# inside the encoders


@pytest.mark.parametrize("make", [pipeline, sdxl])
def test_encoders_are_as_before_afterwards(make) -> None:
    model = wrap(make(), "random")
    before = {n: [*m.state_dict()] for n, m in model.text_encoders().items()}
    plain, contents, state = encoded(model), model.contents(), torch.random.get_rng_state()
    lora = random_lora(model.text_encoders())
    assert torch.equal(torch.random.get_rng_state(), state), "nobody's random numbers are touched"
    tuned = encoded(model, lora)
    assert (tuned - plain).abs().max() > 0.01
    assert torch.equal(encoded(model), plain) and model.contents() == contents
    assert before == {n: [*m.state_dict()] for n, m in model.text_encoders().items()}
    assert not any(hasattr(m, "peft_config") for m in model.text_encoders().values())
    with pytest.raises(RuntimeError), attached(model.text_encoders(), 2, 2.0, 0):
        raise RuntimeError
    assert torch.equal(encoded(model), plain)


def test_both_encoders_of_sdxl_are_tuned() -> None:
    model = wrap(sdxl(), "random")
    lora = random_lora(model.text_encoders())
    assert lora.encoders == ["text_encoder", "text_encoder_2"]
    halves = [TextLora({n: p for n, p in lora.layers.items() if n.startswith(f"{e}.")}) for e in lora.encoders]
    first = model.text_encoders()["text_encoder"].config.hidden_size
    for part, (same, other) in zip(
        halves, ((slice(first, None), slice(first)), (slice(first), slice(first, None))), strict=True
    ):
        with attached(model.text_encoders(), lora.rank, float(lora.rank), 0) as adapter:
            tensors = {name: torch.zeros_like(p) for name, p in adapter.parameters.items()}
            for name, (down, up) in part.layers.items():
                tensors |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
            adapter.load(tensors)
            moved = model.encode(["a fox"]).tokens - encoded_plain(model, adapter)
        assert moved[..., same].abs().max() < 1e-6 and moved[..., other].abs().max() > 0.01


def encoded_plain(model, adapter) -> torch.Tensor:
    held = {name: p.detach().clone() for name, p in adapter.parameters.items()}
    adapter.load({name: torch.zeros_like(p) for name, p in held.items()})
    try:
        return model.encode(["a fox"]).tokens
    finally:
        adapter.load(held)


def test_it_begins_as_nothing_from_its_own_seed(model) -> None:
    plain, found = encoded(model), []
    for seed in (0, 0, 1):
        with attached(model.text_encoders(), 4, 8.0, seed) as adapter:
            assert torch.equal(model.encode(["a fox", "sun"]).tokens, plain)
            assert {p.dtype for p in adapter.parameters.values()} == {torch.float32} and adapter.scale == 2.0
            found.append({name: p.detach().clone() for name, p in adapter.parameters.items()})
    downs = [torch.cat([p.flatten() for n, p in one.items() if n.endswith("lora_A")]) for one in found]
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert downs[0].std().item() == pytest.approx(1 / 4, rel=0.05)
    assert len(found[0]) == 2 * 4 * 2, "two layers, four projections, A and B"


def test_half_precision_encoders_keep_a_float32_lora() -> None:
    model = wrap(pipeline().to(torch.bfloat16), "half")
    with attached(model.text_encoders(), 2, 2.0, 0) as adapter:
        tokens = model.encode(["a fox"], gradient=True).tokens
        tokens.square().mean().backward()
        grads = {p.grad.dtype for n, p in adapter.parameters.items() if n.endswith("lora_B")}
    assert tokens.dtype == torch.float32 and grads == {torch.float32}


def test_the_gradient_is_recorded_only_where_asked(model) -> None:
    with attached(model.text_encoders(), 2, 2.0, 0):
        assert model.encode(["a fox"], gradient=True).tokens.requires_grad
        with torch.enable_grad():
            assert not model.encode(["a fox"]).tokens.requires_grad
    assert not model.encode(["a fox"], gradient=True).tokens.requires_grad, "nothing to learn, nothing recorded"


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(ImportError, match=r"need the package peft\. Try: pip install peft"),
        attached(TunableSmall().text_encoders(), 2, 2.0, 0),
    ):
        pass


def test_an_encoder_of_another_kind_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="Got text_encoder of class Linear without the projections q_proj"),
        attached({"text_encoder": torch.nn.Linear(2, 2)}, 2, 2.0, 0),
    ):
        pass


# files


@pytest.mark.parametrize("make", [pipeline, sdxl])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_every_layout_reads_back_and_does_in_diffusers_what_it_does_here(
    make, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one notice that diffusers gives is that the file has nothing for the UNet, which is so."""
    model = wrap(make(), "random")
    lora = random_lora(model.text_encoders())
    path = lora.save(tmp_path / "lora.safetensors", layout)
    assert equal(load_text_lora(path), lora)
    ours = encoded(model, lora)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        model.pipeline.load_lora_weights(str(path))
    finally:
        logger.removeHandler(caplog.handler)
    theirs = model.encode(["a fox", "sun"]).tokens
    assert (theirs - ours).abs().max() < 1e-4 and (theirs - encoded(wrap(make(), "random"))).abs().max() > 0.01
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all("No LoRA keys associated to UNet2DConditionModel" in line for line in said) and len(said) <= 1


@pytest.mark.parametrize("make", [pipeline, sdxl])
def test_the_adapter_folder_is_pefts(make, tmp_path: Path) -> None:
    model = wrap(make(), "random")
    lora, encoders = random_lora(model.text_encoders()), model.text_encoders()
    lora.save_adapters(tmp_path / "adapter", {name: hasattr(e, "text_model") for name, e in encoders.items()})
    assert equal(load_text_lora(tmp_path / "adapter"), lora)
    ours = encoded(model, lora)
    for name, encoder in encoders.items():
        folder = tmp_path / "adapter" / (name if len(encoders) > 1 else "")
        tuned = peft.PeftModel.from_pretrained(encoder, folder)
        setattr(model.pipeline, name, tuned.merge_and_unload())
    assert (model.encode(["a fox", "sun"]).tokens - ours).abs().max() < 1e-4


def published(folder: Path, lora: TextLora, alpha: float, name: str = "adapter_model.bin", **config: object) -> Path:
    """A folder as TexForce publishes them: pickled, with alpha beside it."""
    folder.mkdir()
    tensors = {}
    for layer, (down, up) in lora.layers.items():
        stem = "base_model.model." + layer.removeprefix("text_encoder.")
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up * lora.rank / alpha}
    torch.save(tensors, folder / name)
    settings = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": alpha, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("layers", [2, 24])
def test_published_adapters_are_read(layers: int, tmp_path: Path) -> None:
    """Also those of a whole encoder: their pickles are longer than an embedding's may be."""
    generator = torch.Generator().manual_seed(0)
    names = [
        f"text_encoder.text_model.encoder.layers.{n}.self_attn.{p}_proj"
        for n in range(layers)
        for p in ("q", "k", "v", "out")
    ]
    lora = TextLora(
        {n: (torch.randn(4, 8, generator=generator), torch.randn(8, 4, generator=generator)) for n in names}
    )
    folder = published(tmp_path / "adapter", lora, alpha=32)
    assert equal(load_text_lora(folder), lora, 1e-5) and equal(load_text_lora(folder / "adapter_model.bin"), lora, 1e-5)
    assert load_text_lora(folder).encoders == ["text_encoder"]


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("boo",))

    folder = published(tmp_path / "adapter", random_lora(TunableSmall().text_encoders()), 4)
    torch.save({"a": Evil()}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"Refused adapter_model\.bin: .* which could run code"):
        load_text_lora(folder)


def halves(stem: str, a: tuple[int, int] = (2, 3), b: tuple[int, int] = (3, 2)) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_A.weight": torch.ones(a), f"{stem}.lora_B.weight": torch.ones(b)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (halves("unet.down"), r"for 'unet\.down' in .*expected layers of text encoders alone"),
        ({"weird": torch.ones(1)}, "Got the key 'weird' in .*expected a LoRA of text encoders alone"),
        ({f"{LAYER.format(1)}.lora_A.weight": torch.ones(2, 3)}, "Got half of a LoRA for .*layers.1.*expected both"),
        (halves(LAYER.format(0), a=(4, 3)), r"Got A of shape \[4, 3\] and B of \[3, 2\]"),
        ({f"{LAYER.format(0)}.lora_A.weight": torch.full((2, 3), torch.nan)}, "Got NaN or infinite values in the LoRA"),
        (halves("text_encoder.projection"), "expected layers of a CLIP text encoder only"),
    ],
)
def test_what_is_no_lora_of_a_text_encoder_is_refused(tensors, words: str, tmp_path: Path) -> None:
    torch.save(halves(LAYER.format(0)) | tensors, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match=words):
        load_text_lora(tmp_path / "lora.pt")


def test_what_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"No LoRA at .*none\. Expected a file, or a folder with adapter_config"
    ):
        load_text_lora(tmp_path / "none")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_text_lora(tmp_path / "bad.safetensors")
    folder = published(tmp_path / "dora", random_lora(TunableSmall().text_encoders()), 4, use_dora=True)
    with pytest.raises(ValueError, match=r"Got use_dora in .*expected a plain LoRA"):
        load_text_lora(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="Got no valid JSON"):
        load_text_lora(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"No adapter_model\.safetensors or adapter_model\.bin in"):
        load_text_lora(folder)


def test_alpha_is_a_part_of_what_is_read(tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 3), f"{stem}.lora_up.weight": torch.ones(3, 2)}
    torch.save({**tensors, f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "half.pt")
    torch.save(tensors, tmp_path / "whole.pt")
    found = [load_text_lora(tmp_path / f"{name}.pt").deltas()[LAYER.format(0)] for name in ("half", "whole")]
    assert torch.equal(found[0], torch.ones(3, 3)) and torch.equal(found[1], torch.full((3, 3), 2.0))


def test_a_file_says_where_it_came_from(tmp_path: Path) -> None:
    lora = random_lora(TunableSmall().text_encoders())
    told = TextLora(lora.layers, Provenance(base_model="sd15", rewards="tiny", steps=7))
    path = told.save(tmp_path / "lora.safetensors")
    assert load_text_lora(path).provenance.rewards == "tiny" and load_text_lora(path).provenance.steps == 7
    assert path.read_bytes() == told.save(tmp_path / "again.safetensors").read_bytes()
    assert not any(name.endswith("alpha") for name in load_file(path))
    with pytest.raises(ValueError, match="Got the layout 'odd', expected one of diffusers, kohya"):
        lora.save(path, "odd")


# fusing


def test_fusing_adds_up_exactly(tmp_path: Path) -> None:
    encoders = TunableSmall().text_encoders()
    one, other = random_lora(encoders, 2), random_lora(encoders, 3, seed=1)
    both = fuse([(one, 0.75), (other, -0.5)])
    assert both.rank == 5
    for name, delta in both.deltas().items():
        assert torch.allclose(delta, 0.75 * one.deltas()[name] - 0.5 * other.deltas()[name], atol=1e-6)
    read = load_text_lora(both.save(tmp_path / "both.safetensors"))
    assert equal(read, both) and [p["weight"] for p in read.provenance.notes["parts"]] == [0.75, -0.5]
    part = TextLora({name: pair for name, pair in one.layers.items() if "q_proj" in name})
    assert len(fuse([(part, 1.0), (other, 1.0)]).layers) == len(other.layers)


def test_what_cannot_be_fused_is_said() -> None:
    one, wide = (
        random_lora(TunableSmall().text_encoders()),
        TextLora({LAYER.format(0): (torch.ones(1, 9), torch.ones(9, 1))}),
    )
    with pytest.raises(ValueError, match=r"Got layers of 3x3 and 9x9 for .*expected LoRAs of the same text encoder"):
        fuse([(one, 1.0), (wide, 1.0)])
    with pytest.raises(ValueError, match="Got nothing to fuse"):
        fuse([])
    with pytest.raises(ValueError, match="Got the weight inf"):
        fuse([(one, float("inf"))])


def test_a_folder_moves_with_its_parts(tmp_path: Path) -> None:
    lora = random_lora(wrap(sdxl(), "random").text_encoders())
    lora.save_adapters(tmp_path / "a", {"text_encoder": False, "text_encoder_2": True})
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert equal(load_text_lora(tmp_path / "b"), lora)
