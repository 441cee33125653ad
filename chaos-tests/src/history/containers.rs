//! Judges the containers that exist against the sandboxes that should. Pure.

use std::collections::BTreeMap;

/// One container as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub sandbox_id: String,
    pub node_id: String,
    pub generation: u64,
    pub running: bool,
}

/// A sandbox that clients see as started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub sandbox_id: String,
    pub owner: String,
}

/// One sentence for each thing that is wrong; none: every sandbox runs once, where it should.
pub fn judge(containers: &[Container], started: &[Started]) -> Vec<String> {
    let mut by_sandbox: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers {
        by_sandbox.entry(&container.sandbox_id).or_default().push(container);
    }
    let mut wrong = more_than_one(&by_sandbox);
    for Started { sandbox_id, owner } in started {
        let running = by_sandbox.remove(sandbox_id.as_str()).unwrap_or_default();
        if !running.iter().any(|container| container.running && container.node_id == *owner) {
            wrong.push(format!("{sandbox_id} is started on {owner} but doesn't run there: {running:?}"));
        }
    }
    wrong.extend(by_sandbox.into_iter().map(|(id, left)| format!("nobody wants {id}, but it has {left:?}")));
    wrong
}

fn more_than_one(by_sandbox: &BTreeMap<&str, Vec<&Container>>) -> Vec<String> {
    let wrong = |(id, all): (&&str, &Vec<&Container>)| {
        let newest = all.iter().map(|container| container.generation).max()?;
        let running: Vec<_> = all.iter().filter(|container| container.running).collect();
        match running[..] {
            [] => None,
            [one] if one.generation == newest => None,
            [_] => Some(format!("{id} runs in an older generation than its newest: {all:?}")),
            _ => Some(format!("{id} runs more than once: {all:?}")),
        }
    };
    by_sandbox.iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(sandbox_id: &str, node_id: &str, generation: u64, running: bool) -> Container {
        Container { sandbox_id: sandbox_id.into(), node_id: node_id.into(), generation, running }
    }

    #[track_caller]
    fn check(containers: &[Container], complaints: usize) {
        let started = Started { sandbox_id: "s".into(), owner: "n1".into() };
        let wrong = judge(containers, &[started]);
        assert_eq!(wrong.len(), complaints, "{wrong:?}");
    }

    #[test]
    fn one_running_container_at_the_owner_is_right() {
        check(&[container("s", "n1", 1, true)], 0);
    }

    #[test]
    fn an_earlier_generation_may_lie_about_but_not_run() {
        check(&[container("s", "n2", 1, false), container("s", "n1", 2, true)], 0);
        check(&[container("s", "n1", 1, true), container("s", "n2", 2, false)], 1);
    }

    #[test]
    fn two_running_containers_of_a_sandbox_are_wrong() {
        check(&[container("s", "n1", 1, true), container("s", "n2", 2, true)], 1);
    }

    #[test]
    fn a_started_sandbox_runs_at_its_owner() {
        check(&[], 1);
        check(&[container("s", "n1", 1, false)], 1);
        check(&[container("s", "n2", 1, true)], 1);
    }

    #[test]
    fn what_nobody_wants_is_gone() {
        check(&[container("s", "n1", 1, true), container("deleted", "n1", 1, false)], 1);
    }
}
