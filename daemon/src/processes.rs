//! Reads the process table: who belongs to a session, who descends from us. Never acts on it.

use std::collections::HashMap;

use rustix::process::Pid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    pid: i32,
    state: u8,
    parent: i32,
    session: i32,
}

/// Living processes of the session that `leader` began.
pub fn of_session(leader: Pid) -> Vec<Pid> {
    let session = leader.as_raw_nonzero().get();
    table()
        .filter(|entry| entry.session == session && entry.state != b'Z')
        .filter_map(|entry| Pid::from_raw(entry.pid))
        .collect()
}

/// Whether any process has this uid, in whichever of its four.
pub fn has_process_of(uid: u32) -> bool {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<i32>().is_ok());
        is_process
            && std::fs::read_to_string(entry.path().join("status")).is_ok_and(|status| is_of(&status, uid))
    })
}

fn is_of(status: &str, uid: u32) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    uids.split_ascii_whitespace().any(|text| text.parse() == Ok(uid))
}

/// Living processes below this one. As the daemon adopts every orphan, these are all processes of the sandbox, except what an
/// engine put beside it from outside.
pub fn descendants() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let entries: Vec<Entry> = table().collect();
    below(own, &entries)
}

fn below(ancestor: i32, entries: &[Entry]) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<&Entry>> = HashMap::new();
    for entry in entries {
        children.entry(entry.parent).or_default().push(entry);
    }
    let mut found = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        // `remove` also makes a cycle, which a table read while it changes may show, harmless.
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            if child.state != b'Z' {
                found.extend(Pid::from_raw(child.pid));
            }
        }
    }
    found
}

fn table() -> impl Iterator<Item = Entry> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<i32>().ok()?;
        parse_stat(&std::fs::read_to_string(entry.path().join("stat")).ok()?)
    })
}

/// `pid (name) state ppid pgrp session …`; the name may hold anything, also `) `.
fn parse_stat(stat: &str) -> Option<Entry> {
    let (pid, rest) = stat.split_once(" (")?;
    let mut fields = rest.rsplit_once(") ")?.1.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Entry { pid: pid.parse().ok()?, state, parent, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_look_like_fields() {
        let entry = parse_stat("12 (a) S 1 1 1 (b) R 7 8 9 0 -1").unwrap();

        assert_eq!(entry, Entry { pid: 12, state: b'R', parent: 7, session: 9 });
    }

    #[test]
    fn each_of_the_four_uids_counts() {
        let status = "Name:\tUid: 7\nUid:\t0\t0\t1000\t0\n";

        assert!(is_of(status, 1000) && is_of(status, 0));
        assert!(!is_of(status, 7) && !is_of("", 0));
    }

    #[test]
    fn descendants_are_found_through_zombies_and_cycles_end() {
        let entry = |pid, parent, state| Entry { pid, state, parent, session: 0 };
        let table =
            [entry(2, 1, b'S'), entry(3, 2, b'Z'), entry(4, 3, b'S'), entry(5, 9, b'S'), entry(1, 4, b'S')];

        let mut found: Vec<i32> = below(1, &table).iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        found.sort();

        assert_eq!(found, [1, 2, 4]);
    }
}
