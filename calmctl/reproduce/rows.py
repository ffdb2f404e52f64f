"""The paper's Tables 1 to 7 and the ablations, as rows of the shipped recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from calmctl.errors import BadInput
from calmctl.evaluation.paper import ALIGNMENT, ANCHORS, CAPTIONING, METHODS, RETRIEVAL
from calmctl.recipe import Recipe, load_recipe, resolve_recipe

HEADS: Mapping[str, str] = {
    "meanp": "CLIP4Clip meanP",
    "seqlstm": "CLIP4Clip seqLSTM",
    "seqtransf": "CLIP4Clip seqTransf",
    "emcl": "EMCL",
    "wti": "words with frames",
    "uatvr": "UATVR",
    "diffusionret": "DiffusionRet",
    "xpool": "X-Pool",
    "t-mass": "T-MASS",
}
"""Labels of the heads, in the order of Table 1."""

_SINGLE_RUNS = (
    "The paper's numbers are single runs without a seed, and its evaluator is not stated; that of its baseline leaks "
    "(docs/protocols.md), so its rows of T-MASS and CALM may be inflated."
)


def head_rows(recipe: str, tests: tuple[str, ...]) -> list[Row]:
    """Every head without and with CALM's loss: the first half of the question that the paper asks."""
    rows = []
    for head in HEADS:
        if head == "diffusionret":
            rows += _two_stage_rows(recipe, tests)
            continue
        rows.append(Row(head, HEADS[head], recipe, (f"head.kind={head}", "alignment.kind=none"), tests))
        # Recipe and seed are those of the row above: the loss alone differs.
        with_calm = (f"head.kind={head}", "alignment.kind=vae")
        rows.append(Row(f"{head}+calm", "  with CALM", recipe, with_calm, tests, baseline=head))
    return rows


def _two_stage_rows(recipe: str, tests: tuple[str, ...]) -> list[Row]:
    """DiffusionRet's first stage without and with CALM's loss, and the second stage of each."""
    first, second, losses = [], [], {"": "none", "+calm": "vae"}
    for calm, kind in losses.items():
        base = ("head.kind=wti", "head.hidden=2", f"alignment.kind={kind}")
        label, held = ("  with CALM", "diffusionret-1") if calm else ("DiffusionRet, base", "")
        first.append(Row(f"diffusionret-1{calm}", label, recipe, base, tests, held))
        keys = ("head.kind=diffusionret", "head.base=wti", "head.hidden=2", "alignment.kind=none")
        stage = (*keys, f"head.base_alignment={kind}", f"head.from_run=diffusionret-1{calm}")
        label, held = ("  with CALM", "diffusionret") if calm else ("DiffusionRet", "diffusionret-1")
        second.append(Row(f"diffusionret{calm}", label, recipe, stage, tests, held, first=f"diffusionret-1{calm}"))
    note = "re-ranked, list-wise over the best of its base, whose own leak-free number has a row as well"
    return [*first, *(replace(row, note=note) for row in second)]


def choice_rows(
    recipe: str, tests: tuple[str, ...], choices: Iterable[tuple[str, str, tuple[str, ...]]], plain: tuple[str, ...]
) -> list[Row]:
    """CALM with one choice changed a row, each compared with CALM as the recipe has it."""
    return [
        Row(f"t-mass+calm-{key}", label, recipe, (*plain, *overrides), tests, baseline="t-mass+calm")
        for key, label, overrides in choices
    ]


