"""`paceline bench`: the group of its commands."""

from __future__ import annotations

import click

from paceline.cli import bench_oracle, bench_speed, bench_step, bench_sweep
from paceline.cli.help import examples


@click.group(
    epilog=examples(
        "paceline bench speed --drafter auto,ngram --limit 28 --max-tokens 128",
        "paceline bench sweep --nodes 1,2,4,8 --batch 1,4 --html report.html",
        "paceline bench oracle --drafter suffix,recycling",
        "paceline bench step --rows 1,2,4,8,16,32 --context 256",
    )
)
def command() -> None:
    """Measure speed on this machine, always against plain decoding in the same run."""


command.add_command(bench_speed.command, "speed")
command.add_command(bench_sweep.command, "sweep")
command.add_command(bench_oracle.command, "oracle")
command.add_command(bench_step.command, "step")
