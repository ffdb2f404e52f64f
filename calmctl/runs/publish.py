"""Runs passed on: a folder of what others need, pushed to a hub of models, and taken from there as a run again.

    OUT/
        slim.safetensors    the weights without anchors and VAE, with recipe and anchors inside: a run by itself
        recipe.yaml         every key of the training
        vocabulary.yaml     the anchors it used
        results.json        validation and test numbers with protocol, test set, intervals and caveats
        README.md           the model card, with a model-index for the hub
        SHA256SUMS          digests of all of these

Nothing of a machine is in it: no path, no name of a person or a machine, no token, no version of the system. Nothing of
the data either but digests and counts: captions of a data set are its owner's to publish.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calmctl.errors import BadInput, CheckpointError
from calmctl.files import new_folder, read_json, sha256_file, write_json, write_text
from calmctl.hub import translated
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.checkpoint import LEFT_OUT
from calmctl.runs.identity import RunIdentity, require_together, weights_identity
from calmctl.runs.run import Run, export_metadata
from calmctl.tensors import load_tensors, save_tensors
from calmctl.words import METRIC_NAMES, WAYS, counted

SLIM, CARD, SUMS = "slim.safetensors", "README.md", "SHA256SUMS"
_CARRIED = ("step", "epoch", "trained_on", "identity", "recipe", "vocabulary", "backbone")
"""Of a weights file's metadata, what an export carries: a list of what goes, so that nothing goes by accident."""
_RESULT = (
    *("dataset", "protocol", "split", "trained_on", "trained_protocol", "system", "scorer", "n_clips", "n_captions"),
    *("left_out", "metrics", "intervals", "scores", "search", "test_set", "card", "caveats"),
)
"""Of a result; captions, and whatever else quotes a data set, stay behind."""
_WHAT = ("dataset", "protocol", "split", "scorer")
_SCORES_LEFT = ("segments", "unscored", "empty", "java")
_METRICS = ("r1", "r5", "r10", "mdr", "mnr")
_CAPTION_METRICS = ("cider", "bleu4", "meteor", "rouge_l")
_WAYS = ("text_to_video", "video_to_text")


@dataclass(frozen=True, slots=True)
class Export:
    """A folder that can be given away.

    Attributes:
        files: Bytes by name.
    """

    folder: Path
    files: Mapping[str, int]


def export_run(run: Run, folder: Path, *, repository: str | None = None, licence: str | None = None) -> Export:
    """Write what others need of a run's best weights into a new folder.

    Args:
        run: A run, finished or not; an exported file will do.
        folder: Where; it must not exist, or be empty.
        repository: OWNER/NAME that it is for, as the card then calls it; None: by its recipe's name.
        licence: What may be done with it, in a word; None: the card says that nobody said.

    Raises:
        BadInput: The folder holds something; something of this machine is in what would be published.
        CheckpointError: The run has no weights, or they cannot be read.
        RunFailed: It cannot be written.
    """
    with new_folder(folder) as begun:
        slim = begun / SLIM
        metadata = _write_slim(run, slim)
        recipe = recipe_from_dict(metadata["recipe"], where=str(run.folder))
        name = (repository or recipe.name).rpartition("/")[2]
        results = published_results(run, name)
        write_text(begun / "recipe.yaml", yaml.safe_dump(metadata["recipe"], sort_keys=False, allow_unicode=True))
        write_text(begun / "vocabulary.yaml", str(metadata["vocabulary"]))
        write_json(begun / "results.json", results)
        use, identity = repository or f"OWNER/{name}", weights_identity(slim)
        parameters = sum(tensor.numel() for tensor in load_tensors(slim, what="weights")[0].values())
        card = model_card(use, recipe, identity, results, licence=licence, parameters=parameters)
        write_text(begun / CARD, card)
        require_portable(begun, run)
        sums = {path.name: sha256_file(path) for path in sorted(begun.iterdir())}
        write_text(begun / SUMS, "".join(f"{digest}  {each}\n" for each, digest in sums.items()))
    return Export(folder, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


def _write_slim(run: Run, target: Path) -> dict[str, Any]:
    """Write the slim weights; returns their metadata. Tensors are copied as they are, so that scores stay the same."""
    source = run.trained_weights("slim")
    source = source if source.is_file() else run.trained_weights("best")
    if not source.is_file():
        raise CheckpointError(f"{source} does not exist; finish the run with: calmctl train --resume {run.folder}")
    state, metadata = load_tensors(source, what=f"run {run.folder}")
    require_together(run, metadata, source)
    if not isinstance(metadata.get("recipe"), dict):  # full weights, or slim ones from before they said what they are
        metadata |= export_metadata(run.recipe(), run.anchors())
    state = {tensor: value for tensor, value in state.items() if not tensor.startswith(LEFT_OUT)}
    carried = {key: metadata[key] for key in _CARRIED if key in metadata}
    save_tensors(target, state, {**carried, "slim": True})
    return carried


def published_results(run: Run, name: str) -> dict[str, Any]:
    """The numbers of a run's best weights: of its validation, of its own test, and of every evaluation kept since.

    Caveats that name the run's folder name `name` instead.

    Raises:
        CheckpointError: What the run recorded is not numbers of an evaluation.
    """
    try:
        published = _published_results(run, name)
        for each in published["results"]:  # whatever the card will make of them, before anything is written
            _numbers(each)
        _results_tables(published["results"])
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, OverflowError) as fault:
        why = f"{type(fault).__name__}: {fault}"[:200]
        raise CheckpointError(f"{run.folder}: its recorded numbers cannot be read ({why}); evaluate it again") from None
    return published


