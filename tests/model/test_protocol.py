"""placeholder"""

from hypothesis import settings, Phase
from hypothesis.stateful import run_state_machine_as_test
from model.machine import Protocol, explored
import time, os


def test_it():
    t = time.time()
    n = int(os.environ.get("N", "20"))
    try:
        run_state_machine_as_test(
            Protocol,
            settings=settings(
                max_examples=n, stateful_step_count=40, deadline=None, derandomize=True, database=None, print_blob=False
            ),
        )
    finally:
        print(explored.figures(), time.time() - t)


import pytest
from hypothesis.stateful import RuleBasedStateMachine
from model.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutants(mutant, monkeypatch):
    mutant.apply(monkeypatch)
    t = time.time()
    before = explored.stories
    n = int(os.environ.get("N", "20"))
    caught = ""
    try:
        run_state_machine_as_test(
            Protocol,
            settings=settings(
                max_examples=n,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                print_blob=False,
                phases=(Phase.generate,),
            ),
        )
    except BaseException as e:
        caught = repr(e)[:150]
    with open("build/mutants.txt", "a") as f:
        f.write(f"{mutant.rule} {mutant.name}: {explored.stories - before} {time.time() - t:.1f}s {caught}\n")
    assert caught
