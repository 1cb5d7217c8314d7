"""A run as its coordinator lives it: stories with a clock, and what changes nothing."""

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.run_events import (
    Abort,
    Absent,
    Aggregate,
    Aggregated,
    Ask,
    Cancel,
    Declined,
    Dismiss,
    Finish,
    Joined,
    Lost,
    NotAggregated,
    Open,
    Pause,
    Refuse,
    Resume,
    Unsold,
    Update,
)
from federation.training_run import State, TrainingRun
from protocol.identity import PeerId
from tests.federation.members import (
    ANN,
    BOB,
    CAT,
    COORDINATOR,
    DAN,
    EVE,
    aggregate,
    announcement,
    decline,
    enlisting,
    enlistment,
    give,
    in_round_one,
    round_update,
    sealed,
)


# --- enlisting and opening -----------------------------------------------------------------------------------------
def test_a_run_goes_from_its_announcement_to_its_last_round() -> None:
    run = enlisting(ANN, BOB)

    opened = run.handle_timeout(110.0)
    assert [type(action) for action in opened] == [Open]
    assert run.handle_message(ANN, Joined(), 111.0) == []
    assert run.handle_message(BOB, Joined(), 112.0) == [Ask(1, run.cohort, 60.0)]

    for number in (1, 2, 3):
        assert give(run, ANN, 113.0) == []
        assert give(run, BOB, 114.0) == [Aggregate(number, fresh=run.cohort, stale=(), missing=())]
        assert run.deadline is None
        follows = aggregate(run, 115.0)
        assert follows == ([Ask(number + 1, run.cohort, 60.0)] if number < 3 else [Finish(at_work=())])

    assert (run.state, run.deadline) == (State.FINISHED, None)


def test_bids_stay_sealed_until_the_window_ends() -> None:
    """However many have come: a cheaper one may come in the last second."""
    run = enlisting(ANN, BOB, cohort_max=2)

    assert run.deadline == 110.0
    assert run.handle_message(CAT, enlistment(CAT, run.announcement, step_micro=1), 109.9) == []

    [opened] = run.handle_timeout(110.0)
    assert isinstance(opened, Open)
    assert opened.cohort[0].sender == CAT
    assert len(opened.cohort) == 2


def test_a_run_that_too_few_want_is_unsold_with_everybodys_reason() -> None:
    run = enlisting(ANN)
    run.handle_message(BOB, decline(BOB), 102.0)
    run.handle_message(CAT, Absent("unreachable", "no connection"), 103.0)

    assert run.handle_timeout(110.0) == [
        Unsold(
            "1 enlisted at up to 100 a step, at least 2 wanted",
            (Declined(BOB, "battery", "12 %"), Declined(CAT, "unreachable", "no connection")),
        )
    ]
    assert (run.state, run.deadline) == (State.ABORTED, None)


def test_a_run_that_nobody_answers_is_unsold() -> None:
    run = enlisting()

    assert run.handle_timeout(109.9) == []
    assert run.handle_timeout(110.0) == [Unsold("0 enlisted at up to 100 a step, at least 2 wanted", ())]


def test_a_second_bid_of_one_device_changes_nothing() -> None:
    run = enlisting(ANN, BOB)

    run.handle_message(ANN, enlistment(ANN, run.announcement, step_micro=0), 105.0)

    assert [each.message.step_micro for each in run.enlistments] == [10, 10]


def test_a_bid_that_another_signed_or_that_answers_another_run_does_not_enlist() -> None:
    run = enlisting(ANN)

    run.handle_message(BOB, enlistment(CAT, run.announcement), 105.0)
    run.handle_message(CAT, enlistment(CAT, announcement(line="other")), 105.0)
    run.handle_message(DAN, decline(EVE), 105.0)

    assert [each.sender for each in run.enlistments] == [ANN]
    assert run.declines == ()


def test_a_bid_after_the_window_is_late() -> None:
    run = enlisting(ANN, BOB)

    [opened] = run.handle_message(CAT, enlistment(CAT, run.announcement, step_micro=1), 110.0)

    assert isinstance(opened, Open)
    assert CAT not in {each.sender for each in opened.cohort}