def _published_results(run: Run, name: str) -> dict[str, Any]:
    finished = read_json(run.results, what=f"run {run.folder}") if run.results.is_file() else {}
    tests = [each for each in finished.get("test", []) if str(each.get("system", "")).startswith("best")]
    digests = {sha256_file(path) for path in (run.weights("best"), run.weights("slim")) if path.is_file()}
    for path in sorted(run.evals.glob("*.json")) if run.evals.is_dir() else ():
        record = read_json(path, what=f"run {run.folder}")
        # Of these weights alone; an evaluation before the run went on is of others.
        if record.get("weights_sha256") in digests:
            tests += [record["result"], *([record["base"]] if "base" in record else [])]
    # The training's own test and its kept evaluation are one; the kept one, which comes later, may know more, and a
    # number without a protocol card gives way to the same one with it.
    results: dict[str, dict[str, Any]] = {}
    for each in [_cleaned(each, run.folder.name, name) for each in tests]:
        what = json.dumps([each.get(key) for key in _WHAT])
        protocol = (each.get("card") or {}).get("column", "")
        if protocol:
            results.pop(what, None)
        results[what + protocol] = each
    ended = bool(finished) or not run.log.exists()  # weights that were given away come without either
    validation = finished.get("validation", [])
    return {"name": name, "finished": ended, "validation": validation, "results": list(results.values())}


def _cleaned(result: Mapping[str, Any], folder: str, name: str) -> dict[str, Any]:
    kept = {key: result[key] for key in _RESULT if key in result}
    if isinstance(kept.get("scores"), dict):
        kept["scores"] = {key: value for key, value in kept["scores"].items() if key not in _SCORES_LEFT}
    # A caveat names the run by the path that it had then.
    path = rf"(?:[^\s:;,()]*[/\\])?{re.escape(folder)}(?![\w.-])"
    kept["caveats"] = [re.sub(path, lambda _: name, str(caveat)) for caveat in kept.get("caveats", ())]
    return kept


# What must not be published.


def require_portable(folder: Path, run: Run) -> None:
    """Raise `BadInput` where a file of an export holds a path, a name or a secret of this machine.

    Exports are made of lists of what may go; this looks at what came of it, because a recipe's keys, a label list and
    a caveat are other people's text.
    """
    for path in sorted(folder.iterdir()):
        content = _text(path)
        for what, secret in _private(run):
            if secret.encode() in content or json.dumps(secret)[1:-1].encode() in content:
                raise BadInput(
                    f"{path.name} of the export would hold {what} of this machine; nothing was published. Look for it "
                    f"in {run.folder}/recipe.json and in the anchors, and name files without it"
                )


def _text(path: Path) -> bytes:
    """What of a file says anything in words: of weights their header, which holds the metadata."""
    with path.open("rb") as handle:
        if path.suffix != ".safetensors":
            return handle.read()
        return handle.read(int.from_bytes(handle.read(8), "little"))


