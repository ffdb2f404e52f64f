"""A table from nothing: what it needs, its runs, their outcomes, and the table written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calmctl.errors import BadInput
from calmctl.files import TABLE, read_json, unused, write_output
from calmctl.recipe import Recipe
from calmctl.reproduce.at_once import at_once
from calmctl.reproduce.datasets import RecipeKey, Requirement, TableData, clips_of, look, needs
from calmctl.reproduce.filled import Filled, as_markdown, fill, legend
from calmctl.reproduce.outcomes import Outcome, are_kept, outcomes_of
from calmctl.reproduce.rows import FIRST_SEED, Table
from calmctl.reproduce.work import Job, Ledger, jobs_of, with_first
from calmctl.runs.run import Run
from calmctl.runtime import environment
from calmctl.source.base import SourceSpec
from calmctl.words import Progress


@dataclass(frozen=True, slots=True)
class Plan:
    """What tables need and take.

    Attributes:
        tables: With the rows and test sets that can be had.
        recipes: Of every row and seed.
        found: What was looked for, by name.
        left_out: Rows and test sets that cannot be had, by table, with the reason.
        jobs: The runs, each once.
    """

    tables: tuple[Table, ...]
    world: TableData
    recipes: Mapping[RecipeKey, Recipe]
    found: Mapping[str, Requirement]
    left_out: Mapping[str, Mapping[str, str]]
    jobs: tuple[Job, ...]

    @property
    def not_run(self) -> dict[str, dict[str, str]]:
        """Everything of a table that is not run, with the reason: what nobody can run, and what is missing here."""
        return {table.name: {**(table.left_out or {}), **self.left_out[table.name]} for table in self.tables}

    @property
    def missing(self) -> tuple[Requirement, ...]:
        """What is not there."""
        return tuple(each for each in self.found.values() if not each.present)


def choose_rows(table: Table, keys: Sequence[str]) -> Table:
    """The rows of `table` that `keys` name, those they are compared with or start from; all of them for no keys.

    Raises:
        BadInput: A key that no row has.
    """
    known = {row.key: row for row in table.rows}
    for key in keys:
        if key not in known:
            raise BadInput(f"{table.name} has no row {key!r}; it has {', '.join(known)}")
    wanted = {*keys, *(known[key].baseline for key in keys)} - {""}
    wanted |= {known[key].first for key in wanted}
    return replace(table, rows=tuple(row for row in table.rows if row.key in wanted)) if keys else table


def plan_tables(
    tables: Sequence[Table],
    world: TableData,
    runs: Path,
    *,
    seeds: int,
    overrides: tuple[str, ...] = (),
    skip_missing: bool = False,
) -> Plan:
    """Look for the data of tables, or of their stand-ins, and for finished runs: `seeds` of each row.

    `overrides` change recipe keys of all rows. `skip_missing` leaves out rows and test sets whose data is missing,
    instead of listing them in `missing` alone.

    Raises:
        RecipeError: An override that a row's recipe does not know.
    """
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: at least one run a row is needed")
    requirements: dict[str, Requirement] = {}
    # Read once: whoever comes later looks a row's recipe up here.
    recipes = {
        (table.name, row.key, seed): world.recipe(row, seed, overrides)
        for table in tables
        for row in table.rows
        for seed in range(seeds)
    }
    for table in tables:
        requirements |= look(world, table, recipes)
    left_out: dict[str, dict[str, str]] = {table.name: {} for table in tables}
    if skip_missing:
        tables = [_without_missing(table, recipes, requirements, left_out[table.name]) for table in tables]
    return Plan(tuple(tables), world, recipes, requirements, left_out, tuple(jobs_of(tables, recipes, seeds, runs)))


def require_present(plan: Plan) -> None:
    """Refuse a plan whose data is missing, with everything that is. Raises `BadInput`."""
    # All that is missing at once: who fetches data wants one list.
    if empty := [table.name for table in plan.tables if not table.rows]:
        raise BadInput(f"{', '.join(empty)}: nothing is left to run\n{_listed(plan.missing)}")
    skipped = {name for reasons in plan.left_out.values() for name in reasons}
    if plan.missing and not skipped:
        raise BadInput(
            f"{len(plan.missing)} of {len(plan.found)} things that {', '.join(t.name for t in plan.tables)} needs are "
            f"missing; --skip-missing leaves out the rows and columns that need them\n{_listed(plan.missing)}"
        )


def measure(
    plan: Plan,
    runs: Path,
    *,
    seeds: int,
    overrides: tuple[str, ...] = (),
    device: torch.device,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[Filled]:
    """Evaluate the finished runs of a plan, so many at once, and fill its tables.

    Raises:
        CalmError: A run is not finished, or a test set cannot be read.
    """
    found = _finished(plan, Ledger(runs), seeds)
    if processes > 1:
        _measure_at_once(found.values(), device, processes, progress)
    # One look at each test set serves all runs.
    filled, test_digests = [], dict[tuple[str, SourceSpec], str]()
    for table in plan.tables:
        measured: dict[str, dict[str, list[Outcome]]] = {}
        folders: dict[str, list[str]] = {}
        revisions: set[str] = set()
        for row in table.rows:
            for seed in range(seeds):
                run, tests = found[table.name, row.key, seed]
                folders.setdefault(row.key, []).append(str(run.folder))
                revisions.add(_revision(run))
                for outcome in outcomes_of(run, tests, device, progress, test_digests):
                    measured.setdefault(row.key, {}).setdefault(outcome.dataset, []).append(outcome)
        # Code is a part of what a number was made of: rows of two revisions may differ by that alone.
        if len(revisions) > 1:
            mixed = f"Its runs are of {len(revisions)} revisions of calmctl: {', '.join(sorted(revisions))}."
            table = replace(table, notes=(*table.notes, mixed))
        filled.append(
            fill(
                table,
                measured,
                folders,
                data=plan.world.name,
                seeds=tuple(FIRST_SEED + seed for seed in range(seeds)),
                overrides=overrides,
                left_out=plan.left_out[table.name],
            )
        )
    return filled


def _finished(plan: Plan, ledger: Ledger, seeds: int) -> dict[RecipeKey, tuple[Run, list[SourceSpec]]]:
    """The run of each row and seed, and what it is tested on."""
    found = {}
    for table in plan.tables:
        for row in table.rows:
            for seed in range(seeds):
                recipe = plan.recipes[table.name, row.key, seed]
                first = plan.recipes[table.name, row.first, seed] if row.first else None
                staged = with_first(recipe, first, ledger)
                run = None if staged is None else ledger.finished(staged)
                if run is None:
                    raise BadInput(f"{recipe.name} is not finished; run the same command again, it goes on")
                found[table.name, row.key, seed] = (run, plan.world.tests_of(row, recipe))
    return found


def _measure_at_once(
    found: Iterable[tuple[Run, list[SourceSpec]]], device: torch.device, processes: int, progress: Progress | None
) -> None:
    """Have every outcome that no run's folder has measured by one of several processes, and kept there."""
    tests: dict[Run, dict[SourceSpec, None]] = {}
    for run, its in found:
        if not are_kept(run, its):
            tests.setdefault(run, {}).update(dict.fromkeys(its))
    if len(tests) < 2:
        return
    done = at_once(
        [(run, list(its)) for run, its in tests.items()],
        partial(_measured, device=device),
        processes=processes,
        begin=torch.set_num_threads,
        arguments=(max(1, torch.get_num_threads() // processes),),
    )
    for number, _ in enumerate(done, start=1):
        if progress:
            progress("runs that are tested", number, len(tests))


def _measured(item: tuple[Run, list[SourceSpec]], device: torch.device) -> None:
    outcomes_of(*item, device)


def table_to_json(filled: Filled) -> dict[str, Any]:
    """A filled table for programs, with what has to be known to read it."""
    return {**filled.to_json(), "legend": list(legend(filled))}


def write_table(filled: Filled, folder: Path, command: str) -> tuple[Path, Path]:
    """Write `filled` as JSON and as Markdown into `folder`; returns both paths. Raises `RunFailed` when it cannot.

    A table of other rows, seeds, keys or data is not written over: the new one gets a number.
    """
    # A stand-in's table has a name of its own, and never takes the place of the paper's.
    stem = f"{filled.table.name}{'-demo' if filled.table.stand_in else ''}"
    json_file = unused(folder / f"{stem}.json", lambda path: not _asked_alike(path, filled))
    markdown_file = json_file.with_suffix(".md")
    about = environment()
    # NaN is no JSON: what could not be computed is null.
    content = json.dumps({**table_to_json(filled), **about}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_output(json_file, content, TABLE)
    write_output(markdown_file, as_markdown(filled, command, about), TABLE)
    return json_file, markdown_file


def _asked_alike(path: Path, filled: Filled) -> bool:
    """Whether there is no table in `path`, or one of the same rows, seeds, keys and data."""
    if not path.exists():
        return True
    # Numbers may differ, as in a table that was measured again; what was asked may not.
    there = read_json(path, what="a table")
    ours = filled.to_json()
    try:
        return all(there[key] == ours[key] for key in ("data", "seeds", "overrides")) and _rows(there) == _rows(ours)
    except (KeyError, TypeError):  # something else of this name
        return False


def _rows(table: Mapping[str, Any]) -> set[str]:
    return {line["row"] for block in table["blocks"] for line in block["lines"]}


def _revision(run: Run) -> str:
    about = read_json(run.about, what=f"run {run.folder}")
    revision, _, changes = str(about["git"] or about["packages"]["calmctl"]).partition("+")
    return revision[:12] + (f"+{changes}" if changes else "")


def _without_missing(
    table: Table, recipes: Mapping[RecipeKey, Recipe], requirements: Mapping[str, Requirement], left_out: dict[str, str]
) -> Table:
    rows = []
    for row in table.rows:
        recipe = recipes[table.name, row.key, 0]
        lacking = [name for name in needs(recipe) if not requirements[name].present]
        tests = tuple(name for name in row.tests if requirements[clips_of(name, recipe)].present)
        if lacking or not tests:
            left_out[row.key] = f"{', '.join(lacking or row.tests)} is missing"
            continue
        for name in row.tests:
            if name not in tests:
                left_out[f"→ {name}"] = "the test set is missing"
        rows.append(replace(row, tests=tests))
    present = {row.key for row in rows}
    return replace(
        # A row whose baseline is left out stays, with nothing to be compared with.
        table,
        rows=tuple(replace(row, baseline=row.baseline if row.baseline in present else "") for row in rows),
    )


def _listed(missing: Sequence[Requirement]) -> str:
    return "\n".join(each.says if each.says.startswith(each.what) else f"{each.what}: {each.says}" for each in missing)
