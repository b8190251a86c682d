"""Papers are importable (`from attention.external_attention import …`); torch uses one thread."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
torch.set_num_threads(1)