def test_who_refuses_or_ignores_the_opening_is_left_out_and_the_others_begin() -> None:
    run = enlisting(ANN, BOB, CAT, DAN)
    run.handle_timeout(110.0)
    run.handle_message(ANN, Joined(), 111.0)
    run.handle_message(BOB, Joined(), 111.0)

    assert run.handle_message(CAT, Lost("cohort"), 112.0) == [Dismiss(CAT, "cohort")]
    assert run.deadline == 140.0
    assert run.handle_timeout(140.0) == [Dismiss(DAN, "no answer in time"), Ask(1, run.cohort, 60.0)]
    assert set(run.cohort) == {ANN, BOB}


def test_an_opening_that_too_few_accept_ends_the_run() -> None:
    run = enlisting(ANN, BOB)
    run.handle_timeout(110.0)
    run.handle_message(ANN, Joined(), 111.0)

    assert run.handle_message(BOB, Lost("policy"), 112.0) == [
        Dismiss(BOB, "policy"),
        Abort("1 of the cohort are left, at least 2 wanted", at_work=()),
    ]


# --- churn ---------------------------------------------------------------------------------------------------------
def test_the_deadline_closes_a_round_with_those_who_answered() -> None:
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)

    assert run.waiting_for == (CAT,)
    assert run.deadline == 172.0
    [action] = run.handle_timeout(172.0)
    assert isinstance(action, Aggregate)
    assert (set(action.fresh), action.stale, action.missing) == ({ANN, BOB}, (), (CAT,))


def test_a_stragglers_update_counts_one_round_later_and_it_is_asked_again_after_that() -> None:
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    run.handle_timeout(172.0)

    [asked] = aggregate(run, 173.0)
    assert isinstance(asked, Ask)
    assert set(asked.members) == {ANN, BOB}  # Cat is still at work
    assert give(run, CAT, 180.0, number=1) == []
    give(run, ANN, 181.0)
    [action] = give(run, BOB, 182.0)
    assert isinstance(action, Aggregate)
    assert (set(action.fresh), action.stale) == ({ANN, BOB}, (CAT,))

    [asked] = aggregate(run, 183.0)
    assert isinstance(asked, Ask)
    assert set(asked.members) == {ANN, BOB, CAT}


def test_an_update_that_comes_while_its_round_is_aggregated_is_carried_over_unless_a_fresh_one_replaces_it() -> (
    None
):
    """A member has one update in an aggregate, or it would count twice."""
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    run.handle_timeout(172.0)
    assert give(run, CAT, 172.5, number=1) == []
    aggregate(run, 173.0)

    give(run, CAT, 174.0)
    give(run, ANN, 175.0)
    [action] = give(run, BOB, 176.0)

    assert isinstance(action, Aggregate)
    assert (set(action.fresh), action.stale) == ({ANN, BOB, CAT}, ())


def test_an_update_two_rounds_late_is_dropped() -> None:
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    run.handle_timeout(172.0)
    aggregate(run, 173.0)
    give(run, ANN, 174.0)
    give(run, BOB, 175.0)
    aggregate(run, 176.0)
    assert run.round == 3

    assert give(run, CAT, 177.0, number=1) == [Refuse(CAT, 1, "of round 1, which is over")]


def test_a_member_lost_twice_in_a_row_leaves_and_the_run_goes_on_without_it() -> None:
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    [first] = run.handle_message(CAT, Lost("its stream broke"), 122.0)
    assert isinstance(first, Aggregate)
    aggregate(run, 123.0)

    assert run.handle_message(CAT, Lost("unreachable"), 124.0) == [Dismiss(CAT, "unreachable")]
    give(run, ANN, 125.0)
    [action] = give(run, BOB, 126.0)

    assert isinstance(action, Aggregate)
    assert run.cohort == action.fresh
    assert give(run, CAT, 127.0) == [Refuse(CAT, 2, "not a member of the cohort")]


