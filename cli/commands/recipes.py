"""``m3vit recipes``: the packaged recipes, and what one of them says."""

from __future__ import annotations

import click

from cli.console import emit_json, json_option, table


@click.command()
@click.argument("recipe", required=False, metavar="[NAME|FILE.toml]")
@json_option
def command(recipe: str | None, as_json: bool) -> None:
    """List the recipes for `m3vit train` and `m3vit eval`, or show one with every value that applies.

    \b
    Examples:
      m3vit recipes
      m3vit recipes small-nyud-multi_gate
      m3vit recipes mine.toml --json
    """
    from accel.config import to_dict
    from cli.recipes import recipe_network
    from model.recipes.loader import load_recipe, recipe_names

    if recipe is None:
        recipes = [load_recipe(name) for name in recipe_names()]
        if as_json:
            emit_json({"recipes": [item.name for item in recipes]})
            return
        lines = [(r.name, r.network["preset"], ", ".join(r.tasks), r.optimizer, r.epochs, r.batch) for r in recipes]
        print(table(("recipe", "network from", "tasks", "optimizer", "epochs", "batch"), lines))
        return
    chosen = load_recipe(recipe)
    network = to_dict(recipe_network(chosen))
    document = {**chosen.document(), "network": {k: v for k, v in network.items() if k not in ("name", "tasks")}}
    if as_json:
        emit_json(document)
        return
    rows: list[tuple[str, str]] = []
    for name, value in document.items():
        if not isinstance(value, dict):
            rows.append((name, _text(value)))
        for key, inner in value.items() if isinstance(value, dict) else ():
            rows.append((f"{name}.{key}", _text(inner)))
    print(table(("field", "value"), rows))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
