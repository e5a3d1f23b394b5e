"""`paceline export`: a trained drafter for another engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paceline.cli.help import examples


@click.command(
    epilog=examples(
        "paceline export drafter --to vllm",
        "paceline export drafter --to sglang --target org/model --out for-sglang",
        "paceline export old-drafter --to vllm --layers 30",
    )
)
@click.argument("folder", metavar="FOLDER")
@click.option("--to", required=True, type=click.Choice(["vllm", "sglang"]), help="Who is to load it.")
@click.option("--out", metavar="PATH", help="The folder that is written. [default: FOLDER-ENGINE]")
@click.option(
    "--target",
    default="",
    metavar="NAME",
    help="The model that the engine serves with it. [default: the one it was trained for]",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="The target's layers, for a drafter that does not say"
    " which hidden states it reads: the usual ones are written then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, to: str, out: str | None, target: str, layers: int | None, as_json: bool) -> None:
    """Write the trained drafter in FOLDER as another engine loads it, read it back and compare.

    For vLLM in the form of the speculators library, its own of Medusa heads, or transformers' of draft
    models; for SGLang in the native form of EAGLE-3 or DFlash. Prints the command that serves the target
    with it.
    """  # fmt: skip
    from paceline.errors import ConfigError
    from paceline.models.dflash2_folder import is_dflash2, read_dflash2
    from paceline.models.dflash_folder import is_dflash, read_dflash
    from paceline.models.dspark_folder import is_dspark, read_dspark
    from paceline.models.eagle3_folder import is_peagle, read_eagle3
    from paceline.models.exit_folder import holds_exits
    from paceline.models.heads_folder import holds_heads, read_heads
    from paceline.models.llama_folder import holds_llama, read_llama
    from paceline.models.mtp_folder import is_mtp, read_mtp
    from paceline.models.pads_folder import holds_pads
    from paceline.models.redrafter_folder import holds_redrafter
    from paceline.trained.dflash2_export import export_dflash2
    from paceline.trained.dflash_export import export_dflash
    from paceline.trained.draft_export import export_draft
    from paceline.trained.dspark_export import export_dspark
    from paceline.trained.export import export
    from paceline.trained.heads_export import export_heads
    from paceline.trained.mtp_export import export_mtp

    found, into = Path(folder), Path(out or f"{folder.rstrip('/')}-{to}")
    if holds_exits(found):
        raise ConfigError("no other engine drafts with trained exits of its target")
    if holds_pads(found):
        raise ConfigError(f"{to} reads no pads in a model's passes; no other engine does")
    if holds_redrafter(found):
        raise ConfigError(f"{to} does not load recurrent drafters")
    if holds_heads(found):
        if layers is not None:
            raise ConfigError(f"--layers {layers}: heads read no hidden state but the last")
        written = export_heads(read_heads(found), to, into, target)
    elif holds_llama(found):
        if layers is not None:
            raise ConfigError(f"--layers {layers}: a draft model reads no hidden states")
        written = export_draft(read_llama(found), to, into, target)
    elif is_dflash(found) or is_dflash2(found) or is_dspark(found):
        if layers is not None:
            raise ConfigError(f"--layers {layers}: a drafter of blocks says which hidden states it reads")
        if is_dspark(found):
            written = export_dspark(read_dspark(found), to, into, target)
        elif is_dflash2(found):
            written = export_dflash2(read_dflash2(found), to, into, target)
        else:
            written = export_dflash(read_dflash(found), to, into, target)
    elif is_mtp(found):
        if layers is not None:
            raise ConfigError(f"--layers {layers}: an MTP module reads no hidden state but the last")
        written = export_mtp(read_mtp(found), to, into, target)
    else:
        kind = "peagle" if is_peagle(found) else "eagle3"
        written = export(read_eagle3(found, kind), to, into, target, layers)
    if as_json:
        record = {**written._asdict(), "folder": str(written.folder)}
        click.echo(json.dumps(record))
        return
    click.echo(
        f"{written.folder}: reads back as the same drafter, logits differ by {written.difference:.1g}",
        err=True,
    )
    click.echo(written.command)
