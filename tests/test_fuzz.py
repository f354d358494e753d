"""Whatever is given, a command ends soon: with an answer, or with one line that says what is wrong."""

import random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mutations import KINDS, clean_inputs, try_one

EACH = 6  # inputs of each kind in a run of the tests


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return clean_inputs(tmp_path_factory.mktemp("clean"))


@pytest.mark.parametrize("name", KINDS)
def test_no_input_is_a_crash_a_hang_or_swallowed(name, clean, fork):
    @settings(
        max_examples=EACH, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def tried(rng: random.Random):
        how, trial, done = try_one(name, rng, clean, fork)
        assert how == "right", (trial, done.stdout[-500:], done.stderr[-1500:])

    tried()
