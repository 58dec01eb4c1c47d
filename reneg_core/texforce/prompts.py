"""The prompt sets of TexForce's single-prompt experiments (arXiv 2311.15657)."""

PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "hand": ("A photo of a hand",),
    "face": ("a complete face of a man", "a complete face of a woman"),
    "color": ("a green colored rabbit",),
    "count": ("Four wolves in the forest",),
    "comp": ("A cat and a dog",),
    "location": ("A dog on the moon",),
}
"""By the names that its scripts know them by."""
