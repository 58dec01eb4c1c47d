"""The one value that says how pictures are made: mappings, words, faults, and what training draws from."""

from dataclasses import replace

import pytest

from reneg_core.guidance import Guidance
from reneg_core.sampling import Jitter, Sampling, Size

FULL = Sampling("dpmpp_2m", 20, "karras", Guidance(5.0, 0.1, 0.9, 0.3), Size(512, 768))


def test_mapping_round_trip() -> None:
    assert Sampling.from_mapping(FULL.to_mapping()) == FULL
    assert FULL.to_mapping() == {
        "solver": "dpmpp_2m", "steps": 20, "spacing": "karras", "guidance_scale": 5.0, "guidance_start": 0.1,
        "guidance_end": 0.9, "guidance_rescale": 0.3, "guidance_attention": 0.0, "height": 512, "width": 768,
        "frames": None,
    }  # fmt: skip
    assert Sampling.from_mapping({}) == Sampling() and Sampling().spacing == "model"
    assert Sampling.from_mapping({"guidance_scale": 3}).guidance.scale == 3.0


def test_words() -> None:
    assert Sampling("euler", 10, "trailing").at_scale(3.0).describe() == (
        "10 Euler steps, trailing spacing, guidance scale 3"
    )
    assert FULL.describe() == (
        "20 DPM-Solver++(2M) steps, karras spacing, guidance scale 5, guidance from 0.1 to 0.9, rescale 0.3, "
        "768x512 pixels"
    )
    assert (
        Sampling(steps=1, size=Size(height=64)).describe()
        == "1 Euler step, model spacing, guidance scale 7.5, nativex64 pixels"
    )
    assert (
        Sampling(guidance=Guidance(1.0, attention=4.5)).describe().endswith("guidance scale 1, attention guidance 4.5")
    )
    assert Sampling(size=Size(frames=49)).describe().endswith("guidance scale 7.5, 49 frames")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"solver": "heun"}, "Got solver 'heun', expected one of euler, ddim, dpmpp_2m"),
        ({"spacing": "even"}, "Got spacing 'even', expected one of model, leading, trailing, karras"),
        ({"steps": 0}, "Got 0 sampling steps, expected a whole number of 1 or more"),
        ({"steps": 2.5}, "steps: got 2.5, expected a whole number"),
        ({"steps": True}, "steps: got True, expected a whole number"),
        ({"guidance_scal": 3}, "guidance_scal: unknown setting, did you mean guidance_scale"),
        ({"guidance_scale": "much"}, "guidance_scale: got 'much', expected a number"),
        ({"guidance_scale": float("inf")}, "Got the guidance scale inf, expected a finite number"),
        ({"guidance_rescale": 2}, "Got guidance rescale 2.0, expected a number from 0"),
    ],
)
def test_faults(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling.from_mapping(values)


def test_two_faults_come_at_once() -> None:
    with pytest.raises(ValueError, match=r"solver 'heun'.*spacing 'even'.*0 sampling steps"):
        Sampling("heun", 0, "even")


def test_changes_and_equality() -> None:
    assert FULL.changed(steps=5, width=None) == replace(FULL, steps=5, size=Size(512))
    assert Sampling("ddim").equals(Sampling("euler")) and not Sampling("ddim").equals(Sampling("dpmpp_2m"))
    assert not Sampling().equals(Sampling(steps=29)) and not Sampling().equals(Sampling().at_scale(7.4))


JITTER = Jitter(("euler", "dpmpp_2m"), (10, 20, 30), ("trailing", "karras"), (2.0, 3.0, 5.0))


def test_a_draw_is_a_function_of_its_seed() -> None:
    draws = [JITTER.draw(FULL, 0, step) for step in range(200)]
    assert draws == [JITTER.draw(FULL, 0, step) for step in range(200)]
    assert draws != [JITTER.draw(FULL, 1, step) for step in range(200)]
    combinations = {(d.solver, d.steps, d.spacing, d.guidance.scale) for d in draws}
    assert len(combinations) == 2 * 3 * 2 * 3
    assert {(d.guidance.start, d.guidance.rescale, d.size) for d in draws} == {(0.1, 0.3, Size(512, 768))}


def test_what_has_no_set_keeps_its_value() -> None:
    assert all(Jitter().draw(FULL, step) == FULL for step in range(20)) and not Jitter()
    only = Jitter(steps=(5, 6))
    assert {replace(only.draw(FULL, step), steps=20) for step in range(20)} == {FULL} and only
    assert Jitter.from_mapping(JITTER.to_mapping()) == JITTER


def test_a_set_holds_only_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"Got solver 'heun'.*Got 0 sampling steps"):
        Jitter(solver=("heun",), steps=(0,))