def test_a_member_that_comes_back_after_one_failure_starts_afresh() -> None:
    """Only failures in a row make a member leave: phones come and go."""
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)
    give(run, BOB, 120.0)
    run.handle_message(CAT, Lost("its stream broke"), 121.0)
    aggregate(run, 122.0)
    for member in (ANN, BOB, CAT):
        give(run, member, 123.0)
    aggregate(run, 124.0)

    assert run.handle_message(CAT, Lost("its stream broke"), 125.0) == []
    assert set(run.cohort) == {ANN, BOB, CAT}


def test_a_round_with_too_few_updates_is_repeated_once_with_those_who_failed_and_then_the_run_ends() -> None:
    """What the others gave is kept: they must not spend privacy on one round twice."""
    run = in_round_one(ANN, BOB, CAT, cohort_min=3)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)

    assert run.handle_message(CAT, Lost("its stream broke"), 122.0) == [Ask(1, (CAT,), 60.0)]
    assert run.deadline == 182.0
    [action] = give(run, CAT, 130.0)
    assert isinstance(action, Aggregate)
    assert set(action.fresh) == {ANN, BOB, CAT}

    aggregate(run, 131.0)
    give(run, ANN, 132.0)
    run.handle_message(CAT, Lost("its stream broke"), 133.0)
    assert run.handle_message(BOB, Lost("its stream broke"), 133.0) == [
        Ask(2, tuple(peer for peer in run.cohort if peer != ANN), 60.0)
    ]
    give(run, BOB, 134.0)
    dismissed, aborted = run.handle_message(CAT, Lost("its stream broke"), 135.0)
    assert dismissed == Dismiss(CAT, "its stream broke")
    assert aborted == Abort("2 updates in round 2, at least 3 wanted", at_work=())
    assert run.state is State.ABORTED


def test_a_round_that_nobody_answers_is_waited_for_once_more_and_then_the_run_ends() -> None:
    run = in_round_one(ANN, BOB)

    assert run.handle_timeout(172.0) == []
    assert run.deadline == 232.0
    actions = run.handle_timeout(232.0)

    assert {action.peer for action in actions if isinstance(action, Dismiss)} == {ANN, BOB}
    assert actions[-1] == Abort("0 updates in round 1, at least 2 wanted", at_work=())


# --- what must change nothing ----------------------------------------------------------------------------------------
def test_an_update_full_of_nan_is_refused_and_its_sender_leaves_after_the_second() -> None:
    run = in_round_one(ANN, BOB, EVE)

    assert give(run, EVE, 120.0, fault="not finite") == [Refuse(EVE, 1, "not finite")]
    give(run, ANN, 121.0)
    [action] = give(run, BOB, 122.0)
    assert isinstance(action, Aggregate)
    assert (set(action.fresh), action.missing) == ({ANN, BOB}, (EVE,))

    aggregate(run, 123.0)
    assert give(run, EVE, 124.0, fault="not finite") == [
        Refuse(EVE, 2, "not finite"),
        Dismiss(EVE, "not finite"),
    ]
    assert set(run.cohort) == {ANN, BOB}


def test_the_second_update_of_a_round_by_one_member_is_refused() -> None:
    run = in_round_one(ANN, BOB, EVE)
    give(run, EVE, 120.0)

    assert give(run, EVE, 121.0) == [Refuse(EVE, 1, "the second of round 1")]
    assert set(run.waiting_for) == {ANN, BOB}


def test_an_update_of_a_round_that_is_over_is_refused_when_its_sender_gave_one_already() -> None:
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    aggregate(run, 122.0)

    assert give(run, ANN, 123.0, number=1) == [Refuse(ANN, 1, "the second of round 1")]
    assert set(run.waiting_for) == {ANN, BOB}


def test_an_update_of_a_round_to_come_is_refused() -> None:
    run = in_round_one(ANN, BOB)

    assert give(run, ANN, 120.0, number=2) == [Refuse(ANN, 2, "of round 2, which has not begun")]


