"""`calmctl weights`: which backbones are recommended, what of them is here, and how the rest comes here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from calmctl.cli import options
from calmctl.cli.artifacts.downloads import size_in_words
from calmctl.cli.console import Sheet, loading, note, print_json, print_next, printable, stdout
from calmctl.errors import BadInput
from calmctl.files import sha256_file
from calmctl.hub import cache_folder, cached

app = options.Commands(
    "List, fetch, check and convert the weights of backbones.",
    "calmctl weights ls",
    "calmctl weights get ViT-B-32-quickgelu openai",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="An open_clip model, hf-hub:OWNER/NAME, or sentence-transformers:NAME.")
]
Tag = Annotated[
    str | None, typer.Argument(metavar="WEIGHTS", help="Its tag; of a published model its own.", show_default=False)
]


@app.verb("calmctl weights ls", "calmctl weights ls --json")
def ls(as_json: options.Json = False) -> None:
    """Show the backbones that are recommended, and what lies in the hub's cache.

    Commits and digests are as published, and checked with every download; sizes are those of float32.
    """
    from calmctl.model.published import RECOMMENDED

    kept = _cache()
    here = {repository for repository, _, _ in kept}
    if as_json:
        known = [
            {
                **asdict(each),
                "bytes": 4 * each.parameters,
                "sha256_is": "published" if each.sha256 else "unknown",
                "in_cache": each.repository in here,
            }
            for each in RECOMMENDED
        ]
        cache = [{"repository": name, "bytes": size, "revisions": commits} for name, size, commits in kept]
        print_json({"recommended": known, "cache": {"folder": str(cache_folder()), "repositories": cache}})
        return
    out = stdout()
    numbers = ["weights in M", "size", "frame", "D"]
    table = Sheet("recommended", "weights", numbers=numbers, title="[bold]Backbones[/]", title_justify="left")
    table.add_column("here")
    for each in RECOMMENDED:
        needs = f", needs calmctl\\[{each.needs}]" if each.needs else ""
        table.add_row(
            f"{each.model}\n[dim]{each.remark}{needs}[/]",
            each.weights,
            f"{each.parameters / 1e6:.0f}",
            size_in_words(4 * each.parameters),
            str(each.image_size),
            str(each.dim),
            "yes" if each.repository in here else "",
        )
    out.print(table)
    out.print(f"\n[bold]In the cache[/] {printable(str(cache_folder()))}", soft_wrap=True)
    if not kept:
        out.print("nothing")
        print_next("calmctl weights get ViT-B-32-quickgelu openai")
        return
    held = Sheet("repository", "commit", numbers=["size"])
    for name, size, commits in kept:
        held.add_row(printable(name), ", ".join(commit[:12] for commit in commits), size_in_words(size))
    out.print(held)


@app.verb(
    "calmctl weights get ViT-B-32-quickgelu openai",
    "calmctl weights get ViT-B-16-SigLIP2 webli                  # needs an extra",
    "calmctl weights get hf-hub:timm/PE-Core-B-16",
    "HF_ENDPOINT=https://MIRROR calmctl weights get PE-Core-B-16 meta",
)
def get(model: Model, weights: Tag = None, as_json: options.Json = False) -> None:
    """Fetch the weights of a backbone into the hub's cache, and check them by loading them once.

    Names and extras are checked first; what comes, how large and from where is said before its first byte.
    """
    _checked(model, weights, as_json)


@app.verb(
    "calmctl weights check ViT-B-32-quickgelu openai",
    "calmctl weights check ViT-B-32-quickgelu b32.safetensors",
    "calmctl weights check local-dir:clip-vit-base-patch32",
)
def check(model: Model, weights: Tag = None, as_json: options.Json = False) -> None:
    """Say what weights are, whether they fit a model, and how frames and sentences are prepared for them.

    Weights that are here already are checked without asking anybody; a tag that is not here is an error.
    """
    path, _ = _place(model, weights)
    if path is None:
        raise BadInput(
            f"{model} {weights or ''}".rstrip() + " is not in the local cache; fetch it with: calmctl weights get "
            f"{model}" + (f" {weights}" if weights else "")
        )
    _checked(model, weights, as_json)


@app.verb("calmctl weights where ViT-L-14-quickgelu openai")
def where(model: Model, weights: Tag = None, as_json: options.Json = False) -> None:
    """Print the file of a backbone's weights, or how to bring it from another machine (exit code 1)."""
    path, source = _place(model, weights)
    if as_json:
        print_json({"path": None if path is None else str(path), "source": source, "cache": str(cache_folder())})
    elif path is not None:
        print(path)
    if path is not None:
        return
    if not as_json:
        out = stdout()
        folder = f"models--{source['repository'].replace('/', '--')}"
        # Unwrapped, or a line to copy has a line break in the middle.
        out.print(
            f"not here. On a machine with a network, in any folder:\n\n  {printable(source['command'])}\n\n"
            f"copy the folder {printable(folder)} into\n\n  {printable(str(cache_folder()))}\n\n"
            "Or copy its files anywhere and give the path: backbone.weights=FILE.safetensors",
            soft_wrap=True,
        )
    raise typer.Exit(1)


