"""Evaluation: obedience to words, variety, distances between sets of pictures, and a judge trained on real ones."""

from .judge import Judge, floors, judge_samples, load_or_train_judge, train_judge
from .metrics import frechet_distance, kernel_distance
from .zero_shot import zero_shot_answers, zero_shot_table

__all__ = [
    "Judge", "floors", "frechet_distance", "judge_samples", "kernel_distance", "load_or_train_judge", "train_judge",
    "zero_shot_answers", "zero_shot_table",
]
