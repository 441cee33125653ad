//! The toolbox's operations and models as data, and whether an answer is one of them. `toolbox_operations.json` says where they are from.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

pub const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/toolbox_operations.json");

#[derive(Deserialize)]
pub struct Facts {
    pub operations: Vec<Operation>,
    models: BTreeMap<String, BTreeMap<String, String>>,
    enums: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Clone)]
pub struct Operation {
    #[serde(rename = "operation")]
    pub name: String,
    pub group: String,
    pub method: String,
    pub path: String,
    pub success: Vec<u16>,
    /// A type, or `empty`, `bytes`, `multipart`, `websocket`.
    pub answer: String,
}

impl Facts {
    pub fn read() -> Facts {
        let text = std::fs::read_to_string(FILE).expect("the facts are in the tree");
        let facts: Facts = serde_json::from_str(&text).expect("the facts are as this module has them");
        assert_eq!(facts.operations.len(), 107);
        facts
    }

    pub fn operation(&self, name: &str) -> &Operation {
        let found = self.operations.iter().find(|operation| operation.name == name);
        found.unwrap_or_else(|| panic!("{name} is no operation of the toolbox"))
    }

    /// What is wrong with a value that should be of a type.
    pub fn misfit(&self, of: &str, value: &Value) -> Option<String> {
        self.misfit_at("answer", of, value)
    }

    fn misfit_at(&self, at: &str, of: &str, value: &Value) -> Option<String> {
        let fits = match of {
            "any" => true,
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            // 1.0 is none: the generated clients are strict.
            "integer" => value.is_i64() || value.is_u64(),
            _ => return self.compound_misfit(at, of, value),
        };
        (!fits).then(|| format!("{at} is no {of}: {}", shortened(value)))
    }

    fn compound_misfit(&self, at: &str, of: &str, value: &Value) -> Option<String> {
        let no = |what: &str| Some(format!("{at} is no {what}: {}", shortened(value)));
        if let Some(item) = of.strip_prefix('[').and_then(|of| of.strip_suffix(']')) {
            let Some(items) = value.as_array() else { return no("list") };
            let mut items = items.iter().enumerate();
            return items.find_map(|(i, value)| self.misfit_at(&format!("{at}[{i}]"), item, value));
        }
        if let Some(item) = of.strip_prefix('{').and_then(|of| of.strip_suffix('}')) {
            let Some(items) = value.as_object() else { return no("object") };
            let mut items = items.iter();
            return items.find_map(|(key, value)| self.misfit_at(&format!("{at}.{key}"), item, value));
        }
        if let Some(words) = self.enums.get(of) {
            let known = value.as_str().is_some_and(|value| words.iter().any(|word| word == value));
            return if known { None } else { no(of) };
        }
        let fields = self.models.get(of).unwrap_or_else(|| panic!("{of} is no model of the toolbox"));
        let Some(object) = value.as_object() else { return no(of) };
        fields.iter().find_map(|(name, of)| {
            let (name, required) = match name.strip_suffix('?') {
                Some(name) => (name, false),
                None => (name.as_str(), true),
            };
            match object.get(name) {
                None if required => Some(format!("{at} lacks {name}: {}", shortened(value))),
                None => None,
                Some(Value::Null) if !required => None,
                Some(value) => self.misfit_at(&format!("{at}.{name}"), of, value),
            }
        })
    }
}

pub fn shortened(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}