def test_an_update_by_a_device_outside_the_cohort_is_refused() -> None:
    run = in_round_one(ANN, BOB)

    assert give(run, EVE, 120.0) == [Refuse(EVE, 1, "not a member of the cohort")]
    assert set(run.cohort) == {ANN, BOB}


def test_an_update_signed_by_another_member_is_refused() -> None:
    """Or one member could fill another's place, and its update would be refused as the second."""
    run = in_round_one(ANN, BOB)

    stolen = Update(round_update(BOB, 1))
    assert run.handle_message(ANN, stolen, 120.0) == [Refuse(ANN, 1, "signed by another than who sent it")]
    assert give(run, BOB, 121.0) == []


def test_an_update_of_another_run_is_refused() -> None:
    run = in_round_one(ANN, BOB)

    foreign = Update(round_update(ANN, 1, run=b"x" * 16))
    assert run.handle_message(ANN, foreign, 120.0) == [Refuse(ANN, 1, "of another run")]


def test_only_the_coordinator_steers_its_run() -> None:
    """A member that says `Aggregated` would skip the others' updates."""
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)

    for word in (Aggregated(1), NotAggregated(1, "no"), Pause(), Cancel()):
        assert run.handle_message(EVE, word, 122.0) == []
        assert run.handle_message(ANN, word, 122.0) == []

    assert (run.state, run.round) == (State.AGGREGATING, 1)


def test_a_word_about_another_round_than_the_one_being_aggregated_changes_nothing() -> None:
    run = in_round_one(ANN, BOB)

    assert run.handle_message(COORDINATOR, Aggregated(1), 120.0) == []
    give(run, ANN, 121.0)
    give(run, BOB, 121.0)
    assert run.handle_message(COORDINATOR, Aggregated(2), 122.0) == []
    assert run.state is State.AGGREGATING


def test_a_loss_of_somebody_who_was_not_asked_changes_nothing() -> None:
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)

    assert run.handle_message(ANN, Lost("its stream broke"), 121.0) == []
    assert run.handle_message(EVE, Lost("its stream broke"), 121.0) == []
    [action] = give(run, BOB, 122.0)
    assert isinstance(action, Aggregate)


def test_a_loss_that_is_told_late_is_of_its_own_round_and_not_of_the_next_one() -> None:
    """A stream may break while an update that has arrived is being paid for."""
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)
    aggregate(run, 122.0)

    assert run.handle_message(ANN, Lost("its stream broke", round=1), 123.0) == []
    assert set(run.waiting_for) == {ANN, BOB}
    assert give(run, ANN, 124.0) == []


def test_what_was_taken_still_counts_when_a_second_update_is_refused() -> None:
    """Its bytes are kept: whoever drops the second one's must not drop the first one's."""
    run = in_round_one(ANN, BOB)
    assert not run.counts(ANN, 1)

    give(run, ANN, 120.0)
    give(run, ANN, 121.0, fault="the second of this round")

    assert run.counts(ANN, 1)
    assert not run.counts(BOB, 1)
    [action] = give(run, BOB, 122.0)
    assert isinstance(action, Aggregate)
    assert set(action.fresh) == {ANN, BOB}


# --- the user's words ------------------------------------------------------------------------------------------------
def test_a_run_that_is_paused_in_mid_round_keeps_what_arrives_and_goes_on_with_the_time_that_was_left() -> (
    None
):
    run = in_round_one(ANN, BOB, CAT)
    give(run, ANN, 120.0)

    run.handle_message(COORDINATOR, Pause(), 132.0)  # 40 s before the deadline
    assert (run.state, run.deadline) == (State.PAUSED, None)
    assert run.handle_timeout(500.0) == []
    assert give(run, BOB, 501.0) == []

    assert run.handle_message(COORDINATOR, Resume(), 600.0) == []
    assert (run.state, run.deadline) == (State.ROUND, 640.0)
    [action] = give(run, CAT, 601.0)
    assert isinstance(action, Aggregate)
    assert set(action.fresh) == {ANN, BOB, CAT}


