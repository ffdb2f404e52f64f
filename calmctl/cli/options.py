"""What the command line takes: options that several commands have, each declared once and with one meaning.

An option of one command alone stands at that command. `tests/cli/test_options.py` compares the commands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from calmctl.device import check_device
from calmctl.errors import BadInput
from calmctl.files import PAGE, require_output
from calmctl.runtime import interruptible

if TYPE_CHECKING:
    from calmctl.recipe import Recipe
    from calmctl.source.base import SourceSpec


# Numbers that options take, each with the range in which it means something. A number is finite, and small enough that
# no command can be made to take all memory or all time by one. Outside its range the command line says so before
# anything is loaded.


@dataclass(frozen=True, slots=True)
class Range:
    """From `least` to `most`, both included; call it for an option with such numbers."""

    least: float
    most: float

    def __call__(self, *names: str, help: str, metavar: str = "N", panel: str | None = None) -> Any:
        """What `typer.Option` makes of it, for `Annotated`."""
        ends: dict[str, Any] = {"min": self.least, "max": self.most}
        return typer.Option(*names, **ends, callback=_number, help=help, metavar=metavar, rich_help_panel=panel)


def _number(value: float | None) -> float | None:
    """Refuse what lies in no range and, as older command-line libraries compare, outside of none."""
    if isinstance(value, float) and math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


# Each end was met once: a beam of a million took all memory, 100,000,000 seeds never ended, and a temperature
# of 1e-40 ended in a traceback.
COUNT = Range(1, 1_000_000)
# At most a day, as video/pool.py has it: an endless limit once made threads fail, and every clip was called broken.
SECONDS = Range(0.1, 86_400)
WORKERS = Range(1, 1024)
FRAMES = Range(1, 1000)
INSTANTS = Range(1, 1000)
ACTORS = Range(0, 10_000)
SEED = Range(0, 2**63 - 1)
SEEDS = Range(1, 1000)
BEAMS = Range(1, 100)
SIDE = Range(2, 4096)
LENGTH_PENALTY = Range(0, 10)
TEMPERATURE = Range(0.01, 100)


# Values that are looked at while the command line is read: what is wrong with them is said before anything is loaded.


def _device(value: str) -> str:
    check_device(value)
    return value


def _page(value: Path | None) -> Path | None:
    if value is not None:
        require_output(value, PAGE)
    return value


# Names that a shell completes (`calmctl --install-completion`). It asks at every press of a key: no library but the
# standard one is imported for the answer, but where names are listed by one.


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs by name and by path, in the folder that --runs names."""
    root = Path(ctx.params.get("runs") or "runs")
    names = sorted(path.parent.name for path in root.glob("*/recipe.json"))
    return [run for name in names for run in (name, str(root / name)) if run.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes; a file of one's own is completed by the shell itself."""
    from calmctl.files import shipped_folder

    names = sorted(path.stem for path in shipped_folder("recipes").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


def complete_vocabulary(incomplete: str) -> list[str]:
    """Shipped vocabularies with their versions."""
    from calmctl.files import shipped_folder

    names = sorted(path.stem for path in shipped_folder("anchors").glob("*@*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


# The options themselves. A panel is a frame of the help, so that a command with many options is read by subject.


DATA, MODEL, RUNNING = "Where clips and captions are", "Which model", "How it runs"

Annotations = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of annotation files, when not under --root.", rich_help_panel=DATA),
]
Features = Annotated[
    list[Path] | None,
    typer.Option(metavar="STORE", help="Features instead of videos; one per --cross.", rich_help_panel=DATA),
]
Protocol = Annotated[str | None, typer.Option(help="The data set's protocol, e.g. 9k.", rich_help_panel=DATA)]
RequireComplete = Annotated[
    bool, typer.Option("--require-complete", help="Whatever is left out is an error.", rich_help_panel=DATA)
]
Root = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder that holds the data set.", rich_help_panel=DATA)
]
Split = Annotated[str, typer.Option(help="test, val, or (not in eval and compare) train.", rich_help_panel=DATA)]
Videos = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of clips, when they lie elsewhere.", rich_help_panel=DATA),
]

Backbone = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A bare open_clip model, hf-hub:NAME, or a config.", rich_help_panel=MODEL),
]
# Not --weights: that chooses among a run's own files, and a bare backbone has a tag or a file.
BackboneWeights = Annotated[
    str | None,
    typer.Option(
        "--backbone-weights", metavar="WEIGHTS", help="Its tag, .safetensors or checkpoint.", rich_help_panel=MODEL
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="A run: its name, folder, slim file or hf://OWNER/NAME.",
        rich_help_panel=MODEL,
        autocompletion=complete_run,
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run, by name or folder; the pinned or newest one.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run, by name or folder.", autocompletion=complete_run)]
RunNames = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs, by name or folder.", autocompletion=complete_run)
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Other anchors than the run's.",
        rich_help_panel=MODEL,
        autocompletion=complete_vocabulary,
    ),
]
Weights = Annotated[str, typer.Option(help="best (on validation), last or slim.", rich_help_panel=MODEL)]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=RUNNING, callback=_device)]
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of runs.", rich_help_panel=RUNNING)]
Timeout = Annotated[float, SECONDS("--timeout", metavar="SECONDS", help="Time limit for one clip.", panel=RUNNING)]
Workers = Annotated[int | None, WORKERS(help="Decoding processes; one per core.", panel=RUNNING)]

