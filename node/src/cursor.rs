//! Pages over sandboxes, newest first, and merging the pages of several regions into one.

use atoll_consensus::state::region::Cursor;

use crate::control::verb::{SandboxPage, SandboxView};

/// Newest first; the id breaks ties, so that the order is total over all regions.
fn key(view: &SandboxView) -> Cursor {
    Cursor::of(view.sandbox_id, &view.record)
}

/// One page of at most `limit` out of several regions' pages that began at the same cursor.
pub fn merge_pages(pages: Vec<SandboxPage>, limit: usize) -> (Vec<SandboxView>, Option<String>) {
    let more = pages.iter().any(|page| page.next_cursor.is_some());
    let mut items: Vec<SandboxView> = pages.into_iter().flat_map(|page| page.items).collect();
    items.sort_by_key(|view| std::cmp::Reverse(key(view)));
    let cut = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| cut || more).map(|view| key(view).to_string());
    (items, next)
}
