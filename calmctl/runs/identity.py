"""What a run's weights were made of, carried by run.json and by every weights file, and compared wherever they meet.

A `RunIdentity` has digests of the recipe, the anchors, the weights it started from and every split, and which clips
were trained on, those of earlier trainings included. It names no path, so that weights can be published with it.
Resuming compares it with the data of today; loading compares recipe.json and vocabulary.yaml with it; an evaluation
looks for its test clips in it. Runs from before it was recorded have none: they are read, and nothing is promised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from calmctl.anchors.vocabulary import Vocabulary
from calmctl.data.identity import FEATURES, ORDER, SplitRecord, changes, shared_clips
from calmctl.data.registry import BENCHMARKS, DATASETS
from calmctl.errors import CheckpointError, RunFailed
from calmctl.files import read_json, sha256_bytes, sha256_file
from calmctl.recipe import Recipe
from calmctl.runs.run import IDENTITY, RUNS, ExportedRun, Run, find_run
from calmctl.tensors import read_metadata
from calmctl.words import counted

_NOT_THE_RESULT: Mapping[str, Sequence[str]] = {
    "": ("name", "device", "init_from"),
    "data": ("root", "annotations", "videos", "features", "workers", "timeout_s", "cache_folder", "cache_gb"),
    "anchors": ("vocabulary",),
    "backbone": ("weights",),
    "head": ("from_run",),
    "optim": ("log_every", "save_every"),
}
"""Keys that say where, how often and under which name: what lies there has a digest of its own."""
_LATER: Mapping[str, Mapping[str, Any]] = {
    "data": {
        "captions_per_clip": "all",
        "short_side": None,
        "compressed": {"gops": 8, "pictures": 59, "vectors": "quarter", "residual": True, "reencode": False},
    },
    "backbone": {"image_size": None},
    "caption": {"system": "transformer", "concepts": 300, "semantics": "both"},
    "optim": {"compile": "auto"},
}
"""Keys that came after the study of docs/results.md was run, with the values at which they change nothing."""
_STARTS = ("anchors.vocabulary", "backbone.weights", "head.from_run", "init_from")
"""Those among them that name what a training started from."""
_HOLDS_TEST_CLIPS_OF = {"msrvtt 9k": "msrvtt full"}
"""Training lists that hold clips of another protocol's test split: 1,990 of 2,990 here (docs/data.md)."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a training was made of.

    Attributes:
        recipe: `recipe_digest`.
        vocabulary: Digest of the anchors.
        start_file: SHA-256 of the weights file it started from (`started_from`), "" where that was a tag or nothing.
        start: SHA-256 of the towers' parameters that it started from.
        ancestors: The training splits of the weights it started from, and of those that they started from.
        unknown: Trainings among those that did not record theirs.
        undecodable: Training clips that turned out not to decode.
    """

    recipe: str
    vocabulary: str
    start_file: str
    start: str
    splits: Mapping[str, SplitRecord]
    ancestors: tuple[SplitRecord, ...] = ()
    unknown: tuple[str, ...] = ()
    undecodable: int = 0

    @property
    def train(self) -> SplitRecord:
        """The split that was trained on."""
        return self.splits["train"]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def for_weights(self, undecodable: int) -> dict[str, Any]:
        """What weights carry: what it takes to find test clips among what was seen."""
        # Weights are given away: they carry what it takes to find a clip again, and run.json has the rest.
        splits = {name: record.lean() for name, record in self.splits.items()}
        return replace(self, splits=splits, undecodable=undecodable).to_json()


_ADAPTER = TypeAdapter(RunIdentity)


def recipe_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's keys, as recipe.json has them, that can change a number of its run."""
    kept = {
        section: {key: value for key, value in keys.items() if key not in _NOT_THE_RESULT.get(section, ())}
        for section, keys in values.items()
        if isinstance(keys, dict)
    }
    if (kept.get("data") or {}).get("cache") == "disk":  # frames kept on disk are those of decoding, to the bit
        kept["data"]["cache"] = "none"
    other = {key: value for key, value in values.items() if key not in (*kept, *_NOT_THE_RESULT[""])}
    # A place is no identity, but whether videos or features are read, and which published weights, is one.
    features, weights = (values.get("data") or {}).get("features"), (values.get("backbone") or {}).get("weights")
    start = "a file" if is_weights_file(weights) else weights
    # Runs from before there was this key have the digest of then.
    begun = ["a run"] if values.get("init_from") else []
    return sha256_bytes(json.dumps([kept, other, bool(features), start, *begun], sort_keys=True).encode())


