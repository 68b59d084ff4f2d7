"""The command ``m3vit``: finds its sub-commands by name, turns errors into one line and an exit code.

Exit codes: 0 success, 1 a failure that the message explains or a verification that found a mismatch, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import click

from accel.errors import M3vitError
from cli.console import tool_version

COMMANDS: Mapping[str, str] = {
    "train": "cli.commands.train",
    "eval": "cli.commands.eval",
    "recipes": "cli.commands.recipes",
    "export": "cli.commands.export",
    "inspect": "cli.commands.inspect",
    "verify": "cli.commands.verify",
    "run": "cli.commands.run",
    "bench": "cli.commands.bench",
    "demo": "cli.commands.demo",
    "data": "cli.commands.data",
    "import": "cli.commands.import_",
    "cost": "cli.commands.cost",
    "experts": "cli.commands.experts",
    "trace": "cli.commands.trace",
    "simulate": "cli.commands.simulate",
    "explore": "cli.commands.explore",
}
"""Sub-command → module with a click command ``command``, in the order of the chain."""

EXTRAS: Mapping[str, str] = {
    "torch": "train",
    "brevitas": "train",
    "safetensors": "train",
    "scipy": "train",
    "h5py": "train",
    "tomli": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxoptimizer": "export",
    "optuna": "explore",
    "joblib": "explore",
}
"""Package that may be missing from a light installation → the extra that brings it."""


class LazyGroup(click.Group):
    """A group whose sub-commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name]).command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tool_version(), prog_name="m3vit")
def m3vit() -> None:
    """Multi-task MoE vision transformer on an expert-streaming engine: train, quantize, export, stream, verify.

    \b
    Every step reads what the one before it wrote:
      m3vit train --out build/run                        rendered scenes → run/float, run/qat .safetensors
      m3vit export build/run/qat.safetensors build/b     integers, one blob per expert and layer
      m3vit inspect build/b                              what is in a bundle
      m3vit verify build/b --backends golden             every integer at every layer boundary
      m3vit run build/b --image photo.png --task depth   a prediction as a picture
      m3vit bench build/b --backend rtl                  latency by phase, cycles, energy
    \b
    Without training, and without PyTorch:
      m3vit export --random m3vit-small-pascal build/b --seed 0
    \b
    Everything at once, with a report: m3vit demo --out build/demo
    \b
    Data sets on disk:
      m3vit data check DIR                               what is there, what is missing, for which task
      m3vit recipes                                      experiments for `m3vit train CONFIG`, by name
      m3vit train small-nyud-multi_gate --data-root DIR --out build/nyud
      m3vit eval small-nyud-multi_gate build/nyud/qat.safetensors --data-root DIR
    \b
    From other code, and on paper:
      m3vit import best_model.pth.tar m.safetensors --network m3vit-small-pascal
      m3vit cost m3vit-small-pascal --head pup           MACs, parameters, bytes per frame
      m3vit experts usage build/b --out usage.json       tokens of each task per expert
    \b
    How fast, without an engine:
      m3vit trace build/b --out trace.npz                where tokens go, from the golden model
      m3vit simulate build/b --routing trace.npz         cycles and their causes, per layer
      m3vit explore build/b --out build/search           engines that fit the device, and the fastest of them
    """


def _explain_missing(error: ModuleNotFoundError) -> str | None:
    """One line for a package that an extra brings; None if the import failed for another reason."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    extra = EXTRAS[package]
    return f"this needs {package}, which is not installed: pip install 'm3vit-codesign[{extra}]'"


_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What newer versions of click raise where a command is missing; its message is the help page."""


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, and where to read on."""
    context = getattr(error, "ctx", None)
    return f"{error.format_message().rstrip('.')}; see `{context.command_path if context else 'm3vit'} --help`"


def _fail(message: object, code: int) -> int:
    print(f"m3vit: error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``m3vit`` with ``arguments`` (the process' own by default) and return the exit code."""
    try:
        result = m3vit.main(
            args=None if arguments is None else list(arguments), prog_name="m3vit", standalone_mode=False
        )
        sys.stdout.flush()
    except M3vitError as error:
        return _fail(error, 1)
    except ModuleNotFoundError as error:
        message = _explain_missing(error)
        if message is None:
            raise
        return _fail(message, 1)
    except click.ClickException as error:
        if isinstance(error, _HELP):
            error.show()
            return error.exit_code
        return _fail(_usage(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("m3vit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left (`m3vit … | head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
