"""A checkpoint whose header length begins with 0x80, as a pickle does, is a checkpoint like any other."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from accel.errors import CheckpointError
from cli.checkpoint_header import read_header
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def test_every_header_length_is_read(tmp_path: Path) -> None:
    path, first_bytes = tmp_path / "c.safetensors", set()
    for padding in range(0, 256, 8):
        checkpoint = Checkpoint({"w": torch.ones(2)}, "float", 1, {}, extra={"padding": "x" * padding})
        save_checkpoint(path, checkpoint)
        first_bytes.add(path.read_bytes()[0])
        assert load_checkpoint(path).extra == read_header(path)["extra"] == checkpoint.extra
    assert 0x80 in first_bytes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_still_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps({"state_dict": {}, "epoch": 3, "text": "{" * 50}, protocol))
    for read in (load_checkpoint, read_header):
        with pytest.raises(CheckpointError, match="pickle"):
            read(path)