def test_a_round_that_all_have_answered_during_a_pause_ends_when_it_is_over() -> None:
    run = in_round_one(ANN, BOB)
    run.handle_message(COORDINATOR, Pause(), 120.0)
    give(run, ANN, 121.0)
    assert give(run, BOB, 122.0) == []

    [action] = run.handle_message(COORDINATOR, Resume(), 130.0)

    assert isinstance(action, Aggregate)


def test_a_pause_while_aggregating_holds_back_the_next_round() -> None:
    run = in_round_one(ANN, BOB)
    give(run, ANN, 121.0)
    give(run, BOB, 122.0)
    run.handle_message(COORDINATOR, Pause(), 123.0)

    assert aggregate(run, 124.0) == []
    assert run.handle_message(COORDINATOR, Resume(), 200.0) == [Ask(2, run.cohort, 60.0)]
    assert run.deadline == 260.0


def test_a_pause_that_ends_while_still_aggregating_changes_nothing() -> None:
    """In the second round: that the first one's state is there says nothing about the second's."""
    run = in_round_one(ANN, BOB)
    for now in (121.0, 123.0):
        give(run, ANN, now)
        give(run, BOB, now)
        if run.round == 1:
            aggregate(run, 122.0)
    run.handle_message(COORDINATOR, Pause(), 124.0)

    assert run.handle_message(COORDINATOR, Resume(), 125.0) == []
    assert (run.state, run.round) == (State.AGGREGATING, 2)
    assert aggregate(run, 126.0) == [Ask(3, run.cohort, 60.0)]


def test_bids_still_come_in_while_a_run_is_paused_before_its_window_ends() -> None:
    run = enlisting(ANN)
    run.handle_message(COORDINATOR, Pause(), 108.0)
    run.handle_message(BOB, enlistment(BOB, run.announcement), 150.0)
    run.handle_message(COORDINATOR, Resume(), 200.0)

    assert run.deadline == 202.0
    [opened] = run.handle_timeout(202.0)
    assert isinstance(opened, Open)


def test_a_cancelled_run_ends_at_once_and_names_who_is_still_at_work() -> None:
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)

    assert run.handle_message(COORDINATOR, Cancel(), 121.0) == [Abort("cancelled", at_work=(BOB,))]
    assert (run.state, run.deadline, run.reason) == (State.ABORTED, None, "cancelled")
    assert give(run, BOB, 122.0) == [Refuse(BOB, 1, "the run is over")]
    assert run.handle_message(COORDINATOR, Resume(), 123.0) == []


def test_a_round_that_cannot_be_aggregated_ends_the_run_with_its_reason() -> None:
    run = in_round_one(ANN, BOB)
    give(run, ANN, 120.0)
    give(run, BOB, 121.0)

    assert run.handle_message(COORDINATOR, NotAggregated(1, "disk full"), 122.0) == [
        Abort("round 1 could not be aggregated: disk full", at_work=())
    ]


def owners(peers: Collection[PeerId]) -> int:
    """Ann and Bob are two devices of one owner, who hides nobody from itself."""
    return len({"twins" if peer in {ANN, BOB} else peer for peer in peers})


def in_company(*members: PeerId, **changes: Any) -> TrainingRun:
    """Round 1 has begun; devices of one owner count as one."""
    run = TrainingRun(announcement(**changes), now=100.0, parties=owners)
    for member in members:
        run.handle_message(member, enlistment(member, run.announcement), 101.0)
    run.handle_timeout(110.0)
    for member in members:
        run.handle_message(member, Joined(), 112.0)
    assert run.state is State.ROUND
    return run


def test_devices_of_one_owner_do_not_make_up_for_an_owner_that_has_left() -> None:
    """Its members joined three parties. The update of the last one would be the aggregate less what the twins know."""
    run = in_company(ANN, BOB, CAT, DAN, cohort_min=3)
    for member in (ANN, BOB, CAT):
        assert give(run, member, 120.0) == []

    assert run.handle_message(DAN, Lost("it is gone"), 121.0) == [Ask(1, (DAN,), 60.0)]
    dismissed, aborted = run.handle_message(DAN, Lost("it is gone"), 122.0)

    assert dismissed == Dismiss(DAN, "it is gone")
    assert aborted == Abort("3 updates in round 1, of 2 owners, at least 3 owners wanted", at_work=())


