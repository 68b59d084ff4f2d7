"""The whole chain in one run: render, train, quantize, export, verify, measure, report.

Every step leaves its result in the demo's folder and is skipped when it is there already, so that a run that was
interrupted continues and a second run takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel.atomic import atomic_write
from accel.bundle import Bundle, open_bundle
from accel.config import Formats, digest, hardware, network
from accel.errors import M3vitError
from accel.golden import FrameResult, GoldenEngine, run_frame
from cli.console import note, progress, tool_version
from cli.report import BlockRouting, Report, SceneRow, Table, sheet, write_report
from cli.training import RunSummary, TrainPlan, checkpoint_file, scene_sets, train

if TYPE_CHECKING:
    from model.data import Dataset
    from model.metrics import Comparison, Metrics

HARDWARE = "zcu104"
TRACED_FRAMES = 64
ONNX_FRAMES = 8
PICTURED_SCENES = 6
SWAPS = (("semseg", "edge"), ("depth", "normals"))
SWAP_COST = 2.0
"""mIoU that semantic segmentation must lose when it is routed by edge's gates."""
SWAP_FACTOR = 1.05
"""By which the errors of depth and normals must grow when they are routed by each other's gates."""
STRESS = Formats(weight_bits=4, activation_bits=4)
STRESS_COST = 0.5
"""mIoU that 4-bit quantization without fine-tuning must lose, what 8 bits may lose; else the quantizers do nothing."""


@dataclass(frozen=True)
class Quality:
    """How long to train."""

    steps: int
    qat_steps: int
    scenes: int


QUALITIES = {
    "quick": Quality(steps=500, qat_steps=100, scenes=5120),
    "better": Quality(steps=4000, qat_steps=400, scenes=20480),
}


@dataclass(frozen=True, eq=False)
class EngineResults:
    """What the engine's integers give on the held-out scenes.

    Attributes:
        metrics: per task.
        share: task → block → token-expert pairs per expert, summed over all scenes.
        frames: task → results of the first scenes, for pictures.
    """

    metrics: Metrics
    share: Mapping[str, Mapping[int, NDArray[np.int64]]]
    frames: Mapping[str, list[FrameResult]]


