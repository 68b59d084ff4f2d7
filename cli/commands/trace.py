"""``m3vit trace``: record where the tokens of real images go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.console import emit_json, json_option, note, progress, quiet_option, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from accel.config import Network


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, .npz.")
@click.option("--frames", default=4, show_default=True, type=click.IntRange(min=1), help="Images to record.")
@click.option("--images", type=click.Path(), help="Folder with PNG or JPEG images. Default: rendered scenes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the rendered scenes.")
@json_option
@quiet_option
def command(bundle: str, out: Path, frames: int, images: str | None, seed: int, as_json: bool, quiet: bool) -> None:
    """Run BUNDLE's golden model on images, all tasks, and record which experts every token chose.

    The file names its network; `m3vit simulate` refuses it for any other.

    \b
    Examples:
      m3vit trace build/bundle --out trace.npz
      m3vit trace build/bundle --out trace.npz --images photos --frames 16
      m3vit simulate build/bundle --routing trace.npz --json
    """
    import numpy as np

    from accel.bundle import open_bundle
    from accel.errors import ConfigError
    from sim.trace import record_trace, save_trace

    if out.suffix != ".npz":
        raise ConfigError(f"{out}: expected a file name that ends with .npz")
    opened = open_bundle(bundle)
    net = opened.config.network
    count, pixels = _images(net, images, frames, seed)
    with progress(count, "trace", "image", quiet) as bar:
        trace = record_trace(opened.encoder, pixels, bar.update)
    save_trace(out, trace)
    used = {
        task: [len(np.unique(trace.chosen[:, index, block])) for block in range(len(trace.blocks))]
        for index, task in enumerate(trace.tasks)
    }
    if as_json:
        emit_json({
            "bundle": bundle, "file": str(out), "network": trace.network, "network_hash": trace.network_hash,
            "images": trace.frames, "source": images or "rendered scenes", "seed": seed,
            "blocks": list(trace.blocks), "experts_used": used,
        })  # fmt: skip
        return
    print(table(("task", *(f"block {block}" for block in trace.blocks)), [(task, *row) for task, row in used.items()]))
    print(f"experts used of {net.experts}, over {trace.frames} images")
    note(f"wrote {out}", quiet)


def _images(net: Network, folder: str | None, frames: int, seed: int) -> tuple[int, Iterator[NDArray[np.uint8]]]:
    if folder is not None:
        from host.images import load_directory

        found = load_directory(folder, net, frames)
        return len(found), (pixels for _, pixels in found)
    from model.scenes import render_scene, split_seed

    size = net.image_height, net.image_width
    return frames, (render_scene(split_seed(seed, "val"), index, *size).image for index in range(frames))
