"""``m3vit demo``: the whole chain, with a report to look at."""

from __future__ import annotations

from pathlib import Path

import click

from cli.console import emit_json, json_option, note, quiet_option, table


@click.command()
@click.option("--out", default=Path("build/demo"), show_default=True, type=click.Path(path_type=Path),
              help="Folder of the demo.")  # fmt: skip
@click.option("--quality", type=click.Choice(["quick", "better"]), default="quick", show_default=True,
              help="quick: minutes on two cores; better: eight times as many steps.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of scenes, weights, batches and gate noise.")
@json_option
@quiet_option
def command(out: Path, quality: str, seed: int, as_json: bool, quiet: bool) -> int:
    """Train, quantize, export, stream and verify a small multi-task MoE ViT on rendered scenes.

    \b
    Leaves in OUT:
      checkpoint-QUALITY/   float and quantized weights, logs, metrics
      bundle/               one blob per expert and layer
      onnx/                 the integer encoder per task, for onnxruntime
      summary.json          metrics, integers compared, checks
      report.html           pictures, routing heat maps, expert load
      scenes.png            held-out scenes: input, then prediction and truth per task

    \b
    Examples:
      m3vit demo --out build/demo
      m3vit demo --out build/better --quality better

    Exit code 1 if a check fails: an integer differs between golden model, driver, simulated board, torch and
    onnxruntime, the engine is worse than the float model allows, or a task does as well with another task's gates.
    Failed checks are named.
    """
    from cli.demo import Demo, board_table, metrics_table

    document = Demo(out, quality, seed, quiet).run()
    failed = [check for check in document["checks"] if not check["ok"]]
    if as_json:
        emit_json(document)
    else:
        closing = metrics_table(document)
        print(table(closing.header, closing.rows))
        board = board_table(document)
        print(f"\n{board.caption}")
        print(table(board.header, board.rows))
        print(f"\nchecks: {len(document['checks']) - len(failed)} of {len(document['checks'])} hold")
        print(f"report: {document['outputs']['report']}")
    for check in failed:
        note(f"check fails: {check['check']}: {check['metric']} = {check['value']:.3f}, bound {check['bound']:.3f}")
    return 0 if document["ok"] else 1
