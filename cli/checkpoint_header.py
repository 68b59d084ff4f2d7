"""Header of a checkpoint (``.safetensors``) read without torch: eight bytes of length, then JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from accel.errors import CheckpointError

FORMAT = "m3vit-checkpoint"
MAX_HEADER = 100_000_000
"""Longest header that the format allows, bytes."""

_OPTIMIZER = "optimizer/"
_FIELDS = {"stage": str, "step": int, "network": dict, "options": dict, "metrics": dict, "extra": dict}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says about itself, ready for JSON; no tensor is read.

    Raises:
        CheckpointError: not a checkpoint of this project, pickled, truncated or damaged.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            # A length may begin with 0x80, as pickles do, but then it fits into the file.
            pickled = start[:1] == b"\x80" and size + 8 > source.stat().st_size
            if start[:4] == b"PK\x03\x04" or pickled:
                raise CheckpointError(
                    f"{source}: expected a {FORMAT} (.safetensors), found a pickle file (torch.save): not read, "
                    "because loading it would run code stored in it"
                )
            if len(start) < 8 or size > MAX_HEADER:
                raise CheckpointError(f"{source}: expected a {FORMAT} (.safetensors) or a bundle, found another file")
            text = file.read(size)
        if len(text) != size:
            raise CheckpointError(f"{source}: header: expected {size} bytes, found {len(text)}")
        tensors = json.loads(text)
        metadata = tensors.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise CheckpointError(f"{source}: format: expected {FORMAT!r}, found {metadata['format']!r}")
        header = json.loads(metadata["header"])
        weights = {name: entry for name, entry in tensors.items() if not name.startswith(_OPTIMIZER)}
        parameters = sum(math.prod(entry["shape"]) for entry in weights.values())
    except OSError as error:
        raise CheckpointError(f"{source}: cannot read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source}: expected a {FORMAT}, found a damaged or foreign header: {error!r}") from error
    for name, kind in _FIELDS.items():
        if not isinstance(header, dict) or not isinstance(header.get(name), kind):
            raise CheckpointError(f"{source}: header: {name}: expected {kind.__name__}")
    return {
        "type": "checkpoint",
        "path": str(source),
        **{name: header[name] for name in _FIELDS},
        "tensors": len(weights),
        "parameters": parameters,
        "optimizer_tensors": len(tensors) - len(weights),
        "bytes": source.stat().st_size,
    }