class Demo:
    """One demo folder."""

    def __init__(self, out: Path, quality: str, seed: int, quiet: bool) -> None:
        self.out, self.quality, self.quiet = out, quality, quiet
        choice = QUALITIES[quality]
        self.plan = TrainPlan(
            network=network("m3vit-demo"),
            run_dir=out / f"checkpoint-{quality}",
            steps=choice.steps,
            qat_steps=choice.qat_steps,
            scenes=choice.scenes,
            seed=seed,
            twin=True,
        )
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """All steps; returns the summary that is also in ``summary.json``."""
        summary = self._step("train", "train float, quantized and float twin", self._train)
        bundle = self._step("export", "export one blob per expert", self._export)
        verified = self._step("verify", "compare every integer with torch, driver and onnxruntime", self._verify)
        engine = self._step("measure", "measure the engine on held-out scenes", lambda: self._measure(bundle))
        routing = self._step("routing", "swap gates between tasks", self._swap)
        stress = self._step("stress", "quantize to 4 bits", self._stress)
        board = self._step("board", "run a frame per task on the simulated board, cycle by cycle", self._board)
        document = self._summary(summary, bundle, verified, engine.metrics, routing, stress, board)
        self._step("report", "write the report", lambda: self._report(document, bundle, engine))
        document |= {"key": self._key(), "seconds": self.seconds}
        document["first_run_seconds"] = self._first_run_seconds()
        _write_json(self.out / "summary.json", document)
        return document

    def _first_run_seconds(self) -> dict[str, float]:
        """Seconds of the run that did the work; in a run that found everything done, ``seconds`` say nothing of it."""
        try:
            earlier = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
            if earlier["key"] == self._key():
                return dict(earlier["first_run_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no earlier run of the same weights
        return self.seconds

    def _step(self, name: str, what: str, function: Callable[[], Any]) -> Any:
        note(f"── {name}: {what}", self.quiet)
        start = time.perf_counter()
        result = function()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return result

    def _cached(self, name: str, function: Callable[[], Any]) -> Any:
        """Result of ``function`` (JSON), kept in the folder for as long as checkpoint and bundle stay the same."""
        path = self.out / f"{name}.json"
        key = self._key()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] == key:
                return found["result"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or from another run: made anew
        result = function()
        _write_json(path, {"key": key, "result": result})
        return result

    def _key(self) -> str:
        files = [checkpoint_file(self.plan.run_dir, stage) for stage in ("twin", "qat")]
        sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return digest([tool_version(), self.plan.identity(), sums])[:16]

    def _data(self) -> tuple[Dataset, Dataset]:
        return scene_sets(self.plan, self.out / "data", quiet=True)

    def _train(self) -> RunSummary:
        summary = train(self.plan, data_dir=self.out / "data", quiet=self.quiet)
        if summary is None:
            raise M3vitError("demo: expected a single process, found a torchrun worker")
        return summary

    def _export(self) -> Bundle:
        from cli.exporting import read_checkpoint, save_integer_onnx_files, write

        checkpoint, target = checkpoint_file(self.plan.run_dir, "qat"), self.out / "bundle"
        source = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        if (target / "manifest.json").exists():
            bundle = open_bundle(target)
            if bundle.manifest["provenance"].get("checkpoint", {}).get("sha256") == source:
                return bundle
        encoder, provenance = read_checkpoint(checkpoint)
        save_integer_onnx_files(encoder, self.out / "onnx", self.quiet)
        return write(target, encoder, hardware(HARDWARE), provenance, self.quiet)

    def _verify(self) -> dict[str, Any]:
        return self._cached("verified", self._compare)

    def _compare(self) -> dict[str, Any]:
        from cli.verification import Frame, verify

        bundle = open_bundle(self.out / "bundle")
        checkpoint = str(checkpoint_file(self.plan.run_dir, "qat"))
        _, held_out = self._data()
        frames = [Frame(f"scene {i}", held_out.images[i]) for i in range(TRACED_FRAMES)]
        totals: dict[str, Any] = {"compared": 0, "mismatches": 0, "first_mismatch": None}
        totals |= {"per_task": {}, "per_backend": {}}
        rounds = ((["torch", "golden"], frames), (["onnx"], frames[:ONNX_FRAMES]))
        with progress(sum(len(some) for _, some in rounds), "verifying", "frame", self.quiet) as bar:
            for backends, some in rounds:
                tasks = bundle.config.network.task_names
                report = verify(bundle, some, tasks, backends, checkpoint=checkpoint, progress=bar.update)
                found = report.as_dict(backends)
                totals["first_mismatch"] = totals["first_mismatch"] or found["first_mismatch"]
                for backend, entry in found["per_backend"].items():
                    totals["per_backend"][backend] = {"frames": len(some), **entry}
                for name in ("compared", "mismatches"):
                    totals[name] += found[name]
                    for task, entry in found["per_task"].items():
                        counts = totals["per_task"].setdefault(task, {"compared": 0, "mismatches": 0})
                        counts[name] += entry[name]
        return totals

    def _measure(self, bundle: Bundle) -> EngineResults:
        from host.outputs import output_map
        from model.metrics import make_meter

        net, (_, held_out) = bundle.config.network, self._data()
        engine = GoldenEngine(bundle.encoder)
        meters = {task.name: make_meter(task) for task in net.tasks}
        share = {
            name: {block: np.zeros(net.experts, np.int64) for block in net.moe_blocks} for name in net.task_names
        }
        frames: dict[str, list[FrameResult]] = {name: [] for name in net.task_names}
        with progress(len(held_out), "engine", "scene", self.quiet) as bar:
            for index, image in enumerate(held_out.images):
                for name in net.task_names:
                    result = run_frame(bundle.encoder, image, name, engine)
                    values = output_map(bundle.encoder, result).transpose(2, 0, 1)[None]
                    meters[name].update(values, held_out.targets[name][index : index + 1])
                    for block, routing in result.routing.items():
                        share[name][block] += routing.load(net.experts)
                    if index < PICTURED_SCENES:
                        frames[name].append(result)
                bar.update()
        return EngineResults({name: meter.result() for name, meter in meters.items()}, share, frames)

    def _board(self) -> dict[str, Any]:
        return self._cached("board", self._simulated)

    def _simulated(self) -> dict[str, Any]:
        from accel.compiler import RecordedFrame
        from host.simulated import replay_tasks

        bundle = open_bundle(self.out / "bundle")
        engine, image = GoldenEngine(bundle.encoder), self._data()[1].images[0]
        frames = []
        for task in bundle.config.network.task_names:
            trace = run_frame(bundle.encoder, image, task, engine, record=True).trace
            frames.append(RecordedFrame(task, image, trace))
        return replay_tasks(bundle, frames, note=lambda line: note(line, self.quiet))

    def _swap(self) -> dict[str, Any]:
        return self._cached("swapped", self._swapped_metrics)

    def _swapped_metrics(self) -> dict[str, Any]:
        from model.evaluate import evaluate_swapped
        from quant.checkpoint import load_qat

        model = load_qat(checkpoint_file(self.plan.run_dir, "qat"))
        _, held_out = self._data()
        swapped: dict[str, Any] = {}
        for first, second in SWAPS:
            swapped |= evaluate_swapped(model, held_out, first, second)
        return swapped

    def _stress(self) -> dict[str, Any]:
        return self._cached("stress", self._stress_metrics)

    def _stress_metrics(self) -> dict[str, Any]:
        import torch

        from model.evaluate import evaluate
        from quant.checkpoint import load_float
        from quant.finetune import CALIBRATION_IMAGES
        from quant.qat import QuantMultiTaskViT

        scenes, held_out = self._data()
        model = QuantMultiTaskViT.from_float(load_float(checkpoint_file(self.plan.run_dir, "twin")), STRESS)
        model.calibrate(torch.from_numpy(scenes.images[:CALIBRATION_IMAGES]))
        return evaluate(model, held_out)

    def _summary(
        self,
        trained: RunSummary,
        bundle: Bundle,
        verified: dict[str, Any],
        engine: Metrics,
        swapped: Metrics,
        stress: Metrics,
        board: dict[str, Any],
    ) -> dict[str, Any]:
        from model.metrics import against_float, against_trivial

        metrics = {
            "trivial": trained.metrics["trivial"],
            "float": trained.metrics["twin"],
            "qat": trained.metrics["qat"],
            "engine": engine,
            "engine_4bit": stress,
            "swapped_gates": swapped,
        }
        equal = verified["compared"] > 0 and verified["mismatches"] == 0
        checks = [
            _check("all integers equal", verified["mismatches"], "mismatches", 0, equal),
            _check("simulated board equal", board["mismatches"], "mismatches", 0, board["compared"] > 0
                   and board["mismatches"] == 0),
            *_checks("engine against float", against_float(engine, trained.metrics["twin"])),
            *_checks("engine against trivial", against_trivial(engine, trained.metrics["trivial"])),
        ]
        miou = trained.metrics["qat"]["semseg"]["miou"]
        for what, other, cost in (
            ("semseg with gates of edge", swapped, SWAP_COST),
            ("4 bits, not fine-tuned", stress, STRESS_COST),
        ):
            value = other["semseg"]["miou"]
            checks.append(_check(what, value, "semseg miou", miou - cost, value <= miou - cost))
        for task, owner, metric in (("depth", "normals", "absrel"), ("normals", "depth", "mean_angle")):
            value, bound = swapped[task][metric], SWAP_FACTOR * trained.metrics["qat"][task][metric]
            checks.append(_check(f"{task} with gates of {owner}", value, f"{task} {metric}", bound, value >= bound))
        return {
            "demo": self.quality,
            "tool_version": tool_version(),
            "config": bundle.config.name,
            "config_hash": bundle.config.hash,
            "seed": self.plan.seed,
            "steps": {"float": self.plan.steps, "twin": self.plan.qat_steps, "qat": self.plan.qat_steps},
            "held_out_scenes": self.plan.val_scenes,
            "metrics": metrics,
            "verification": verified,
            "board": board,
            "checks": checks,
            "ok": all(check["ok"] for check in checks),
            "outputs": {
                "checkpoint": str(self.plan.run_dir),
                "bundle": str(self.out / "bundle"),
                "onnx": str(self.out / "onnx"),
                "report": str(self.out / "report.html"),
            },
        }

    def _report(self, document: dict[str, Any], bundle: Bundle, engine: EngineResults) -> None:
        from host.outputs import save_picture

        net, (_, held_out) = bundle.config.network, self._data()
        scenes = _pictures(bundle, held_out, engine)
        save_picture(self.out / "scenes.png", sheet(scenes))
        write_report(
            self.out / "report.html",
            Report(
                title="M³ViT from training to expert streaming",
                subtitle=f"{bundle.config.name}, configuration {bundle.config.hash}, seed {self.plan.seed}, "
                f"{self.plan.val_scenes} held-out rendered scenes",
                notes=(
                    "Every number of the engine comes from integers: the bundle's blobs, computed by the golden model. "
                    "The torch model's integer mode and the integer ONNX compute the same on their own; the golden "
                    "back end shares the golden model's arithmetic and checks packing, programs, memory layout and "
                    "driver. Cycles are those of the engine's RTL in simulation, with a modelled memory of 14.4 GB/s; "
                    "nothing on this page was timed on hardware.",
                ),
                tables=[
                    metrics_table(document),
                    board_table(document),
                    Table(
                        "Integers compared with the golden model",
                        ("back end", "frames per task", "compared", "mismatches"),
                        [
                            (name, entry["frames"], entry["compared"], entry["mismatches"])
                            for name, entry in document["verification"]["per_backend"].items()
                        ],
                    ),
                    Table(
                        "Checks",
                        ("check", "metric", "value", "bound", "result"),
                        [(c["check"], c["metric"], c["value"], c["bound"], c["ok"]) for c in document["checks"]],
                    ),
                ],
                scenes=scenes,
                routing=[_block_routing(bundle, block, engine) for block in net.moe_blocks],
            ),
        )


def board_table(document: Mapping[str, Any]) -> Table:
    """Cycles of every task on the simulated board: the engine's share of a frame, all layers chained."""
    from host.simulated import JOB_HEADER, job_rows

    board = document["board"]
    return Table(
        f"Engine layers of a frame per task on the simulated board (RTL, cycle by cycle): {board['cycles']:,} cycles "
        f"in all; {100 * board['overlap']:.0f} % of the cycles in which memory is read, the array computes",
        JOB_HEADER,
        job_rows(board, hardware(HARDWARE).macs_per_cycle),
    )


def metrics_table(document: Mapping[str, Any]) -> Table:
    """The closing table: per task and metric trivial, float, QAT and engine values, integers compared, mismatches."""
    from model.metrics import UNITS

    rows = []
    values = document["metrics"]
    for task, metrics in values["engine"].items():
        counts = document["verification"]["per_task"][task]
        for name in metrics:
            columns = [values[column][task][name] for column in ("trivial", "float", "qat", "engine")]
            rows.append((task, f"{name} [{UNITS[name]}]", *columns, counts["compared"], counts["mismatches"]))
    return Table(
        "Metrics on held-out scenes",
        ("task", "metric", "trivial", "float", "QAT", "engine", "integers compared", "mismatches"),
        rows,
    )


def _check(what: str, value: float, metric: str, bound: float, ok: bool) -> dict[str, Any]:
    return {"check": what, "metric": metric, "value": value, "bound": bound, "ok": bool(ok)}


def _checks(what: str, rows: list[Comparison]) -> list[dict[str, Any]]:
    return [_check(what, row.value, f"{row.task} {row.metric}", row.bound, row.ok) for row in rows]


def _write_json(path: Path, data: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _pictures(bundle: Bundle, held_out: Dataset, engine: EngineResults) -> list[SceneRow]:
    from PIL import Image

    from host.outputs import decode, output_map, picture

    net, rows = bundle.config.network, []
    for index in range(min(PICTURED_SCENES, len(held_out))):
        predictions, truths = {}, {}
        for task in net.tasks:
            values = output_map(bundle.encoder, engine.frames[task.name][index])
            predictions[task.name] = picture(decode(values, task), task)
            truths[task.name] = picture(held_out.targets[task.name][index], task)
        image = Image.fromarray(held_out.images[index])
        rows.append(SceneRow(f"scene {index}", image, predictions, truths))
    return rows


def _block_routing(bundle: Bundle, block: int, engine: EngineResults) -> BlockRouting:
    net = bundle.config.network
    first = {name: frames[0].routing[block] for name, frames in engine.frames.items()}
    return BlockRouting(
        block,
        share={name: loads[block] / loads[block].sum() for name, loads in engine.share.items()},
        queues={name: routing.load(net.experts) for name, routing in first.items()},
        best={name: routing.chosen[1:, 0].reshape(net.grid_h, net.grid_w) for name, routing in first.items()},
    )
