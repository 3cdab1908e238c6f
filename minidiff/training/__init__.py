"""Training: the loop, the averaged weights, the files they are kept in."""

from .checkpoint import load, save
from .ema import EMA
from .muon import Muon
from .trainer import TrainConfig, Trainer

__all__ = ["EMA", "Muon", "TrainConfig", "Trainer", "load", "save"]
