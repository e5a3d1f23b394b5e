"""Does a test notice when the code is wrong?

    python -m tests.mutation bugs      planted bugs against the tests: a table of bug and killing test
    python -m tests.mutation audit     planted bugs against `paceline audit`
    python -m tests.mutation mutants   small changes of rules, warp and stop logic against the tests

Words behind it choose the bugs or modules whose name holds one of them. Exit code 1 if a bug survives or
less than 95 % of the mutants are noticed, 2 if the code does not pass unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tests.mutation.bugs import BUGS, Bug
from tests.mutation.changed import Job, Run, pytest_on, run
from tests.mutation.mutants import mutants
from tests.mutation.subjects import SUBJECTS

LEAST = 0.95


def main(what: str, words: Sequence[str]) -> int:
    """Run one of the three; its exit code."""
    if what == "mutants":
        return _mutants(words)
    return _bugs(words, {"bugs": _tests, "audit": _audit}[what])


def _bugs(words: Sequence[str], job_of: Callable[[Bug, dict[str, str]], tuple[str, Job]]) -> int:
    bugs = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    pristine = {key: job for bug in bugs for key, job in [job_of(bug, {})]}
    for end in run(pristine.values()):
        if end.code != 0:
            print(f"unchanged code fails {end.name}:\n{end.output}")
            return 2
    survivors = 0
    width = max(len(bug.name) for bug in bugs)
    print(f"{'planted bug':{width}}  killed by")
    for end in run(job_of(bug, bug.sources())[1]._replace(name=bug.name) for bug in bugs):
        killed = _killer(end)
        survivors += killed is None
        print(f"{end.name:{width}}  {killed or 'NOTHING: IT SURVIVES'}", flush=True)
    print(f"{len(bugs)} planted bugs, {survivors} survive")
    return int(survivors > 0)


def _tests(bug: Bug, sources: dict[str, str]) -> tuple[str, Job]:
    tests = tuple(bug.tests)
    return " ".join(tests), Job(" ".join(tests), sources, pytest_on(tests))


def _audit(bug: Bug, sources: dict[str, str]) -> tuple[str, Job]:
    arguments = bug.audit.split()

    def work() -> int:
        from paceline.cli import main as paceline

        sys.argv = ["paceline", "audit", *arguments]
        paceline()
        return 0

    return bug.audit, Job(bug.audit, sources, work)


def _killer(end: Run) -> str | None:
    """What noticed the bug; None if nothing did. Raises RuntimeError if the run itself did not work."""
    if end.code is None:
        return "time limit"
    if end.code == 0:
        return None
    if end.code != 1:
        raise RuntimeError(f"{end.name}: ended with {end.code}:\n{end.output}")
    lines = [line for line in end.output.splitlines() if line.startswith("FAILED")]
    return lines[0].split()[1] if lines else "paceline audit: exit code 1"


def _mutants(words: Sequence[str]) -> int:
    subjects = [s for s in SUBJECTS if not words or any(word in s.module for word in words)]
    limits = {}
    for end in run(Job(subject.module, {}, pytest_on(subject.tests)) for subject in subjects):
        if end.code != 0:
            print(f"{end.name}: its tests fail before anything is changed:\n{end.output}")
            return 2
        limits[end.name] = int(10 + 4 * end.seconds)
    jobs = [
        Job(mutant.change, {mutant.module: mutant.source}, pytest_on(subject.tests), limits[subject.module])
        for subject in subjects
        for mutant in mutants(subject.module, subject.parts)
        if mutant.change not in subject.same
    ]
    alive = 0
    for done, end in enumerate(run(jobs)):
        _progress(done, len(jobs))
        if end.code not in (None, 0, 1, 2):
            raise RuntimeError(f"{end.name}: pytest ended with {end.code}:\n{end.output}")
        if end.code == 0:
            alive += 1
            print(f"survives: {end.name}", flush=True)
    share = 1 - alive / len(jobs)
    print(f"{len(jobs)} mutants, {alive} survive, {share:.1%} noticed (at least {LEAST:.0%} wanted)")
    return int(share < LEAST)


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of} ", end="", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("bugs", "audit", "mutants"):
        sys.exit(f"{__doc__}\ngot {sys.argv[1:]}")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