# Of a required one, and of the one that --resume stands for.
RECIPE = typer.Argument(
    metavar="RECIPE", help="A recipe file, or a shipped recipe's name.", autocompletion=complete_recipe
)
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OTHER", help="Compare with this one; repeatable.", show_default=False, autocompletion=complete_run
    ),
]
Cross = Annotated[
    list[str] | None, typer.Option(metavar="DATASET[:PROTOCOL]", help="Test on this data set; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it takes; train nothing.")]
Html = Annotated[Path | None, typer.Option(metavar="PAGE", help="Write one self-contained page.", callback=_page)]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Licence = Annotated[str | None, typer.Option(help="What may be done with it.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change: optim.epochs=2.")
]
Seed = Annotated[int, SEED(help="Seed of all that is drawn at random.")]
Tokenizer = Annotated[str, typer.Option(help="Of captions: ptb (CoreNLP's), ptb-python or none.")]
Top = Annotated[int, COUNT(help="How many to show.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
VocabularyFile = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Vocabulary file to write.")]


# What several options say together.


Choice = TypeVar("Choice", bound=str)


def one_of(choices: Collection[Choice], option: str, value: str) -> Choice:
    """The one of `choices` that `value` is; raises `BadInput`, which names `option`, where it is none."""
    for choice in choices:
        if choice == value:
            return choice
    raise BadInput(f"{option} {value} is not known; use one of {', '.join(choices)}")


def is_bare(run: str | None, backbone: str | None, weights: str | None, *, zero_shot: bool = False) -> bool:
    """Whether a bare backbone is asked for, and not a run; raises `BadInput` where both are."""
    bare = zero_shot or backbone is not None or weights is not None
    if bare and run is not None:
        others = "--zero-shot, --backbone or --backbone-weights" if zero_shot else "--backbone or --backbone-weights"
        raise BadInput(f"--run and {others} exclude each other; give one of them")
    return bare


def check_bare(backbone: str | None, weights: str | None) -> None:
    """Refuse a backbone that is none before torch and open_clip are imported, which takes seconds."""
    from calmctl.model.spec import check_backbone
    from calmctl.recipe.schema import BackboneSection

    model = backbone or BackboneSection().model
    check_backbone(model, weights or BackboneSection(model=model).weights)


def check_cross(recipe: Recipe, cross: Sequence[str] | None, features: Sequence[Path] | None) -> None:
    """Refuse what --cross and --features have wrong, before anything is loaded.

    Raises:
        BadInput: Features of more or fewer data sets than there are.
        CalmError: There is no such data set or protocol.
    """
    from calmctl.data.registry import protocol_for, resolve

    crossed = _crossed(cross)
    for name, wanted in crossed:
        resolve(name, protocol_for(recipe.task, name, wanted))
    # One store for two sets once gave the same numbers under both names.
    if features and len(features) != max(1, len(crossed)):
        raise BadInput(
            f"{len(features)} x --features and {len(crossed)} x --cross: a feature store is of one data set; give "
            "one --features for each --cross, in their order"
        )


def check_places(
    recipe: Recipe, cross: Sequence[str] | None, root: Path | None, annotations: Path | None, videos: Path | None
) -> None:
    """Raise what `load_dataset` would, before anything is loaded, where no place of a test set is a folder."""
    from calmctl.data.registry import protocol_for, require_place

    data = recipe.data
    for name, wanted in _crossed(cross):
        roots = [root] if root else [Path(data.root), Path("data") / name]
        require_place(name, roots, protocol_for(recipe.task, name, wanted), annotations, videos)
    if not cross:
        require_own_place(recipe, root, annotations, videos)


def require_own_place(
    recipe: Recipe, root: Path | None = None, annotations: Path | None = None, videos: Path | None = None
) -> None:
    """The same for a recipe's own data; an option goes before the recipe's key."""
    from calmctl.data.registry import protocol_for, require_place

    data = recipe.data
    annotations, videos = (
        given or (Path(place) if place else None)
        for given, place in ((annotations, data.annotations), (videos, data.videos))
    )
    protocol = protocol_for(recipe.task, data.dataset, data.protocol)
    require_place(data.dataset, [root or Path(data.root)], protocol, annotations, videos)


def test_sets(
    recipe: Recipe,
    cross: Sequence[str] | None,
    root: Path | None,
    annotations: Path | None,
    videos: Path | None,
    features: Sequence[Path] | None,
) -> list[SourceSpec]:
    """The test sets that --cross names, or the run's own, where --root and the others say that they lie."""
    from calmctl.source.base import SourceSpec

    if crossed := _crossed(cross):
        # Nothing is taken over from the run: where its own data lies says nothing of another set.
        stores: list[Path | None] = [*features] if features else [None] * len(crossed)
        return [
            SourceSpec(name, root, annotations, videos, wanted, store)
            for (name, wanted), store in zip(crossed, stores, strict=True)
        ]
    store = features[0] if features else None
    given: dict[str, Any] = {"root": root, "annotations": annotations, "videos": videos, "features": store}
    return [replace(SourceSpec.of(recipe.data), **{name: place for name, place in given.items() if place})]


def _crossed(cross: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """DATASET or DATASET:PROTOCOL, each in two."""
    return [(name, wanted or None) for name, _, wanted in (each.partition(":") for each in cross or [])]


# How commands are parsed and how their help looks.


def examples(*lines: str) -> str:
    """The end of a help: lines to copy."""
    return "Examples:\n\n" + "\n".join(lines)


def _plain(params: list[Any]) -> list[Any]:
    """Parameters whose help says nothing of a flag's type, which takes no value, nor of a number's range.

    The range is told when it is missed; in the help it takes half a line. Of a parameter, `min` and `max` are for the
    help alone.
    """
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        param.min = param.max = None
    return params


class Group(TyperGroup):
    """A group of subcommands; their flags, and its own, are shown without a type.

    A command may have a name of two words: `search similar` stands beside `search`, whose arguments are sentences. What
    follows `--` is never a name, so that `search -- similar` searches for the word.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the group itself."""
        return _plain(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C, SIGTERM and SIGHUP end it in a sentence, whatever it was doing.

        Raises `BadInput` where there is no current folder.
        """
        try:
            os.getcwd()
        except FileNotFoundError:  # nearly every path would be refused with other words, if not with a traceback
            raise BadInput("the current folder was removed or moved away; cd to another one and run again") from None

        # Here, because outside of it click has made "Aborted!" of it. What has more to say says so further inside.
        with interruptible("what was finished is kept; the same command begins again, or goes on with it"):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the command and its arguments."""
        words = 2 if " ".join(args[:2]) in self.commands else 1
        name, command, rest = super().resolve_command(ctx, [" ".join(args[:words]), *args[words:]])
        if name is not None:
            command = self.commands[name]  # what `get_command` gives may be for lists alone
            _plain(command.get_params(ctx))
        return name, command, rest


Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """A group of subcommands, as `calmctl runs` is; its help, and that of each, ends in lines to copy."""

    def __init__(self, help: str, *lines: str) -> None:
        super().__init__(cls=Group, no_args_is_help=True, rich_markup_mode="rich", help=help, epilog=examples(*lines))

    def verb(self, *lines: str, name: str | None = None) -> Callable[[Function], Function]:
        """Decorate the function of a subcommand, which is called as the function, or `name`."""
        return self.command(name, epilog=examples(*lines))


class RecipeCommand(TyperCommand):
    """A subcommand that takes recipe keys: whoever writes one as an option is shown how it is set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`; raises `BadInput` for an option that does not exist."""
        known = [name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)]
        for place, word in enumerate(args):
            name, _, value = word.partition("=")
            if name.startswith("--") and name != "--" and name not in known:
                from calmctl.recipe.load import nearest_keys

                value = value or next(iter(args[place + 1 :]), "VALUE")
                # An option is the nearer guess; only what looks like none is taken for a key.
                options = get_close_matches(name, known, n=1, cutoff=0.75)
                keys = [] if options else nearest_keys(name[2:].replace("-", "_"))
                hints = options or [f"{key}={value}" for key in keys]
                hint = f"did you mean {' or '.join(hints)}?" if hints else "recipe keys are set as optim.epochs=3"
                raise BadInput(f"there is no option {name}; {hint}")
        return super().parse_args(ctx, args)
