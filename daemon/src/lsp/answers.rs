//! What servers answer, in its several historical shapes, as the one shape that the toolbox's callers know.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Of one answer; with more, `isIncomplete` says that there are more.
const ITEMS_MAX: usize = 5000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    pub line: u32,
    pub character: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub start: Position,
    pub end: Position,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Symbol {
    pub name: String,
    pub kind: u32,
    pub location: Location,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Location {
    pub uri: String,
    pub range: Range,
}

/// Either a flat one with its place, or one of a tree within its document.
#[derive(Deserialize)]
pub struct AnySymbol {
    name: String,
    kind: u32,
    location: Option<AnyLocation>,
    range: Option<Range>,
    children: Option<Vec<AnySymbol>>,
}

#[derive(Deserialize)]
struct AnyLocation {
    uri: String,
    /// Some answer with the document alone.
    range: Option<Range>,
}

/// Trees become lists, parents before their children. `document` is where those without a place of their own are.
pub fn symbols(answer: Option<Vec<AnySymbol>>, document: &str) -> Vec<Symbol> {
    let mut flat = Vec::new();
    let mut waiting: Vec<AnySymbol> = answer.unwrap_or_default();
    waiting.reverse();
    while let Some(symbol) = waiting.pop() {
        let location = match symbol.location {
            Some(AnyLocation { uri, range }) => Location { uri, range: range.unwrap_or_default() },
            None => Location { uri: document.to_owned(), range: symbol.range.unwrap_or_default() },
        };
        flat.push(Symbol { name: symbol.name, kind: symbol.kind, location });
        waiting.extend(symbol.children.unwrap_or_default().into_iter().rev());
    }
    flat
}

#[derive(Deserialize)]
#[serde(untagged)]
pub enum AnyCompletions {
    List {
        #[serde(default, rename = "isIncomplete")]
        is_incomplete: bool,
        items: Vec<AnyItem>,
    },
    Items(Vec<AnyItem>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnyItem {
    label: String,
    kind: Option<u32>,
    detail: Option<String>,
    documentation: Option<Value>,
    sort_text: Option<String>,
    filter_text: Option<String>,
    insert_text: Option<String>,
    text_edit: Option<TextEdit>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TextEdit {
    new_text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Completions {
    pub is_incomplete: bool,
    pub items: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    documentation: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sort_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    insert_text: Option<String>,
}

pub fn completions(answer: Option<AnyCompletions>) -> Completions {
    let (is_incomplete, mut items) = match answer {
        None => (false, Vec::new()),
        Some(AnyCompletions::List { is_incomplete, items }) => (is_incomplete, items),
        Some(AnyCompletions::Items(items)) => (false, items),
    };
    let is_cut = items.len() > ITEMS_MAX;
    items.truncate(ITEMS_MAX);
    let item = |item: AnyItem| Item {
        label: item.label,
        kind: item.kind,
        detail: item.detail,
        // Clients take an object only, and servers also send a string, which is plain text.
        documentation: match item.documentation {
            Some(Value::String(value)) => Some(json!({ "kind": "plaintext", "value": value })),
            documentation => documentation.filter(Value::is_object),
        },
        sort_text: item.sort_text,
        filter_text: item.filter_text,
        insert_text: item.insert_text.or(item.text_edit.map(|edit| edit.new_text)),
    };
    Completions { is_incomplete: is_incomplete || is_cut, items: items.into_iter().map(item).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(line: u32) -> Value {
        json!({ "start": { "line": line, "character": 0 }, "end": { "line": line, "character": 5 } })
    }

    fn flat(answer: Value) -> Value {
        json!(symbols(serde_json::from_value(answer).unwrap(), "file:///d"))
    }

    #[test]
    fn a_tree_of_symbols_becomes_a_list_in_order() {
        let tree = json!([
            { "name": "A", "kind": 5, "range": range(1), "selectionRange": range(1),
              "children": [{ "name": "f", "kind": 6, "range": range(2), "selectionRange": range(2) }] },
            { "name": "b", "kind": 12, "range": range(3), "selectionRange": range(3) },
        ]);

        let place = |line| json!({ "uri": "file:///d", "range": range(line) });
        let expected = json!([
            { "name": "A", "kind": 5, "location": place(1) },
            { "name": "f", "kind": 6, "location": place(2) },
            { "name": "b", "kind": 12, "location": place(3) },
        ]);
        assert_eq!(flat(tree), expected);
    }

    #[test]
    fn flat_symbols_keep_their_place_and_nothing_is_an_empty_list() {
        let located = json!([{ "name": "x", "kind": 13, "location": { "uri": "file:///e", "range": range(4) }, "containerName": null }]);

        assert_eq!(flat(located)[0]["location"], json!({ "uri": "file:///e", "range": range(4) }));
        assert_eq!(
            flat(json!([{ "name": "x", "kind": 1, "location": { "uri": "file:///e" } }]))[0]["location"]["uri"],
            "file:///e"
        );
        assert_eq!(flat(Value::Null), json!([]));
    }

    #[test]
    fn completions_come_as_a_list_whatever_the_shape() {
        let of = |answer: Value| json!(completions(serde_json::from_value(answer).unwrap()));

        assert_eq!(of(Value::Null), json!({ "isIncomplete": false, "items": [] }));
        assert_eq!(of(json!([{ "label": "a" }]))["items"], json!([{ "label": "a" }]));
        let list = of(json!({ "isIncomplete": true, "items": [{
            "label": "b", "kind": 3, "documentation": "text", "textEdit": { "newText": "b()", "range": range(0) } }] }));
        assert_eq!(list["isIncomplete"], true);
        let item = json!({ "label": "b", "kind": 3, "documentation": { "kind": "plaintext", "value": "text" }, "insertText": "b()" });
        assert_eq!(list["items"][0], item);
    }
}
