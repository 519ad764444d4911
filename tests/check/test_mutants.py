"""Each check of `virtblk check` can fail: every mutant is caught by the checks that claim it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fork_server import ROOT
from mutants.catalogue import MUTANTS, UNPROVEN
from mutants.mutant import DISKS, SOURCE, apply
from mutants.nursery import Nursery
from mutants.proof import CAUGHT, check_healthy, prove
from mutants.table import mutants_of, table, why_unproven
from virtblk.check.checks import DEVICE
from virtblk.check.requirement import Result, Verdict

#: Mutants under test at once: most of them make a check wait.
AT_ONCE = 4
#: Takes a minute on the interpreted device; the mutants that it has to catch fail early.
TAKES_LONG = {"split.wrap-65536"}


def test_each_defect_fits_the_source_in_one_place() -> None:
    for mutant in MUTANTS.values():
        for file in {edit.file for edit in mutant.edits}:
            edits = [edit for edit in mutant.edits if edit.file == file]
            source = (SOURCE / file).read_text()
            changed = apply(edits, source)
            assert changed != source, mutant.name
            compile(changed, file, "exec")


def test_mutants_claim_checks_that_exist() -> None:
    for mutant in MUTANTS.values():
        assert mutant.checks, mutant.name
        assert not set(mutant.checks) - set(DEVICE.requirements), mutant.name


def test_each_check_has_a_mutant_or_a_reason_for_none() -> None:
    for requirement in DEVICE:
        assert bool(mutants_of(requirement.id)) != bool(why_unproven(requirement)), requirement.id
    assert set(UNPROVEN) <= set(DEVICE.requirements)


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "mutants.md").read_text() == table(), "python -m tests.mutants --table > docs/mutants.md"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def caught(nursery: Nursery, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[Result]]]]:
    """Of those that this run asks for."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    names = [test.callspec.params["name"] for test in tests if test.originalname == "test_a_mutant_is_caught"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(prove, nursery, MUTANTS[name]) for name in names}


@pytest.mark.once
@pytest.mark.leaky  # of other mutants, which are checked meanwhile
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(caught: dict[str, Future[list[Result]]], name: str) -> None:
    missed = [
        f"{r.requirement.id}: {r.verdict.value} {r.detail}" for r in caught[name].result() if r.verdict not in CAUGHT
    ]
    assert not missed, MUTANTS[name].text


@pytest.mark.once
@pytest.mark.leaky
@pytest.mark.parametrize("disk", DISKS)
def test_no_check_fails_on_the_healthy_device(nursery: Nursery, disk: str) -> None:
    """The checks that mutants claim, on the same disks; `make soak` runs all of them."""
    claimed = {check for mutant in MUTANTS.values() if mutant.disk == DISKS[disk] for check in mutant.checks}
    results = check_healthy(nursery, disk, sorted(claimed - TAKES_LONG))
    sound = (Verdict.PASS, Verdict.REJECT)
    assert not [f"{r.requirement.id}: {r.verdict.value} {r.detail}" for r in results if r.verdict not in sound]


@pytest.mark.slow
@pytest.mark.leaky
@pytest.mark.parametrize("disk", DISKS)
def test_no_check_at_all_fails_on_the_healthy_device(nursery: Nursery, disk: str) -> None:
    results = check_healthy(nursery, disk)
    assert not [f"{r.requirement.id}: {r.verdict.value} {r.detail}" for r in results if r.verdict in CAUGHT]