@app.verb("calmctl weights convert ViT-B-32.pt", "calmctl weights convert pytorch_model.bin --out clip.safetensors")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OpenAI's archive (.pt), or a checkpoint of torch.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The .safetensors to write; beside FILE.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Turn an archive of OpenAI or a checkpoint of torch into safetensors; nothing of it is executed."""
    target = out or file.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise BadInput(f"--out {target} is no .safetensors file, which is what is written")
    if target.exists() and not force:
        raise BadInput(f"{target} exists; name another --out, or replace it with --force")
    loading("the model library")
    from calmctl.model.convert import convert as run_convert

    done = run_convert(file, target)
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "config": None if done.config is None else str(done.config),
                "sha256": sha256_file(done.path),
                "parameters": done.parameters,
                "models": list(done.models),
                "openai": done.openai,
            }
        )
        return
    console = stdout()
    whose = "OpenAI's release" if done.openai else "weights"
    console.print(f"{whose}, {done.parameters:,} numbers, in {printable(str(done.path))}", soft_wrap=True)
    if done.config is not None:
        console.print(f"how its frames are prepared, in {printable(str(done.config))}", soft_wrap=True)
    if done.models:
        fits = done.models[0] if len(done.models) == 1 else f"one of {', '.join(done.models)}"
        console.print(f"fits {printable(fits)}", soft_wrap=True)
        print_next(f"calmctl weights check {done.models[0]} {done.path}")
    else:
        console.print("fits no plain CLIP of open_clip: name the model it belongs to yourself")


def _cache() -> list[tuple[str, int, list[str]]]:
    """Repositories of models in the hub's cache: name, bytes, commits; without asking anybody."""
    folder, repositories = cache_folder(), []
    for place in sorted(folder.glob("models--*")):
        # Not through links: each file counts once, where its bytes are.
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())
        commits = sorted(path.name for path in (place / "snapshots").glob("*"))
        repositories.append((place.name.removeprefix("models--").replace("--", "/", 1), size, commits))
    return repositories


def _place(model: str, weights: str | None) -> tuple[Path | None, dict[str, Any]]:
    """Where weights lie, None where they do not, and where they come from; names are checked, nobody is asked."""
    from calmctl.model.published import CLIP_EMBEDDER, EMBEDDER, HUB, WEIGHTS, Published, recommended, usual_weights

    here: dict[str, Any] = {"repository": "", "command": ""}
    weights = weights or usual_weights(model)
    if weights.endswith(".safetensors"):
        if not Path(weights).is_file():
            raise BadInput(f"{weights} does not exist; give a .safetensors file or a pretrained tag of {model}")
        return Path(weights), here
    for kind in (CLIP_EMBEDDER, EMBEDDER, HUB):
        if model.startswith(kind):
            name = model.removeprefix(kind)
            if kind != HUB and Path(name).is_dir():
                return Path(name), here
            repository, _, revision = name.partition("@")
            files = WEIGHTS if kind == HUB else ("modules.json",)
            paths = [path for file in files if (path := cached(repository, file, revision=revision or None))]
            return (paths[0] if paths else None), _source(repository, revision or None, "")
    if place := Published.of(model):
        return place.weights(), here
    from calmctl.model.spec import HUB_CONFIG, HUB_WEIGHTS, check_backbone, read_architecture, shipped_weights

    check_backbone(model, weights)
    if shipped := shipped_weights(read_architecture(model), weights):
        return shipped, here
    loading("the model library")
    from calmctl.model.weights import cached_tag, known_tag, repository_of

    tag = known_tag(read_architecture(model), weights)
    repository = repository_of(model, weights, tag)
    known = recommended(model, weights)
    return cached_tag(model, weights, repository), _source(
        repository, known.revision if known else None, f" {HUB_WEIGHTS} {HUB_CONFIG}"
    )


def _source(repository: str, revision: str | None, files: str) -> dict[str, Any]:
    at = f" --revision {revision}" if revision else ""
    return {
        "repository": repository,
        "revision": revision,
        "command": f"hf download {repository}{files}{at} --cache-dir .",
    }


def _checked(model: str, weights: str | None, as_json: bool) -> None:
    """Load the weights, which fetches and checks them, and print what they are."""
    from calmctl.model.published import recommended, usual_weights
    from calmctl.model.spec import check_backbone

    weights = weights or usual_weights(model)
    check_backbone(model, weights)
    loading("the model library")
    from calmctl.model.backbone import parameters_digest
    from calmctl.model.weights import load_backbone

    backbone = load_backbone(model, weights)
    spec = backbone.spec.model_copy(update={"parameters_sha256": parameters_digest(backbone)})
    known = recommended(model, weights)
    verdict = "nothing is published of it here"
    same = True
    if known is not None and known.sha256:
        same = known.sha256 == spec.weights_sha256
        verdict = "as published" if same else f"not the published file, which is {known.sha256}"
    if as_json:
        print_json({**spec.model_dump(mode="json"), "published_sha256": known.sha256 if known else None})
        raise typer.Exit(0 if same else 1)
    table = Sheet("", "", show_header=False)
    for name, value in {
        "model": spec.model,
        "weights": spec.weights,
        "from": f"{spec.source} at {spec.revision}" if spec.source else "this machine",
        "SHA-256": f"{spec.weights_sha256} ({verdict})" if spec.weights_sha256 else "of its parameters alone",
        "parameters": spec.parameters_sha256,
        "frames": f"{spec.image_size[0]} x {spec.image_size[1]}, {spec.pixels}",
        "sentences": f"up to {spec.context_length} bytes, read by its own tokenizer"
        if spec.tokenizer == "bytes"
        else f"up to {spec.context_length} tokens of {spec.tokenizer or 'CLIP'}",
        "activation": spec.activation,
        "D": str(spec.dim),
        "logit scale": f"{backbone.logit_scale.detach().exp().item():.4g}",
    }.items():
        table.add_row(name, printable(str(value)))
    stdout().print(table)
    for text in backbone.notes:
        note(printable(text))
    if not same:
        raise typer.Exit(1)
