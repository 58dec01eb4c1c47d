"""Comparing negatives: what is drawn (:class:`Pairs`), sampled and scored (:func:`evaluate`), how sure it is
(:class:`Evaluation`), and the page that says so (:func:`write_report`). Published protocols are in :mod:`.protocols`.

Arrows point one way: report -> plots, words, pictures -> results -> pairs, statistics; modes -> compare -> results.
"""

from .compare import Keep, Measure, Mode, PartsMeasure, evaluate
from .live import live_picture, picture_row
from .modes import Judges, Rivals, Words, adapt_all, build_modes, compare_rivals, exaggerate, fitted
from .pairs import Pairs
from .pictures import grid, to_image
from .plots import comparison, learning_curve
from .report import grid_of, prepare_folder, write_report
from .results import Evaluation, Halves, Pictures
from .statistics import Estimate, estimate, share, wins
from .words import cautions, headline

__all__ = [
    "Estimate",
    "Evaluation",
    "Halves",
    "Judges",
    "Keep",
    "Measure",
    "Mode",
    "Pairs",
    "PartsMeasure",
    "Pictures",
    "Rivals",
    "Words",
    "adapt_all",
    "build_modes",
    "cautions",
    "compare_rivals",
    "comparison",
    "estimate",
    "evaluate",
    "exaggerate",
    "fitted",
    "grid",
    "grid_of",
    "headline",
    "learning_curve",
    "live_picture",
    "picture_row",
    "prepare_folder",
    "share",
    "to_image",
    "wins",
    "write_report",
]