def published_table(name: str) -> Table:
    """A table on the paper's own data. Raises `BadInput` for a name that is none."""
    if name not in PUBLISHED:
        raise BadInput(f"there is no {name}; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]()


def _retrieval(number: int, recipe: str, tests: tuple[str, ...]) -> Table:
    rows = head_rows(recipe, tests)
    if recipe == "msrvtt":  # its recipe has T-MASS's support text, which some say does harm
        plain = ("head.kind=t-mass", "head.support_weight=0")
        rows.append(Row("t-mass-0", "T-MASS, no support", recipe, (*plain, "alignment.kind=none"), tests))
        rows.append(Row("t-mass-0+calm", "  with CALM", recipe, plain, tests, baseline="t-mass-0"))
    printed = {
        key: {
            row.tested_on: {"r1": row.r1, "r5": row.r5, "r10": row.r10, "mnr": row.mnr}
            for row in RETRIEVAL
            if (row.table, row.method) == (number, method)
        }
        for key, method in METHODS.items()
    }
    return Table(
        f"table{number}",
        f"Table {number}: retrieval, trained on {recipe}",
        tuple(_with_paper(row, printed.get(row.key)) for row in rows),
        notes=(
            _SINGLE_RUNS,
            "Every head has the recipe's optimiser, as the paper re-implements all under one setup.",
            *(
                f"The paper's {row.method} on {row.tested_on} {row.note}."
                for row in RETRIEVAL
                if row.table == number and row.method in METHODS.values() and row.note
            ),
        ),
    )


NO_CAPTIONER = {"TextKG": "its regions, speech and knowledge graphs are published by nobody; its row is quoted"}
"""Systems of Tables 4 and 5 that are not run, with the reason."""


def _captioning(number: int, tested_on: str, trained_on: tuple[str, ...]) -> Table:
    rows = []
    for dataset in trained_on:
        ours, theirs = f"{dataset}-caption", f"{dataset}-clip4caption"
        calm, numbers = _printed_captions("CALM", dataset, tested_on)
        plain = Row(f"{dataset}-none", "our captioner", ours, ("alignment.kind=none",), (tested_on,))
        rows += [plain, Row(f"{dataset}-calm", "  with CALM", ours, (), (tested_on,), plain.key, numbers, note=calm)]
        note, numbers = _printed_captions("CLIP4Caption", dataset, tested_on)
        rows.append(Row(theirs, "CLIP4Caption", theirs, (), (tested_on,), "", numbers, note=note))
        rows += _adapted(theirs, tested_on)
        cocap = f"{dataset}-cocap"
        note, numbers = _printed_captions("CoCAP", dataset, tested_on)
        rows.append(Row(cocap, "CoCap", cocap, (), (tested_on,), "", numbers, note=note))
        rows.append(Row(f"{cocap}+calm", "  with CALM", cocap, ("alignment.kind=vae",), (tested_on,), cocap))
        semsynan = f"{dataset}-semsynan"
        # The paper has no row of it trained elsewhere.
        note, numbers = _printed_captions("SemSynAN", dataset, tested_on) if dataset == tested_on else ("", {})
        rows.append(Row(semsynan, "SemSynAN over CLIP", semsynan, (), (tested_on,), "", numbers, note=note))
        rows += _adapted(semsynan, tested_on)
    others = dict.fromkeys(row.method for row in CAPTIONING if row.table == number and row.method in NO_CAPTIONER)
    return Table(
        f"table{number}",
        f"Table {number}: captions of {tested_on}",
        tuple(rows),
        left_out={method: NO_CAPTIONER[method] for method in others},
        notes=(
            "The paper does not describe its captioner; ours is in docs/captioning.md.",
            "CLIP4Caption starts without UniVL's weights and writes CLIP's byte pairs (the recipes say more).",
            "SemSynAN over CLIP is its decoder alone: its features, word vectors and training are not to be had.",
            "CoCap reads clips that calmctl data reencode has put into DATASET/reencoded; its residual is the codec's.",
            *(
                f"The paper's {row.method}, trained on {row.trained_on}: {row.note}."
                for row in CAPTIONING
                if row.table == number and row.note and row.method in NO_CAPTIONER
            ),
        ),
    )


def _adapted(recipe: str, tested_on: str) -> list[Row]:
    """A captioner on frozen features with an adapter, through which CALM's loss reaches it, and with that loss."""
    keys, adapter = ("backbone.adapter=linear",), f"{recipe}+adapter"
    return [
        Row(adapter, "  with an adapter", recipe, keys, (tested_on,), recipe),
        Row(f"{recipe}+calm", "  and CALM", recipe, (*keys, "alignment.kind=vae"), (tested_on,), adapter),
    ]


def _printed_captions(method: str, trained_on: str, tested_on: str) -> tuple[str, dict[str, dict[str, float]]]:
    """What a reader must know of the paper's row, and its numbers by dataset and metric."""
    row = next(r for r in CAPTIONING if (r.method, r.trained_on, r.tested_on) == (method, trained_on, tested_on))
    return row.note, {tested_on: {name: getattr(row, name) for name in ("bleu4", "meteor", "cider", "rouge_l")}}


def _anchors() -> Table:
    tests = ("msrvtt",)
    printed = [{"msrvtt": {"r1": row.r1, "r5": row.r5, "mnr": row.mnr}} for row in ANCHORS]
    none, fifty, hundred, every, coco, merged = printed
    rows = anchor_rows("msrvtt", tests, (50, 100), "charades@1", "coco@1", "charades+coco@1")
    return Table(
        "table6",
        "Table 6: number and kind of anchors, MSR-VTT",
        tuple(
            _with_paper(row, paper)
            for row, paper in zip(rows, (none, fifty, hundred, every, coco, merged), strict=True)
        ),
        notes=(_SINGLE_RUNS, "The paper prints 258 for Charades and COCO together; 157 + 91 is 248."),
    )


def anchor_rows(
    recipe: str, tests: tuple[str, ...], subsets: tuple[int, int], own: str, other: str, merged: str
) -> list[Row]:
    """No anchors, two subsets, all, another vocabulary, and both together; every seed draws its own subset."""
    base = "t-mass"
    calm = ("head.kind=t-mass", "alignment.kind=vae")
    label, another = own.partition("@")[0], other.partition("@")[0]
    return [
        Row(base, "no anchors", recipe, ("head.kind=t-mass", "alignment.kind=none"), tests),
        *(
            Row(
                f"t-mass+calm-{count}", f"{count} of {label}", recipe, (*calm, f"anchors.subset={count}"), tests, base,
                # One subset for all seeds would be one draw's luck in all of them.
                varies=("anchors.subset_seed",),
            )
            for count in subsets
        ),
        Row("t-mass+calm", f"all of {label}", recipe, calm, tests, base),
        Row(f"t-mass+calm-{another}", another, recipe, (*calm, f"anchors.vocabulary={other}"), tests, base),
        Row("t-mass+calm-merged", f"{label} + {another}", recipe, (*calm, f"anchors.vocabulary={merged}"), tests, base),
    ]  # fmt: skip


def loss_rows(recipe: str, tests: tuple[str, ...]) -> list[Row]:
    """The losses of Table 7 on the T-MASS head."""
    rows = [Row("t-mass", "no alignment", recipe, ("head.kind=t-mass", "alignment.kind=none"), tests)]
    for kind in ("kl", "ce", "mse"):
        overrides = ("head.kind=t-mass", f"alignment.kind={kind}")
        rows.append(Row(f"t-mass+{kind}", kind.upper(), recipe, overrides, tests, "t-mass"))
    calm = ("head.kind=t-mass", "alignment.kind=vae")
    return [*rows, Row("t-mass+calm", "VAE (CALM)", recipe, calm, tests, "t-mass")]


def _losses() -> Table:
    tests = ("msrvtt", "didemo")
    printed = {
        "t-mass" + {"none": "", "vae": "+calm"}.get(row.align, f"+{row.align}"): {
            "msrvtt": {"r1": row.msrvtt_r1, "r5": row.msrvtt_r5},
            "didemo": {"r1": row.didemo_r1, "r5": row.didemo_r5},
        }
        for row in ALIGNMENT
    }
    rows = tuple(_with_paper(row, printed[row.key]) for row in loss_rows("msrvtt", tests))
    return Table("table7", "Table 7: generative and discriminative alignment, MSR-VTT", rows, notes=(_SINGLE_RUNS,))


def _ablations() -> Table:
    tests = ("msrvtt", "didemo")
    calm = ("head.kind=t-mass", "alignment.kind=vae")
    rows = [
        Row("t-mass", "no alignment", "msrvtt", ("head.kind=t-mass", "alignment.kind=none"), tests),
        Row("t-mass+calm", "CALM", "msrvtt", calm, tests, "t-mass"),
        *choice_rows("msrvtt", tests, (*CHOICES, *TRAINED_TOWERS, *LARGE), calm),
    ]
    note = "ViT-L/14 stands beside CALM on ViT-B/32: the difference is the backbone's."
    return Table("ablations", "What the paper leaves open, MSR-VTT", tuple(rows), notes=(note,))


def _with_paper(row: Row, paper: Mapping[str, Mapping[str, float]] | None) -> Row:
    return replace(row, paper=paper) if paper else row


PUBLISHED: Mapping[str, Callable[[], Table]] = {
    "table1": lambda: _retrieval(1, "msrvtt", ("msrvtt", "didemo", "lsmdc")),
    "table2": lambda: _retrieval(2, "didemo", ("didemo", "lsmdc", "msrvtt")),
    "table3": lambda: _retrieval(3, "lsmdc", ("lsmdc", "didemo", "msrvtt")),
    "table4": lambda: _captioning(4, "msrvtt", ("msrvtt", "msvd")),
    "table5": lambda: _captioning(5, "msvd", ("msvd", "msrvtt")),
    "table6": _anchors,
    "table7": _losses,
    "ablations": _ablations,
}


# The choices that the paper leaves open, each as one change to a recipe (docs/science.md, Readings of the paper).


CHOICES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tau-10", "tau 10", ("anchors.temperature=10",)),
    ("tau-20", "tau 20", ("anchors.temperature=20",)),
    ("tau-clip", "tau of CLIP", ("anchors.temperature=clip",)),
    ("tau-learned", "tau learned", ("anchors.temperature=learned",)),
    ("tau-auto", "tau auto, 2 nats", ("anchors.temperature=auto",)),
    ("latent-64", "latent 64", ("alignment.latent=64",)),
    ("latent-512", "latent 512", ("alignment.latent=512",)),
    ("attached", "gradient through S_p", ("alignment.detach_target=false",)),
    ("log-input", "VAE sees log V_p", ("alignment.input=log",)),
    ("alpha-0", "no L_KL", ("alignment.kl_weight=0",)),
    ("alpha-1", "alpha 1", ("alignment.kl_weight=1",)),
    ("free-bits", "free bits 0.05", ("alignment.free_bits=0.05",)),
    ("kl-warmup", "alpha warmed up", ("alignment.kl_warmup=0.5",)),
    ("frame-anchors", "V_p frame by frame", ("anchors.video=frames",)),
    ("weight-0.1", "weight 0.1", ("alignment.weight=0.1",)),
    ("weight-10", "weight 10", ("alignment.weight=10",)),
    ("warmup", "weight warmed up", ("alignment.warmup=0.5",)),
    ("both-ways", "both directions", ("alignment.direction=both",)),
)
"""Key, label and overrides of the rows that any world can run."""

