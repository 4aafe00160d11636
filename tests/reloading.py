"""Whether a checkpoint answers as the model that it was saved from did."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitladder import quantization
from bitladder.checkpoint import loading
from bitladder.quantization import Checkpoint

TOKEN_IDS = [[5, 17, 250, 301, 9, 44, 3, 120], [7, 7, 300, 12, 66, 1, 2, 299]]

RELOAD = """
import sys
from pathlib import Path
import torch
from bitladder.checkpoint.loading import load_model
ids = torch.tensor({ids})
for directory in sys.argv[1:]:
    with torch.inference_mode():
        torch.save(load_model(Path(directory))(ids).logits, directory + ".logits")
"""


@contextmanager
def made_models() -> Iterator[list[Any]]:
    """The models that are loaded to be quantized from now on, one for each checkpoint that is really made."""
    models: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        models.append(loading.load_pretrained(*args, **options))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "load_pretrained", load)
        yield models


def forward(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor(TOKEN_IDS)).logits


def reloaded_logits(checkpoints: list[Checkpoint], folder: Path) -> list[Any]:
    """Logits of the checkpoints, loaded in one new process from copies: nothing of this process helps."""
    import torch

    places = [shutil.copytree(made.directory, folder / made.manifest.rung) for made in checkpoints]
    subprocess.run([sys.executable, "-c", RELOAD.format(ids=TOKEN_IDS), *map(str, places)], check=True, timeout=150)
    return [torch.load(f"{place}.logits") for place in places]
