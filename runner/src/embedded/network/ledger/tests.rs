use serde_json::json;

use super::*;

const SANDBOX: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
const SITE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn ledger() -> Ledger {
    Ledger::default()
}

fn networks(texts: &[&str]) -> Vec<Ipv4Net> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// What is left of the changes when what is added and deleted again is taken out: `+` and `-` and the element.
fn net_effect(changes: &[Change]) -> Vec<String> {
    let mut effect: Vec<String> = Vec::new();
    for change in changes {
        match change {
            Change::Add(element) => effect.push(format!("+{element}")),
            Change::Delete(element) => effect.push(format!("-{element}")),
            Change::Flush(set) => effect.push(format!("flush {}", set.name())),
        }
    }
    effect
}

#[test]
fn a_sandbox_is_cut_off_with_its_first_element_and_freed_without_a_trace() {
    let mut ledger = ledger();

    let changes =
        ledger.restrict(SANDBOX, &networks(&["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"]), |_| false);

    assert_eq!(net_effect(&changes), ["+10.88.0.5", "+10.88.0.5 . 10.0.0.0/8"]);
    let changes = ledger.free(SANDBOX);
    assert_eq!(net_effect(&changes), ["-10.88.0.5", "-10.88.0.5 . 10.0.0.0/8"]);
    assert_eq!(ledger.free(SANDBOX), []);
}

#[test]
fn a_changed_list_takes_away_what_is_no_longer_in_it() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.restrict(SANDBOX, &networks(&["1.0.0.0/8", "2.0.0.0/8"]), |_| true);
    ledger.pin(SANDBOX, "a.org", &[SITE], now).unwrap();

    let changes = ledger.restrict(SANDBOX, &networks(&["2.0.0.0/8"]), |name| name != "a.org");

    let effect = net_effect(&changes);
    assert!(effect.contains(&"-10.88.0.5 . 1.0.0.0/8".into()), "{effect:?}");
    assert!(effect.contains(&"-10.88.0.5 . 192.0.2.7 timeout 3600s".into()), "{effect:?}");
    assert!(!ledger.is_pinned(SANDBOX, "a.org", SITE, now));
}

#[test]
fn pins_are_bounded_and_old_ones_make_room() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let many = |from: u32| (from..from + 512).map(Ipv4Addr::from_bits).collect::<Vec<_>>();
    ledger.restrict(SANDBOX, &[], |_| true);

    assert!(ledger.pin(SANDBOX, "a.org", &many(1 << 24), now).is_some());
    assert!(ledger.pin(SANDBOX, "a.org", &many(1 << 24), now).is_some());
    assert!(ledger.pin(SANDBOX, "a.org", &[SITE], now).is_none());

    let later = now + Duration::from_secs(u64::from(PIN_S) + 1);
    let changes = ledger.pin(SANDBOX, "a.org", &[SITE], later).unwrap();
    assert_eq!(net_effect(&changes).iter().filter(|line| line.starts_with('-')).count(), 513);
}

#[test]
fn a_pin_of_another_name_or_near_its_end_does_not_count() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.restrict(SANDBOX, &[], |_| true);
    ledger.pin(SANDBOX, "a.org", &[SITE], now).unwrap();

    assert!(ledger.is_pinned(SANDBOX, "a.org", SITE, now));
    assert!(!ledger.is_pinned(SANDBOX, "b.org", SITE, now));
    assert!(!ledger.is_pinned(SANDBOX, "a.org", SITE, now + Duration::from_secs(u64::from(PIN_S) * 3 / 4)));
}

#[test]
fn what_a_former_process_left_is_known_again_and_what_is_strange_is_closed() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let set = |elements: Value| json!({ "nftables": [{ "metainfo": {} }, { "set": { "elem": elements } }] });
    let restricted = set(json!(["10.88.0.5"]));
    let allowed = set(json!([{ "concat": ["10.88.0.5", { "prefix": { "addr": "10.0.0.0", "len": 8 } }] }]));
    let pinned = set(json!([
        { "elem": { "val": { "concat": ["10.88.0.5", "192.0.2.7"] }, "expires": 3599, "comment": "a.org" } },
        { "elem": { "val": { "concat": ["10.88.0.5", "192.0.2.8"] }, "expires": 3599 } },
    ]));

    let changes = ledger.adopt(&Listed { restricted: &restricted, allowed: &allowed, pinned: &pinned }, now);

    assert_eq!(net_effect(&changes), ["-10.88.0.5 . 192.0.2.8 timeout 3600s"]);
    assert!(ledger.is_pinned(SANDBOX, "a.org", SITE, now));
    assert_eq!(ledger.restricted().collect::<Vec<_>>(), [SANDBOX]);
    assert_eq!(net_effect(&ledger.free(SANDBOX)).len(), 3);
}

#[test]
fn a_set_that_is_not_understood_is_emptied() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let set = |elements: Value| json!({ "nftables": [{ "set": { "elem": elements } }] });
    let strange = set(json!([{ "range": ["10.0.0.0", "10.0.0.9"] }]));

    let listed = Listed { restricted: &set(json!(["10.88.0.5"])), allowed: &strange, pinned: &strange };
    let changes = ledger.adopt(&listed, now);

    assert_eq!(net_effect(&changes), ["flush allowed1", "flush pinned1"]);
    assert_eq!(net_effect(&ledger.free(SANDBOX)), ["-10.88.0.5"]);
}