def _private(run: Run) -> Iterator[tuple[str, str]]:
    places = {
        "the home folder": Path.home(),
        "the current folder": Path.cwd(),
        "the run's folder": run.folder.absolute(),
    }
    for what, place in places.items():
        if len(place.parts) > 2:  # "/" and "/root" stand in words of many languages
            yield what, str(place)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"):
        if token := os.environ.get(variable):
            yield f"the token in {variable}", token


def model_card(
    repository: str,
    recipe: Recipe,
    identity: RunIdentity | None,
    results: Mapping[str, Any],
    *,
    licence: str | None,
    parameters: int,
) -> str:
    """README.md of an export: a header that the hub reads, with a model-index, and a page for people.

    `results` are `published_results`; `identity` is None where it was not recorded what the weights were made of.
    """
    from huggingface_hub import EvalResult, ModelCardData

    name = repository.rpartition("/")[2]
    evaluations = [
        EvalResult(
            task_type="video-captioning" if recipe.task == "caption" else "video-text-retrieval",
            dataset_type=str(each["dataset"]),
            dataset_name=f"{each['dataset']} {each['protocol']}".strip(),
            dataset_split=str(each["split"]),
            metric_type=metric,
            metric_name=shown,
            metric_value=value,
        )
        for each in results["results"]
        for metric, shown, value in _numbers(each)
    ]
    header = ModelCardData(
        model_name=name,
        eval_results=evaluations or None,
        # The hub knows licences by a short name; any other has its name beside.
        license=licence if licence is not None and re.fullmatch(r"[a-z0-9.-]+", licence) else "other",
        license_name=None if licence is None or re.fullmatch(r"[a-z0-9.-]+", licence) else licence,
        library_name="calmctl",
        tags=["calm", "video-text-retrieval" if recipe.task == "retrieval" else "video-captioning"],
    )
    what = "writes a sentence for a video" if recipe.task == "caption" else "ranks videos for a sentence, and back"
    head = "a captioner" if recipe.task == "caption" else f"the head {recipe.head.kind}"
    aligned = "" if recipe.alignment.kind == "none" else f", trained with alignment.kind={recipe.alignment.kind}"
    use = "caption video.mp4" if recipe.task == "caption" else 'search "a man talking" --in my-videos'
    parts = [
        f"# {name}",
        f"A model of calmctl that {what}: {recipe.backbone.model} and {head}{aligned}; {parameters:,} parameters.",
        "## Use",
        f"    calmctl {use} --run hf://{repository}\n    calmctl eval hf://{repository} --root /data",
        *([] if results["finished"] else ["**This training had not ended when it was exported.**"]),
        "## Numbers",
        *(_results_tables(results["results"]) or ["Nothing was measured."]),
        "## Training data",
        training_sentence(recipe, identity),
        "## Licence",
        f"{licence}."
        if licence is not None
        else "Whoever published this named no licence. The backbone's weights and the training data have terms of "
        "their own, which hold for what was made of them.",
        "## Files",
        f"`{SLIM}` has weights, recipe and anchors, and is a run by itself; `recipe.yaml` and `vocabulary.yaml` say "
        f"the same to read; `results.json` has every number with its interval; `{SUMS}` has digests of all "
        f"(`sha256sum -c {SUMS}`).",
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def training_sentence(recipe: Recipe, identity: RunIdentity | None) -> str:
    """What the weights have seen, as far as it is known, in words."""
    plain = "No video, no frame and no caption is part of these files."
    if identity is None:
        data = f"{recipe.data.dataset} {recipe.data.protocol or ''}".strip()
        return f"Trained on {data}; how much of it was not recorded. {plain}"
    sentences = []
    train = identity.train
    used, listed = train.clips - identity.undecodable, train.clips + train.left_out
    share = f"{used:,} of {counted(listed, 'clip')}" if used < listed else counted(listed, "clip")
    sentences.append(f"Trained on {train.title}: {share}, {counted(train.captions, 'caption')}.")
    if train.differs:
        sentences.append(f"That is not the published split: {'; '.join(train.differs)}.")
    if identity.ancestors:
        seen = ", ".join(dict.fromkeys(split.title for split in identity.ancestors))
        sentences.append(f"It started from weights that were trained on {seen}.")
    if identity.unknown:
        sentences.append(f"It started from weights trained on {', '.join(identity.unknown)}, on clips not recorded.")
    weights = recipe.backbone.weights
    if weights is not None and not identity.ancestors and not identity.unknown:
        sentences.append(f"Its backbone started from {weights}, whose own training data are told where it comes from.")
    return " ".join([*sentences, plain])


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(type, name, value) of every number of a result that the model-index has."""
    if "scores" in result:
        scores = result["scores"]
        shown = {key: scores[key] for key in _CAPTION_METRICS if scores.get(key) is not None}
        return [(key, METRIC_NAMES[key], round(100 * value, 2)) for key, value in shown.items()]
    return [
        (f"{way}_{key}", f"{WAYS[way]} {METRIC_NAMES[key]}", round(result["metrics"][way][key], 2))
        for way in _WAYS
        for key in _METRICS
    ]


def _results_tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    for each in results:
        title = f"{each['dataset']} {each['protocol']}".strip()
        facts = [f"{each['split']} split"]
        if "n_clips" in each:
            facts.append(f"{counted(each['n_captions'], 'caption')}, {counted(each['n_clips'], 'clip')}")
        else:
            facts.append(counted(each["scores"]["n"], "clip"))
        facts.append(f"{counted(each.get('left_out', 0), 'clip')} left out")
        if each.get("scorer"):
            facts.append(f"scorer: {each['scorer']}; ties averaged")
        digest = (each.get("test_set") or {}).get("digest")
        facts += [f"test set {digest[:12]}"] if digest else []
        parts.append(f"**{title}** ({'; '.join(facts)})")
        parts.append("\n".join(_table(each)))
        if card := each.get("card"):
            shown = [
                f"{name.replace('_', ' ')} {_short(value)}" for name, value in card.items() if value not in (None, "")
            ]
            parts.append(f"Protocol card: {'; '.join(shown)}.")
        if each["caveats"]:
            parts.append("\n".join(f"- {caveat}" for caveat in each["caveats"]))
    return [*parts, "In parentheses: 95 % intervals over clips."] if parts else []


def _short(value: Any) -> str:
    """A value of a protocol card: digests by their first twelve digits, lists as what they are."""
    if isinstance(value, list):
        return ", ".join(map(str, dict.fromkeys(value)))
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", str(value))


def _table(result: Mapping[str, Any]) -> Iterator[str]:
    if "scores" in result:
        scores, bounds = result["scores"], result["scores"].get("intervals") or {}
        names = [key for key in _CAPTION_METRICS if scores.get(key) is not None]
        yield f"| {' | '.join(METRIC_NAMES[key] for key in names)} |"
        yield f"|{'---:|' * len(names)}"
        cells = [_cell(100 * scores[key], [100 * bound for bound in bounds.get(key, ())]) for key in names]
        yield f"| {' | '.join(cells)} |"
        return
    yield f"| | {' | '.join(METRIC_NAMES[key] for key in _METRICS)} |"
    yield f"|---|{'---:|' * len(_METRICS)}"
    for way in _WAYS:
        bounds = (result.get("intervals") or {}).get(way) or {}
        cells = []
        for key in _METRICS:
            bound = bounds.get(key)
            cells.append(_cell(result["metrics"][way][key], [bound["low"], bound["high"]] if bound else []))
        yield f"| {WAYS[way]} | {' | '.join(cells)} |"


def _cell(value: float, bounds: Sequence[float]) -> str:
    return f"{value:z.1f}" + (f" ({bounds[0]:z.1f} to {bounds[1]:z.1f})" if len(bounds) == 2 else "")


def push_run(run: Run, repository: str, *, licence: str | None = None, private: bool = True) -> str:
    """Export a run and put it into a repository of a hub, which is made where there is none; returns its commit.

    `repository` is OWNER/NAME. `private` says whether one that is made is seen by its owner alone.

    Raises:
        CalmError: As `export_run`.
        HubError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise BadInput(f"{repository!r} is no name of a repository, which is OWNER/NAME")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        export = export_run(run, Path(place, "export"), repository=repository, licence=licence)
        files = [CommitOperationAdd(each, str(export.folder / each)) for each in export.files]
        with translated(f"pushing to {repository}", repository):
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.create_commit(repository, files, commit_message=f"{name}, exported by calmctl")
    return str(commit.oid)
