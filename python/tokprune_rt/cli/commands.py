"""The list of commands."""

from __future__ import annotations

import typer

from tokprune_rt.cli.bench import bench
from tokprune_rt.cli.calibrate import calibrate
from tokprune_rt.cli.demo import demo
from tokprune_rt.cli.distilling import distil
from tokprune_rt.cli.embed import embed
from tokprune_rt.cli.encode import encode
from tokprune_rt.cli.evaluate import evaluate
from tokprune_rt.cli.explain import explain
from tokprune_rt.cli.export import export
from tokprune_rt.cli.importing import import_app
from tokprune_rt.cli.info import info
from tokprune_rt.cli.predict import predict
from tokprune_rt.cli.serve import serve
from tokprune_rt.cli.training import finetune, train


def register(app: typer.Typer) -> None:
    """Adds every command, in the order in which help shows them."""
    for command in (demo, encode, embed, predict, explain, info, export, serve, bench):
        app.command()(command)
    app.command()(calibrate)
    app.command()(finetune)
    app.command()(train)
    app.command()(distil)
    app.command()(evaluate)
    app.add_typer(import_app)