TRAINED_TOWERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("anchors-frozen", "anchors frozen", ("anchors.encode=frozen",)),
    ("anchors-no-grad", "anchors, no gradient", ("anchors.encode=no-gradient",)),
)
"""Rows that need towers which train: frozen ones give the same prompts in every step anyway."""

LARGE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("vae-lr-1e-4", "VAE at 1e-4", ("optim.lr_alignment=1e-4",)),
    ("vit-l14", "ViT-L/14", ("backbone.model=ViT-L-14-quickgelu",)),
    ("kinetics", "Kinetics labels", ("anchors.vocabulary=kinetics@1.yaml",)),
    ("imagenet", "ImageNet labels", ("anchors.vocabulary=imagenet@1.yaml",)),
)
"""Rows for the real data sets only."""


FIRST_SEED = 24
"""Seeds count from the one that recipes have by default, so that a plain training of a recipe is the first of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a system that is trained once a seed and tested on every one of `tests`.

    Attributes:
        key: Names it on the command line and in files, "t-mass+calm".
        label: What the table prints, at most 20 characters.
        recipe: Name of a shipped recipe.
        baseline: Key of the row it is compared with, "" for none.
        paper: The paper's numbers by dataset and metric; empty where it has none.
        varies: Keys that get the number of the seed, counted from 0, as in "anchors.subset_seed".
        note: What a reader must know of this row.
        first: Key of the row of the same table whose run of the same seed is the first stage of this one, "" for none;
            `head.from_run` has that key until the run is there.
    """

    key: str
    label: str
    recipe: str
    overrides: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    baseline: str = ""
    paper: Mapping[str, Mapping[str, float]] | None = None
    varies: tuple[str, ...] = ()
    note: str = ""
    first: str = ""

    def resolved(self, seed: int, overrides: tuple[str, ...] = ()) -> Recipe:
        """The recipe of the seed number `seed` (0, 1, ...), with more overrides behind the row's own.

        Raises:
            RecipeError: An override that the recipe does not know, or that does not fit the others.
        """
        own = [f"seed={FIRST_SEED + seed}", *(f"{key}={seed}" for key in self.varies)]
        recipe = load_recipe(resolve_recipe(self.recipe), [*self.overrides, *own, *overrides])
        # For people who look into the folder. Runs are recognised by what they were made of.
        return recipe.model_copy(update={"name": f"{recipe.name}-{self.key}-seed{recipe.seed}"})

    def paper_on(self, dataset: str) -> Mapping[str, float]:
        """The paper's numbers on `dataset` by metric, empty where it has none."""
        return (self.paper or {}).get(dataset, {})


@dataclass(frozen=True, slots=True)
class Table:
    """A table to reproduce.

    Attributes:
        name: "table1" to "table7", or "ablations".
        stand_in: Whether the drawn demo world stands in for the paper's data, so that its numbers can be compared
            with one another and not with the paper's.
        left_out: Systems of the paper, or of the list, that this table does not run, with the reason.
        notes: What a reader must know.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    stand_in: bool = False
    left_out: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """Every dataset that is trained or tested on."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.tests))
