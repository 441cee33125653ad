//! Good histories that must pass and bad ones that must not.

use super::*;

struct Told(Vec<Call>);

fn told() -> Told {
    Told(Vec::new())
}

/// A sandbox that was created with label 1 and relabelled to 2, both acknowledged.
fn labelled() -> Told {
    told().done(0, 10, Asked::Create { label: 1 }).done(20, 30, Asked::Label(2))
}

impl Told {
    fn call(mut self, began: u64, ended: u64, asked: Asked, answered: Answered) -> Told {
        let [began, ended] = [began, ended].map(Duration::from_millis);
        self.0.push(Call { node: 0, sandbox: "s".into(), asked, began, ended, answered });
        self
    }

    fn done(self, began: u64, ended: u64, asked: Asked) -> Told {
        self.call(began, ended, asked, Answered::Done)
    }

    fn unknown(self, began: u64, ended: u64, asked: Asked) -> Told {
        self.call(began, ended, asked, Answered::Unknown)
    }

    fn saw(self, began: u64, ended: u64, label: u64) -> Told {
        self.call(began, ended, Asked::Read, Answered::Saw { id: "i".into(), label })
    }

    fn missing(self, began: u64, ended: u64) -> Told {
        self.call(began, ended, Asked::Read, Answered::Missing)
    }

    #[track_caller]
    fn must_be_right(self) {
        assert_eq!(judge(&self.0), []);
    }

    #[track_caller]
    fn breaks(self, rule: Rule) {
        let broken: Vec<Rule> = judge(&self.0).into_iter().map(|violation| violation.rule).collect();
        assert_eq!(broken, [rule]);
    }
}

#[test]
fn a_life_in_order_is_right() {
    told()
        .missing(0, 1)
        .done(2, 10, Asked::Create { label: 1 })
        .saw(11, 12, 1)
        .done(13, 15, Asked::Label(2))
        .saw(16, 17, 2)
        .done(18, 20, Asked::Delete)
        .missing(21, 22)
        .must_be_right();
}

#[test]
fn a_read_during_a_write_may_show_either_side() {
    labelled().done(40, 60, Asked::Label(3)).saw(45, 46, 2).saw(50, 51, 3).must_be_right();
    labelled().done(40, 60, Asked::Label(3)).saw(45, 46, 3).must_be_right();
}

#[test]
fn a_created_sandbox_that_is_missing_is_lost() {
    labelled().missing(40, 41).breaks(Rule::Lost);
    labelled().call(40, 41, Asked::Label(3), Answered::Missing).breaks(Rule::Lost);
    labelled().call(40, 41, Asked::Delete, Answered::Missing).breaks(Rule::Lost);
}

#[test]
fn a_sandbox_that_was_missing_before_it_was_asked_to_be_deleted_is_lost() {
    labelled().missing(40, 41).done(50, 60, Asked::Delete).breaks(Rule::Lost);
}

#[test]
fn a_read_of_the_state_before_an_acknowledged_write_is_stale() {
    labelled().saw(40, 41, 2).must_be_right();
    labelled().saw(40, 41, 1).breaks(Rule::Stale);
}

#[test]
fn of_two_writes_at_once_either_may_be_the_last_but_only_one() {
    let both = || labelled().done(40, 60, Asked::Label(3)).done(40, 60, Asked::Label(4));

    both().saw(70, 71, 3).must_be_right();
    both().saw(70, 71, 4).must_be_right();
    both().saw(70, 71, 2).breaks(Rule::Stale);
    both().saw(70, 71, 3).saw(72, 73, 4).breaks(Rule::Unexplained);
}

#[test]
fn an_acknowledged_delete_is_for_ever() {
    let deleted = || labelled().done(40, 50, Asked::Delete);

    deleted().missing(60, 61).must_be_right();
    deleted().saw(60, 61, 2).breaks(Rule::Resurrected);
    deleted().done(60, 61, Asked::Label(3)).breaks(Rule::Resurrected);
}

#[test]
fn a_delete_without_an_answer_may_be_done_late_but_not_undone() {
    let perhaps_deleted = || labelled().unknown(40, 50, Asked::Delete);

    perhaps_deleted().saw(60, 61, 2).must_be_right();
    perhaps_deleted().saw(60, 61, 2).missing(62, 63).must_be_right();
    perhaps_deleted().missing(60, 61).saw(62, 63, 2).breaks(Rule::Unexplained);
}

#[test]
fn a_write_without_an_answer_may_be_seen_or_not_but_not_come_and_go() {
    let perhaps = || labelled().unknown(40, 50, Asked::Label(3));

    perhaps().saw(60, 61, 2).must_be_right();
    perhaps().saw(60, 61, 2).saw(62, 63, 3).must_be_right();
    perhaps().saw(60, 61, 3).saw(62, 63, 2).breaks(Rule::Unexplained);
}

#[test]
fn a_create_without_an_answer_may_be_found_later_but_not_come_and_go() {
    let perhaps = || told().unknown(0, 10, Asked::Create { label: 1 });

    perhaps().missing(20, 21).must_be_right();
    perhaps().missing(20, 21).saw(30, 31, 1).must_be_right();
    perhaps().saw(20, 21, 1).missing(30, 31).breaks(Rule::Unexplained);
}

#[test]
fn a_label_that_nobody_wrote_by_then_is_invented() {
    labelled().saw(40, 41, 7).breaks(Rule::Invented);
    labelled().saw(40, 41, 3).done(50, 60, Asked::Label(3)).breaks(Rule::Invented);
}

#[test]
fn a_name_never_stands_for_two_sandboxes() {
    let other = Answered::Saw { id: "other".into(), label: 2 };

    labelled().saw(40, 41, 2).call(50, 51, Asked::Read, other).breaks(Rule::TwoIds);
}

#[test]
fn a_request_without_fault_must_not_be_refused() {
    labelled().call(40, 41, Asked::Read, Answered::Refused("401".into())).breaks(Rule::Refused);
}

#[test]
fn a_write_that_found_its_sandbox_deleted_may_have_been_seen_before() {
    let told = |told: Told| told.done(40, 80, Asked::Delete).call(40, 80, Asked::Label(3), Answered::Missing);

    told(labelled()).saw(50, 51, 3).missing(90, 91).must_be_right();
    told(labelled()).saw(50, 51, 3).saw(60, 61, 2).breaks(Rule::Unexplained);
}

#[test]
fn each_sandbox_is_judged_alone() {
    let mut calls = labelled().missing(40, 41).0;
    calls[2].sandbox = "never made".into();

    assert_eq!(judge(&calls), []);
}
