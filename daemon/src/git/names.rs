//! Words of a caller that become arguments of git. What git would take for an option, or cut in two, is no such word.

use serde::{Deserialize, Deserializer};

use crate::errors::ApiError;

const WORD_BYTES_MAX: usize = 1024;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(word: String) -> Result<$name, String> {
                check_word($what, &word)?;
                Ok($name(word))
            }
        }
    )* };
}

words! {
    /// As below `refs/heads/`. What else git demands of a name, git says.
    Branch = "a branch";
    /// Anything that names a commit.
    Revision = "a revision";
    Remote = "a remote";
}

fn check_word(what: &str, word: &str) -> Result<(), String> {
    if word.is_empty() {
        return Err(format!("the name of {what} is empty"));
    }
    if word.starts_with('-') {
        return Err(format!("the name of {what} may not begin with \"-\""));
    }
    if word.len() > WORD_BYTES_MAX || word.chars().any(char::is_control) {
        return Err(format!("not the name of {what}"));
    }
    Ok(())
}

impl Branch {
    pub fn full(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

/// A commit's hash, or its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CommitId(String);

impl CommitId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Only whole ones can be asked of a remote.
    pub fn is_whole(&self) -> bool {
        matches!(self.0.len(), 40 | 64)
    }
}

impl TryFrom<String> for CommitId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<CommitId, &'static str> {
        let is_id = (4..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id { Ok(CommitId(id)) } else { Err("a commit id is 4 to 64 hexadecimal digits") }
    }
}

/// `section.name` or `section.anything.name`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ConfigKey(String);

impl ConfigKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ConfigKey {
    type Error = &'static str;

    fn try_from(key: String) -> Result<ConfigKey, &'static str> {
        let is_key = || {
            let (section, rest) = key.split_once('.')?;
            let name = rest.rsplit('.').next()?;
            let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            let begins = section.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.starts_with(|first: char| first.is_ascii_alphabetic());
            let is_line = key.len() <= WORD_BYTES_MAX && !key.contains(['\n', '\0']);
            (begins && is_word(section) && is_word(name) && is_line).then_some(())
        };
        if is_key().is_some() { Ok(ConfigKey(key)) } else { Err("a config key is like \"user.name\"") }
    }
}

/// Paths as they are named, no patterns: `.` means all. They travel by standard input, so there may be any number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Files(Vec<String>);

impl Files {
    /// For `--pathspec-from-file=- --pathspec-file-nul`.
    pub fn to_input(&self) -> Vec<u8> {
        self.0.iter().flat_map(|file| [file.as_bytes(), b"\0"]).flatten().copied().collect()
    }
}

impl TryFrom<Vec<String>> for Files {
    type Error = &'static str;

    fn try_from(files: Vec<String>) -> Result<Files, &'static str> {
        if files.is_empty() {
            return Err("files is empty: name some, or \".\" for all");
        }
        if files.iter().any(|file| file.is_empty() || file.contains('\0')) {
            return Err("files has one that is no path");
        }
        Ok(Files(files))
    }
}

/// What a person is called in a commit: one line, as git keeps it in one.
pub fn check_identity(name: &str, email: &str) -> Result<(), ApiError> {
    let is_bad =
        |text: &str| text.trim().is_empty() || text.chars().any(|c| c.is_control() || "<>".contains(c));
    if is_bad(name) || is_bad(email) {
        return Err(ApiError::bad_request("a name and an email are lines of text without \"<\" and \">\""));
    }
    Ok(())
}

/// Some clients send the empty text for what they leave out.
pub fn unless_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<String, Error: std::fmt::Display>,
{
    match Option::<String>::deserialize(deserializer)?.filter(|word| !word.is_empty()) {
        None => Ok(None),
        Some(word) => T::try_from(word).map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_could_take_for_an_option_is_no_name() {
        for bad in ["", "-", "-b", "--upload-pack=x", "a\nb", "a\0b", "a\u{1b}[0m"] {
            assert!(Branch::try_from(bad.to_owned()).is_err(), "{bad:?}");
            assert!(Remote::try_from(bad.to_owned()).is_err(), "{bad:?}");
            assert!(Revision::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert_eq!(Branch::try_from("feature/ä-1".to_owned()).unwrap().full(), "refs/heads/feature/ä-1");
    }

    #[test]
    fn a_key_has_a_section_and_a_name() {
        for good in ["user.name", "http.https://x.example/a.b.sslVerify", "branch.a b.remote", "a-1.b-2"] {
            assert!(ConfigKey::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "user", ".name", "user.", "--get.x", "user.na me", "a.1x", "a.b\n.c", "us er.name"] {
            assert!(ConfigKey::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_commit_id_is_hexadecimal() {
        for (id, is_good) in
            [("abc123", true), ("ABCD", true), ("abc", false), ("HEAD", false), ("-abc1", false)]
        {
            assert_eq!(CommitId::try_from(id.to_owned()).is_ok(), is_good, "{id}");
        }
    }

    #[test]
    fn files_travel_whole() {
        let files = Files::try_from(vec!["a\nb".to_owned(), "-c".to_owned()]).unwrap();

        assert_eq!(files.to_input(), b"a\nb\0-c\0");
        assert!(Files::try_from(Vec::new()).is_err());
        assert!(Files::try_from(vec![String::new()]).is_err());
    }
}
