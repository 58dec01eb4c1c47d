"""Which frames of a clip are judged, and by what."""

import torch

from reneg_core.clips import by_picture, evenly


def test_frames_lie_in_the_middle_of_equal_parts() -> None:
    assert evenly(16, 4) == [2, 6, 10, 14] and evenly(9, 1) == [4] and evenly(3, 4) == evenly(3, 0) == [0, 1, 2]
    assert evenly(161, 4) == [20, 60, 100, 140]


def test_a_clip_is_judged_by_the_mean_of_its_frames() -> None:
    clips, seen = torch.rand(2, 3, 3, 4, 4), []

    def judge(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(prompts)
        return images.mean((1, 2, 3))

    assert torch.allclose(by_picture(judge, clips, ["a", "b"]), clips.mean((1, 2, 3, 4)), atol=1e-6)
    assert seen == [["a"] * 3 + ["b"] * 3]
    parts = by_picture(lambda images, prompts: {"grey": judge(images, prompts)}, clips, ["a", "b"])
    assert torch.allclose(parts["grey"], clips.mean((1, 2, 3, 4)), atol=1e-6)
    assert by_picture(judge, clips[:, 0], ("a", "b")).shape == (2,)
    assert by_picture(lambda images, prompts: "nothing", clips, ["a", "b"]) == "nothing"
