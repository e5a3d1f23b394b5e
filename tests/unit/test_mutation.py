"""The planted bugs and the mutants that are called equivalent still fit the code."""

from __future__ import annotations

import pytest

from tests.mutation.bugs import BUGS, Bug
from tests.mutation.mutants import mutants
from tests.mutation.subjects import SUBJECTS, Subject


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_changes_the_code_it_names(bug: Bug) -> None:
    assert bug.sources()


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.module)
def test_every_equivalent_mutant_is_one_that_is_made(subject: Subject) -> None:
    made = {mutant.change for mutant in mutants(subject.module, subject.parts)}
    assert made
    assert subject.same <= made
