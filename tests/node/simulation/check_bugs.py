"""Planted bugs of checks: who is drawn when, who reads, and what is made of it."""

from typing import Final

from tests.node.simulation import check_stories as stories
from tests.node.simulation.planted_bugs import PlantedBug, fault

CHECK_BUGS: Final = (
    PlantedBug(
        "lot-thrown-before-the-receipt",
        "the lot for an answer is thrown when its receipt comes, before it is signed",
        "the sample is drawn after the receipt is signed",
        stories.model_swapper,
        ("lots_are_thrown_when_paid",),
        fault(
            "node.services.settlement:Settlement._countersign",
            (
                "self._countersigning.add(key)",
                "self._countersigning.add(key)\n    if bought is not None:\n        self._on_signed(*bought)",
            ),
            ("self._on_signed(job, attempt)", "pass"),
        ),
    ),
    PlantedBug(
        "first-twenty-are-nineteen",
        "a new seller's twentieth answer is left to the lot",
        "all of a new seller's first 20 jobs are checked",
        stories.old_acquaintance,
        ("a_new_sellers_answers_are_all_drawn",),
        fault("node.services.verifier:is_drawn", ("judged < NEWCOMERS_JOBS", "judged < NEWCOMERS_JOBS - 1")),
    ),
    PlantedBug(
        "verdict-inverted",
        "who passes a check is taken for a cheat, and a cheat passes",
        "no honest seller is ever caught",
        stories.model_swapper,
        ("nobody_honest_is_caught", "another_models_answers_are_caught"),
        fault(
            "marketplace.verification:Verdict.is_passed",
            (
                "<= STRAYS_PERCENT_MAX * self.tokens and not self.is_drifted",
                "> STRAYS_PERCENT_MAX * self.tokens",
            ),
        ),
    ),
    PlantedBug(
        "strays-never-counted",
        "every gap is put down to rounding",
        "a seller that serves another model is caught",
        stories.model_swapper,
        ("another_models_answers_are_caught",),
        fault("node.services.verifier:judge", ("gap > tolerance.gap_milli", "gap < 0")),
    ),
    PlantedBug(
        "drift-never-judged",
        "whatever a seller states of its tokens is put down to rounding",
        "a seller that serves a coarser quantisation is caught where its text is the same",
        stories.model_swapper,
        ("another_models_answers_are_caught",),
        fault("node.services.verifier:judge", ("apart_milli > tolerance.drift_milli", "False")),
    ),
    PlantedBug(
        "one-reader-condemns",
        "the word of one second seller is enough to have a seller barred",
        "no honest seller is ever caught",
        stories.false_reader,
        ("nobody_honest_is_caught",),
        fault(
            "node.services.second_opinion:SecondOpinion.__call__",
            ("if found.is_passed:", "if True:"),
        ),
    ),
    PlantedBug(
        "check-sent-against-privacy",
        "a second seller is paid to read what only the buyer's own devices may",
        "checked by a second seller only if the prompt's privacy class allows",
        stories.private_answer,
        ("checks_stay_where_prompts_may",),
        (
            *fault("node.services.verifier:Verifier._look_twice", ('!= "mesh"', '== "local"')),
            *fault(
                "node.services.second_opinion:SecondOpinion._read",
                ("privacy=request.privacy,", 'privacy="mesh",'),
            ),
        ),
    ),
)
