//! The environment of user processes: the image's, then the account's, then the sandbox's, then the caller's.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};

use crate::accounts::Account;
use crate::shells::Shells;

pub type Variables = BTreeMap<String, String>;

const DEFAULTS: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
    ("TERM", "xterm-256color"),
];

pub struct Environment {
    variables: Mutex<Variables>,
}

/// What `POST /env` asks for. Removals come first.
pub struct Update {
    pub set: Variables,
    pub unset: Vec<String>,
    pub unset_value_prefix: Option<String>,
}

impl Environment {
    /// As [`Environment::new`] in this very process.
    pub fn of_user(account: &Account, shells: &Shells, sandbox: &Variables) -> Environment {
        Environment::new(std::env::vars_os(), account, &shells.login().to_string_lossy(), sandbox)
    }

    /// `image` is the daemon's own environment, as the container engine made it from the image.
    pub fn new(
        image: impl Iterator<Item = (OsString, OsString)>,
        account: &Account,
        shell: &str,
        sandbox: &Variables,
    ) -> Environment {
        let mut variables: Variables =
            DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        // Variables that are not UTF-8 can't be named by any caller; they are left out.
        variables.extend(
            image.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        );
        variables.insert("HOME".into(), account.home.to_string_lossy().into_owned());
        variables.insert("USER".into(), account.name.clone());
        variables.insert("LOGNAME".into(), account.name.clone());
        variables.insert("SHELL".into(), shell.to_owned());
        for inherited in ["PWD", "OLDPWD", "SHLVL", "_"] {
            variables.remove(inherited);
        }
        variables.extend(sandbox.clone());
        Environment { variables: Mutex::new(variables) }
    }

    /// For a process that is about to start; `extra` wins.
    pub fn with(&self, extra: &Variables) -> Variables {
        let mut variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        variables.extend(extra.clone());
        variables
    }

    /// For a client whose wishes count only where the sandbox says nothing.
    pub fn beneath(&self, wishes: &Variables) -> Variables {
        let mut variables = wishes.clone();
        variables.extend(self.with(&Variables::new()));
        variables
    }

    /// Affects processes that start from now on.
    pub fn update(&self, update: Update) {
        let mut variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &update.unset {
            variables.remove(name);
        }
        if let Some(prefix) = update.unset_value_prefix.filter(|prefix| !prefix.is_empty()) {
            variables.retain(|name, value| update.set.contains_key(name) || !value.starts_with(&prefix));
        }
        variables.extend(update.set);
    }
}

/// The first name or value that no process could be given.
pub fn first_invalid(variables: &HashMap<String, String>) -> Option<&str> {
    variables
        .iter()
        .find(|(name, value)| !is_identifier(name) || value.contains('\0'))
        .map(|(name, _)| name.as_str())
}

pub fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        let account = Account {
            name: "u".into(),
            uid: 1,
            gid: 1,
            groups: vec![1],
            home: "/home/u".into(),
            shell: None,
        };
        let image =
            [("PATH", "/image"), ("HOME", "/root"), ("A", "image")].map(|(n, v)| (n.into(), v.into()));
        let sandbox = [("A".to_owned(), "sandbox".to_owned())].into();
        Environment::new(image.into_iter(), &account, "/bin/sh", &sandbox)
    }

    #[test]
    fn later_layers_win() {
        let variables = environment().with(&[("LANG".to_owned(), "de".to_owned())].into());

        let of = |name: &str| variables[name].as_str();
        assert_eq!((of("PATH"), of("HOME"), of("A"), of("LANG")), ("/image", "/home/u", "sandbox", "de"));
    }

    #[test]
    fn a_clients_wish_never_overrides_the_sandbox() {
        let wishes = [("A".to_owned(), "wish".to_owned()), ("LC_TIME".to_owned(), "de".to_owned())].into();

        let variables = environment().beneath(&wishes);

        assert_eq!((variables["A"].as_str(), variables["LC_TIME"].as_str()), ("sandbox", "de"));
    }

    #[test]
    fn an_update_removes_by_name_and_by_value_before_it_sets() {
        let environment = environment();
        let set: Variables =
            [("S1".to_owned(), "secret-1".to_owned()), ("S2".to_owned(), "secret-2".to_owned())].into();
        environment.update(Update { set, unset: vec![], unset_value_prefix: None });

        environment.update(Update {
            set: [("S2".to_owned(), "secret-3".to_owned())].into(),
            unset: vec!["A".into()],
            unset_value_prefix: Some("secret-".into()),
        });

        let variables = environment.with(&Variables::new());
        assert_eq!(variables.get("S1"), None);
        assert_eq!(variables.get("A"), None);
        assert_eq!(variables["S2"], "secret-3");
    }

    #[test]
    fn names_are_identifiers() {
        assert!(is_identifier("_A9"));
        for bad in ["", "9A", "A-B", "A=B", "Ä"] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }
}