def former_digest(values: Mapping[str, Any]) -> str:
    """`recipe_digest` as it was before there were the keys of `_LATER`, where those say what was done then."""
    former = {
        name: {key: value for key, value in keys.items() if key not in later or later[key] != value}
        for name, keys in values.items()
        if isinstance(keys, dict)
        for later in (_LATER.get(name, {}),)
    }
    return recipe_digest({**values, **former})


def is_no_result(key: str) -> bool:
    """Whether a recipe's key, such as "data.root", says where, how often or under which name.

    What a training started from is named by such keys, too, and is part of what its result is.
    """
    section, _, name = key.rpartition(".")
    return name in _NOT_THE_RESULT.get(section, ()) and key not in _STARTS


def is_weights_file(weights: str | None) -> bool:
    """Whether `backbone.weights` names a file rather than a pretrained tag."""
    return weights is not None and Path(weights).suffix == ".safetensors"


def started_from(recipe: Recipe) -> str | None:
    """The weights that a training starts from: those of the run that it names, else `backbone.weights`.

    Raises:
        RunNotFound: There is no run at `head.from_run` or `init_from`.
    """
    start = recipe.head.from_run or recipe.init_from
    if start is None:
        return recipe.backbone.weights
    run = find_run(start, RUNS)
    slim = run.weights("slim")
    return str(slim if slim.is_file() else run.trained_weights("best"))


def identify(recipe: Recipe, vocabulary: Vocabulary, start: str, splits: Mapping[str, SplitRecord]) -> RunIdentity:
    """The identity of a training that is about to begin; `start` is the digest of its towers' parameters."""
    weights = started_from(recipe)
    ancestors: tuple[SplitRecord, ...] = ()
    unknown: tuple[str, ...] = ()
    if lineage := weights_lineage(weights):
        earlier = weights_identity(Path(str(weights)))
        if earlier is None:
            unknown = lineage
        else:
            # Weights of weights count: a captioner that starts from a 9k run has seen what that run has seen.
            ancestors, unknown = (*earlier.ancestors, earlier.train.lean()), earlier.unknown
    return RunIdentity(
        recipe=recipe_digest(recipe.model_dump(mode="json")),
        vocabulary=vocabulary.digest,
        # A tag has no file of ours to compare; its parameters have the digest `start` all the same.
        start_file=sha256_file(Path(str(weights))) if is_weights_file(weights) else "",
        start=start,
        splits=dict(splits),
        ancestors=ancestors,
        unknown=unknown,
    )


def run_identity(run: Run) -> RunIdentity | None:
    """What a run says its training was begun with; None where it was begun before that was recorded."""
    return _identity(run.record().get(IDENTITY), str(run.folder))


def weights_identity(path: Path) -> RunIdentity | None:
    """What a weights file of ours says it was made of; None for one from before that was recorded."""
    return _identity(read_metadata(path, what="weights").get(IDENTITY), str(path))


def _identity(value: Any, source: str) -> RunIdentity | None:
    if value is None:
        return None
    try:
        identity = _ADAPTER.validate_python(value)
    except ValidationError as fault:
        place = ".".join(map(str, fault.errors()[0]["loc"]))
        raise CheckpointError(f"{source} does not say in a readable way what it was trained on ({place})") from None
    if "train" not in identity.splits:
        raise CheckpointError(f"{source} does not say what it was trained on")
    return identity


def require_unchanged(run: Run, before: RunIdentity, now: RunIdentity) -> None:
    """Refuse to go on with a run whose recipe, anchors, data or start are not those that it was begun with.

    Raises:
        RunFailed: The message says what has changed.
    """
    faults = []
    # recipe.json as it stands, and not through `Recipe` alone, to which a later version may have added keys.
    as_begun = recipe_digest(read_json(run.recipe_file, what=f"run {run.folder}", error=CheckpointError))
    as_read = recipe_digest(run.recipe().model_dump(mode="json"))
    if as_begun != before.recipe or now.recipe not in (before.recipe, as_read):
        faults.append("recipe.json was edited")
    if before.vocabulary != now.vocabulary:
        faults.append("its anchors are others")
    for name in dict.fromkeys((*before.splits, *now.splits)):
        if name not in now.splits or name not in before.splits:
            faults.append(f"the data has changed (the {name} split is {'gone' if name in before.splits else 'new'})")
        elif differences := changes(before.splits[name], now.splits[name]):
            faults.append(f"the data has changed ({name}: {', '.join(differences)})")
    # A checkpoint holds the towers; before the first one they come from the file, which must be the same then.
    if not run.state.exists() and (before.start_file, before.start) != (now.start_file, now.start):
        faults.append("backbone.weights are others")
    if faults:
        raise RunFailed(f"{run.folder}: {'; '.join(faults)} since it was begun; put that back, or train it anew")


