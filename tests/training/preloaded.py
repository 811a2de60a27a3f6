"""What every world imports, once: the process that worlds are forked from imports this module."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import peft  # noqa: F401
import transformers  # noqa: F401

import chameleon_ray.training.worker  # noqa: F401
