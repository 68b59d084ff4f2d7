"""``m3vit train``: float stage and quantization-aware stage on rendered scenes."""

from __future__ import annotations

from pathlib import Path

import click

from accel.config import NETWORKS, ROUTINGS, Formats
from cli.arguments import parse_network, with_routing
from cli.console import emit_json, json_option, note, quiet_option, table


@click.command()
@click.option("--network", "network_name", default="m3vit-demo", show_default=True, metavar="NAME|FILE.json",
              help=f"Preset ({', '.join(NETWORKS)}) or a file with the fields of a network.")  # fmt: skip
@click.option("--routing", type=click.Choice(ROUTINGS), help="Another routing than the network's own.")
@click.option("--out", "run_dir", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--steps", default=600, show_default=True, help="Optimizer steps of the float stage.")
@click.option("--qat-steps", default=100, show_default=True, help="Steps of the quantized stage; 0 only calibrates.")
@click.option("--batch", default=16, show_default=True, help="Images per step, over all processes.")
@click.option("--scenes", default=5120, show_default=True, help="Rendered scenes to train on.")
@click.option("--val-scenes", default=256, show_default=True, help="Held-out scenes to measure on.")
@click.option("--seed", default=0, show_default=True, help="Of weights, scenes, batches and gate noise.")
@click.option("--weight-bits", default=8, show_default=True, help="Width of weights, 2 to 8.")
@click.option("--activation-bits", default=8, show_default=True, help="Width of activations, 2 to 8.")
@click.option("--lr", default=1.5e-3, show_default=True, help="Peak learning rate of the float stage.")
@click.option("--qat-lr", default=3e-4, show_default=True, help="Peak learning rate of the quantized stage.")
@click.option("--twin", is_flag=True, help="Also train the float model as long as the quantized one, to compare.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep rendered scenes here.  [default: OUT/data]")
@click.option("--device", help="cpu, cuda, cuda:1 …  [default: this process' GPU, else the CPU]")
@click.option("--checkpoint-every", default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--resume/--no-resume", default=True, help="Continue the run found in OUT, or start it anew.")
@click.option("--tensorboard/--no-tensorboard", default=True, help="Event files beside the CSV logs.")
@json_option
@quiet_option
def command(
    network_name: str,
    routing: str | None,
    run_dir: Path,
    weight_bits: int,
    activation_bits: int,
    data_dir: Path | None,
    device: str | None,
    checkpoint_every: int,
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    quiet: bool,
    **numbers: float,
) -> None:
    """Train a multi-task MoE vision transformer on rendered scenes, then with quantization in the loop.

    \b
    Leaves in OUT:
      float.safetensors   trained float weights      qat.safetensors   quantized: the input of `m3vit export`
      float.csv, qat.csv  losses by step             metrics.json      metrics per task on held-out scenes

    Killed or interrupted, the same command continues where it was. With other options it refuses: a run is never
    mixed. Several processes: torchrun --nproc_per_node 2 -m cli train --out OUT …

    \b
    Examples:
      m3vit train --out build/run
      m3vit train --out build/tc --routing task_conditioned
      m3vit train --out build/w4 --weight-bits 4 --activation-bits 4
      m3vit train --out build/smoke --steps 20 --qat-steps 5 --scenes 64 --val-scenes 16
    """
    from cli.training import TrainPlan, train

    plan = TrainPlan(
        network=with_routing(parse_network(network_name), routing),
        run_dir=run_dir,
        formats=Formats(weight_bits, activation_bits),
        **numbers,  # type: ignore[arg-type]
    )
    try:
        summary = train(
            plan,
            data_dir=data_dir,
            resume=resume,
            device=device,
            tensorboard=tensorboard,
            checkpoint_every=checkpoint_every,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        note("stopped; the same command continues from the last checkpoint", quiet)
        raise
    if summary is None:
        return
    if as_json:
        emit_json(
            {
                "network": plan.network.name,
                "run_dir": str(run_dir),
                "checkpoints": {stage: str(path) for stage, path in summary.checkpoints.items()},
                "metrics": summary.metrics,
                "resumed": summary.resumed,
                "seconds": summary.seconds,
            }
        )
        return
    print(table(["task", "metric", "unit", *summary.columns()], summary.rows(plan.network)))
    print(f"\nnext: m3vit export {summary.checkpoints['qat']} BUNDLE")