def require_together(run: Run, metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse weights beside another recipe or other anchors of `run` than they were trained with.

    `metadata` is that of the weights file at `path`; weights from before this was recorded pass.
    """
    identity = _identity(metadata.get(IDENTITY), str(path))
    if identity is None or isinstance(run, ExportedRun):  # which is one file, under one digest
        return
    for name in _changed_files(run, identity):
        raise CheckpointError(
            f"{path} was not trained with the {name} beside it: one of the two was changed or comes from another "
            "run, and numbers would stand under a false name; put back the file of its own training"
        )


def _changed_files(run: Run, identity: RunIdentity) -> list[str]:
    """Those of a run's files that are not the ones its training was begun with."""
    # recipe.json as it stands and not through `Recipe`, to which a later version may have added keys.
    values = read_json(run.recipe_file, what=f"run {run.folder}", error=CheckpointError)
    pairs = (
        (run.recipe_file.name, recipe_digest(values), identity.recipe),
        (run.vocabulary.name, run.anchors().digest, identity.vocabulary),
    )
    return [name for name, ours, theirs in pairs if ours != theirs]


def require_own_recipe(run: Run) -> None:
    """Refuse numbers that were kept beside another recipe or other anchors than the run was begun with.

    Raises:
        CheckpointError: recipe.json or vocabulary.yaml was changed since; runs from before this was recorded pass.
    """
    identity = None if isinstance(run, ExportedRun) else run_identity(run)
    if identity is None:
        return
    if faults := _changed_files(run, identity):
        raise CheckpointError(
            f"{run.folder}: {' and '.join(faults)} changed since it was begun, and its numbers would stand under a "
            "false name; put back the file of its own training"
        )


def weights_lineage(weights: str | None) -> tuple[str, ...]:
    """The datasets behind `backbone.weights`, such as ("msrvtt 9k",); none known for weights that are not ours."""
    path = Path(weights or "")
    if path.suffix != ".safetensors" or not path.is_file():
        return ()
    metadata = read_metadata(path, what="backbone.weights")
    if "trained_on" in metadata:
        lineage = metadata["trained_on"]
        if not isinstance(lineage, list) or not all(isinstance(name, str) for name in lineage):
            raise CheckpointError(f"backbone.weights: {path} does not say in plain words what it was trained on")
        return tuple(lineage)
    recipe = path.parent / "recipe.json"
    if "backbone" in metadata and recipe.is_file():  # a run of ours from before weights told
        data = read_json(recipe, what="backbone.weights")["data"]
        info = DATASETS.get(data["dataset"])
        return (dataset_name(data["dataset"], data["protocol"] or (info.default_protocol if info else "")),)
    return ()


def dataset_name(dataset: str, protocol: str) -> str:
    """A dataset under a protocol, as a lineage lists it."""
    return f"{dataset} {protocol}".strip()


def require_unseen(trained_on: Sequence[str], dataset: str, protocol: str, *, what: str) -> None:
    """Refuse to test on a protocol that is known to share most of its test clips with what was trained on.

    `what` has the lineage `trained_on`, for the message.

    Raises:
        CheckpointError: The lineage holds test clips of the protocol.
    """
    for trained in trained_on:
        if _HOLDS_TEST_CLIPS_OF.get(trained) == dataset_name(dataset, protocol):
            raise CheckpointError(
                f"{what} was trained on {trained}, whose training list holds 1,990 of the 2,990 test clips of "
                f"{dataset_name(dataset, protocol)}: numbers on them would be no test; start from the original "
                "weights, or from a run trained with data.protocol=7k"
            )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What has to be said of a number, and whether the paper's may stand beside it.

    Attributes:
        caveats: What is not as the names of data and training say.
        published: Whether training and test split are the published ones and whole, as far as is known.
    """

    caveats: tuple[str, ...]
    published: bool


def judge(
    identity: RunIdentity | None, test: SplitRecord, *, run: Run | None, own: bool, finished: bool = True
) -> Judgement:
    """What has to be said of a number of a run's weights on a test set.

    Args:
        identity: Of the weights, None where they are from before it was recorded.
        test: What they were tested on.
        run: The run, for its name; None for the starting weights of one.
        own: Whether this is the data that the run was trained beside, in its own place.
        finished: Whether the run has ended.
    """
    name = str(run.folder) if run is not None else "the run"
    # One place decides what has to be said, so that table, page and JSON cannot say different things of one number.
    caveats = [*split_faults(test)]
    published = not caveats
    if identity is None:
        published = False
        caveats.append(
            f"{name} was made before calmctl recorded what it was trained on: whether test clips were among it, or "
            "training clips were missing, cannot be told; train it anew to know"
        )
    else:
        faults = [*_training_faults(identity), *_overlaps(identity, test)]
        published = published and not faults
        caveats += faults
        then = identity.splits.get(test.name)
        # An export knows no place, and a run may be given another: the same clips under the same name are its own.
        same = then is not None and (then.title, then.ids) == (test.title, test.ids)
        if then is not None and (own or same):
            # The order of test clips changes no number. That of training clips changes batches: a resume minds it.
            # Whoever names another place may well name features where the training decoded videos.
            passing = (ORDER,) if own else (ORDER, FEATURES)
            differences = [difference for difference in changes(then, test) if difference not in passing]
            if differences or then.digest != test.digest:
                caveats.append(
                    f"{test.dataset}: the {test.name} split has changed since {name} was trained "
                    f"({', '.join(differences) or 'captions differ'}): not comparable with the numbers of its training"
                )
    if not finished:
        caveats.append(f"{name} is not finished: its weights may still change, and the best epoch be another one")
    return Judgement(tuple(dict.fromkeys(caveats)), published)


def split_faults(test: SplitRecord) -> list[str]:
    """In what a split is not the one that its name promises."""
    if test.dataset not in BENCHMARKS:
        return []
    if test.differs is None:
        return [
            f"{test.title}: its feature store was made before calmctl recorded whether a split is the published one; "
            "run the same 'calmctl extract' again to know"
        ]
    if test.differs:
        return [f"{test.title}: not the published {test.name} split: {'; '.join(test.differs)}"]
    return []


def _training_faults(identity: RunIdentity) -> list[str]:
    train, faults = identity.train, []
    # Clips that turned out not to decode stood on the list, and nothing was learned of them.
    used, listed = train.clips - identity.undecodable, train.clips + train.left_out
    if used < listed:
        faults.append(
            f"trained on {used:,} of {counted(listed, 'training clip')} of {train.title}; the rest is missing"
        )
    if train.dataset in BENCHMARKS:
        if train.differs is None:
            faults.append(f"whether {train.title} was trained on the published split was not recorded")
        elif train.differs:
            faults.append(f"trained on {train.title}, but not on the published train split: {'; '.join(train.differs)}")
    return faults


def _overlaps(identity: RunIdentity, test: SplitRecord) -> list[str]:
    """Test clips that were trained on, or that the best epoch was chosen on; and where that cannot be told."""
    faults = []
    for split in (identity.train, *identity.ancestors):
        if (shared := shared_clips(test, split)) > 0:
            faults.append(
                f"{test.title}: {shared:,} of {counted(test.clips, f'{test.name} clip')} "
                f"{'was' if shared == 1 else 'were'} trained on ({split.title}): these are no numbers for unseen clips"
            )
        # In a folder a name proves nothing; only content tells, and older features did not record it.
        elif test.dataset == split.dataset == "folder" and not (test.knows_files and split.knows_files):
            faults.append(
                f"{test.title}: features were extracted before calmctl recorded the content of clips: whether test "
                "clips were trained on cannot be told; extract anew to know"
            )
    # Not trained on, and yet no test: the best of many noisy measurements on these clips is what was kept.
    validated = identity.splits.get("val")
    if validated is not None and test.name != "val" and (shared := shared_clips(test, validated)) > 0:
        faults.append(
            f"{test.title}: {shared:,} of {counted(test.clips, f'{test.name} clip')} "
            f"{'is a' if shared == 1 else 'are'} validation clip{'' if shared == 1 else 's'}, on which the best epoch "
            "was chosen"
        )
    if identity.unknown:
        faults.append(
            f"it started from weights trained on {', '.join(identity.unknown)} before calmctl recorded training clips: "
            "whether test clips were among them cannot be told"
        )
    return faults


def state_digest(identity: RunIdentity) -> str:
    """What a checkpoint carries of its run's identity: a digest."""
    return sha256_bytes(json.dumps(identity.to_json(), sort_keys=True).encode())
