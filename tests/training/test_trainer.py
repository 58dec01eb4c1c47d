"""Global training: it climbs, resumes bit for bit, stops cleanly, survives memory faults and refuses bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import Constant, Curved

from reneg_core import load_embedding
from reneg_core.training import ConfigError, TrainConfig, Trainer
from reneg_core.training.state import load_state
from reneg_core.training.workers import Workers

PROMPTS = ["a red fox", "blue", "sun over sea", "an old door", "ice"]
QUICK = TrainConfig(
    steps=6, batch_size=4, micro_batch=2, sampling_steps=3, learning_rate=0.05, validation_pairs=3, validate_every=2,
    checkpoint_every=2, guidance_scale=4.0, points=1, window=(0, 3),
)  # fmt: skip


def trainer(model, folder: Path, config: TrainConfig = QUICK, **options: object) -> Trainer:
    return Trainer(model, options.pop("reward", Curved()), PROMPTS, PROMPTS[:2], config, folder, **options)


def records(folder: Path, event: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_reward_rises_and_files_are_there(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, steps=20, validate_every=10)).run()
    assert result.reason == "done" and result.steps == 20
    assert result.best_reward > result.start_reward + 0.02
    saved = load_embedding(tmp_path / "negative.safetensors")
    assert torch.equal(saved.tokens, result.embedding.tokens)
    assert saved.provenance.steps == result.best_step and saved.provenance.rewards == "curved"
    assert saved.provenance.base_digest == model.digest() and len(saved.provenance.prompts_digest) == 64
    assert [r["step"] for r in records(tmp_path, "validation")] == [0, 10, 20]
    assert len(records(tmp_path, "step")) == 20


def test_the_best_is_never_below_the_start(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, learning_rate=50.0)).run()
    assert result.best_reward >= result.start_reward
    validations = records(tmp_path, "validation")
    assert result.best_reward == max(record["reward"] for record in validations)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_resume_equals_an_unbroken_run(model, tmp_path: Path, stop_after: int) -> None:
    whole = trainer(model, tmp_path / "whole").run()
    calls = {"steps": 0}

    class Count:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            calls["steps"] += 1

    broken = trainer(model, tmp_path / "broken", observer=Count, should_stop=lambda: calls["steps"] >= stop_after).run()
    assert broken.reason == "stopped" and broken.steps == stop_after
    resumed = trainer(model, tmp_path / "broken", resume=True).run()
    assert torch.equal(resumed.embedding.tokens, whole.embedding.tokens)
    for event, fields in (("step", ("step", "reward", "gradient_norm")), ("validation", ("step", "reward", "best"))):
        pick = [[[r[f] for f in fields] for r in records(tmp_path / run, event)] for run in ("whole", "broken")]
        assert pick[0] == pick[1]
    states = [load_state(tmp_path / run / "checkpoints/step-00000006.safetensors")[0] for run in ("whole", "broken")]
    assert torch.equal(states[0].first["tokens"], states[1].first["tokens"])
    assert torch.equal(states[0].tensors["tokens"], states[1].tensors["tokens"])


def test_a_killed_run_resumes_from_its_last_checkpoint(model, tmp_path: Path) -> None:
    whole = trainer(model, tmp_path / "whole").run()

    class Killed(BaseException):
        pass

    class Kill:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            if record["step"] == 5:
                raise Killed

    with pytest.raises(Killed):
        trainer(model, tmp_path / "killed", observer=Kill).run()
    (tmp_path / "killed/checkpoints/step-00000005.safetensors").write_bytes(b"half a file")
    resumed = trainer(model, tmp_path / "killed", resume=True).run()
    assert torch.equal(resumed.embedding.tokens, whole.embedding.tokens)
    assert [r["step"] for r in records(tmp_path / "killed", "step")] == [1, 2, 3, 4, 5, 6]


class Fragile:
    """Passes everything on to a model, but has memory for only ``limit`` rows."""

    def __init__(self, model, limit: int) -> None:
        self._model, self._limit = model, limit

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def run(self, work):
        return work(self)

    def denoise(self, x, sigma, conditioning):
        if x.shape[0] > self._limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self._model.denoise(x, sigma, conditioning)


def test_out_of_memory_halves_the_micro_batch(model, tmp_path: Path) -> None:
    config = replace(QUICK, micro_batch=4)
    result = trainer(Fragile(model, 2), tmp_path / "fragile", config).run()
    assert [r["micro_batch"] for r in records(tmp_path / "fragile", "out_of_memory")] == [1]
    roomy = trainer(model, tmp_path / "roomy", config).run()
    assert torch.allclose(result.embedding.tokens, roomy.embedding.tokens, atol=1e-3)


def test_out_of_memory_with_one_row_is_reported(model, tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trainer(Fragile(model, 0), tmp_path).run()


def test_shares_cover_a_batch_without_overlap() -> None:
    workers = Workers()
    shares = []
    for workers.rank in range(3):
        workers.count = 3
        shares.append(workers.share(range(8)))
    assert [row for share in shares for row in share] == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_patience_stops_early(model, tmp_path: Path) -> None:
    config = replace(QUICK, patience=2, validate_every=1)
    result = trainer(model, tmp_path, config, reward=Constant()).run()
    assert (result.reason, result.steps, result.best_step) == ("patience", 2, 0)
    again = trainer(model, tmp_path, config, reward=Constant(), resume=True).run()
    assert (again.reason, again.steps) == ("patience", 2)


def test_watched_reward_vetoes_the_best(model, tmp_path: Path) -> None:
    class Opposite(Curved):
        name = "opposite"

        def _score(self, images, prompts):
            return -super()._score(images, prompts)

    config = replace(QUICK, steps=10, watch_drop=0.001)
    result = trainer(model, tmp_path, config, watch=Opposite()).run()
    validations = records(tmp_path, "validation")
    assert validations[-1]["reward"] > validations[0]["reward"] and not validations[-1]["best"]
    assert validations[-1]["watch"] < validations[0]["watch"]
    assert result.best_step == 0


def test_norm_limit_bounds_every_token(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, learning_rate=1.0, norm_limit=0.1)).run()
    origin = model.encode([""]).tokens
    state, _ = load_state(result.directory / "checkpoints/step-00000006.safetensors")
    distance = (state.tensors["tokens"] - origin).norm(dim=-1)
    assert distance.max() <= 0.1 * origin.norm(dim=-1).mean() * 1.001
    assert distance.max() > 0


def test_gradients_that_are_not_finite_stop_the_run_with_the_best_saved(model, tmp_path: Path) -> None:
    class Broken(Curved):
        def _score(self, images, prompts):
            return super()._score(images, prompts) * (float("nan") if images.requires_grad else 1.0)

    with pytest.raises(FloatingPointError, match=r"5 steps in a row at step 5.*Try --dtype bf16 or fp32"):
        trainer(model, tmp_path, reward=Broken()).run()
    assert torch.equal(load_embedding(tmp_path / "best.safetensors").tokens, model.encode([""]).tokens)


def test_starts_from_a_prompt_or_an_embedding(model, tmp_path: Path) -> None:
    config = replace(QUICK, steps=1, learning_rate=1e-9)
    text = trainer(model, tmp_path / "text", replace(config, init="ugly blur")).run()
    assert torch.allclose(text.embedding.tokens, model.encode(["ugly blur"]).tokens, atol=1e-6)
    path = str(tmp_path / "text/negative.safetensors")
    again = trainer(model, tmp_path / "file", replace(config, init=path)).run()
    assert torch.allclose(again.embedding.tokens, text.embedding.tokens, atol=1e-6)


def test_another_run_in_the_folder_is_not_overwritten(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, replace(QUICK, steps=1)).run()
    with pytest.raises(ValueError, match=r"holds a run at step 1 already\. Try resuming it, or another output folder"):
        trainer(model, tmp_path)


def test_resuming_with_other_settings_names_them(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, replace(QUICK, steps=1)).run()
    with pytest.raises(ValueError, match=r"learning_rate: the run was started with 0\.05, now it is 0\.1"):
        trainer(model, tmp_path, replace(QUICK, steps=1, learning_rate=0.1), resume=True).run()


def test_empty_prompts_are_refused_before_work(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got no training prompts, expected at least one non-empty line"):
        Trainer(model, Curved(), ["", "  "], PROMPTS, QUICK, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_all_faults_of_a_configuration_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=0, guidance_scale=1.0, solver="heun", window=(5, 40), points=99)
    text = str(caught.value)
    assert all(name in text for name in ("steps: got 0", "guidance_scale: got 1.0", "solver: got 'heun'", "window:"))


def test_unknown_settings_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="learning_rat: unknown setting, did you mean learning_rate"):
        TrainConfig.from_mapping({"learning_rat": 1e-3})
    with pytest.raises(ConfigError, match="steps: got 'many', expected a whole number"):
        TrainConfig.from_mapping({"steps": "many"})
    assert TrainConfig.from_mapping({"learning_rate": "5e-3", "window": [20, 30]}).window == (20, 30)


def test_defaults_are_the_papers_recipe() -> None:
    config = TrainConfig()
    assert (config.steps, config.batch_size, config.learning_rate) == (4000, 64, 5e-3)
    assert (config.sampling_steps, config.gradient_window, config.guidance_scale) == (30, (20, 30), 7.5)