def test_members_that_joined_two_owners_go_on_with_two() -> None:
    """They have agreed to that, in the cohort that they were shown."""
    run = in_company(ANN, BOB, CAT, cohort_min=3)

    give(run, ANN, 120.0)
    give(run, BOB, 120.0)

    [aggregated] = give(run, CAT, 120.0)
    assert isinstance(aggregated, Aggregate)


def test_a_restart_does_not_forget_how_many_owners_were_promised() -> None:
    announced = announcement(cohort_min=3)

    run, actions = TrainingRun.continued(
        announced, (ANN, BOB, CAT), shown=(ANN, BOB, CAT, DAN), rounds_done=1, now=1_000.0, parties=owners
    )

    assert actions == [Abort("3 of the cohort are left, of 2 owners, at least 3 owners wanted", at_work=())]
    assert run.is_over


def test_a_coordinator_that_was_killed_in_mid_round_asks_for_that_round_anew() -> None:
    run, actions = TrainingRun.continued(announcement(), (ANN, BOB), rounds_done=1, now=1_000.0)

    assert actions == [Ask(2, (ANN, BOB), 60.0)]
    assert (run.state, run.round, run.deadline) == (State.ROUND, 2, 1_060.0)


def test_a_coordinator_that_was_killed_after_the_last_round_has_finished() -> None:
    run, actions = TrainingRun.continued(announcement(), (ANN, BOB), rounds_done=3, now=1_000.0)

    assert actions == [Finish(at_work=())]
    assert run.is_over


# --- whatever happens --------------------------------------------------------------------------------------------------
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([ANN, BOB, CAT, EVE]),
        st.sampled_from(["update", "late", "fault", "lost", "aggregated", "pause", "resume", "wait"]),
        st.floats(0, 50),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_a_round_is_aggregated_once_of_enough_members_each_once_and_the_run_ends(
    events: list[tuple[str, str, float]],
) -> None:
    run = in_round_one(ANN, BOB, CAT)
    now, aggregates, ends = 112.0, [], 0

    def note(actions: list[object]) -> None:
        nonlocal ends
        for action in actions:
            ends += isinstance(action, Finish | Abort)
            if isinstance(action, Aggregate):
                aggregates.append(action)
                together = action.fresh + action.stale
                assert len(set(together)) == len(together) >= 2
                assert set(together) <= {ANN, BOB, CAT}

    for peer, event, after_s in events:
        now += after_s
        match event:
            case "update":
                note([*give(run, peer, now)])
            case "late":
                note([*give(run, peer, now, number=max(1, run.round - 1))])
            case "fault":
                note([*give(run, peer, now, fault="not finite")])
            case "lost":
                note([*run.handle_message(peer, Lost("gone"), now)])
            case "aggregated":
                note([*aggregate(run, now)])
            case "pause":
                note([*run.handle_message(COORDINATOR, Pause(), now)])
            case "resume":
                note([*run.handle_message(COORDINATOR, Resume(), now)])
            case _:
                note([*run.handle_timeout(now)])

    note([*run.handle_message(COORDINATOR, Resume(), now)])
    for _ in range(20):  # left alone, it comes to an end by its deadlines
        now = max(now, run.deadline or now)
        note([*(run.handle_timeout(now) if run.deadline else aggregate(run, now))])

    assert run.is_over
    assert ends == 1
    assert [each.round for each in aggregates] == list(range(1, len(aggregates) + 1))


def test_actions_are_values_that_tests_and_journals_can_compare() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ask(1, (ANN,), 60.0).round = 2  # type: ignore[misc]
    assert sealed(ANN, enlistment(ANN).message) == enlistment(ANN)
