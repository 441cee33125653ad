//! Wildcards of COPY's sources, and `.dockerignore`.

use globset::{GlobBuilder, GlobMatcher};

use super::plan::clean;

/// Wildcards as Go's `filepath.Match` has them: `*` and `?` stop at a slash.
#[derive(Debug)]
pub struct Pattern(GlobMatcher);

impl Pattern {
    /// `None` when `source` has no wildcard.
    pub fn of_source(source: &str) -> Option<Result<Pattern, String>> {
        let has_wildcard = source.contains(['*', '?', '[']);
        // Two stars mean no more than one here.
        has_wildcard.then(|| Pattern::new(&source.replace("**", "*")))
    }

    fn new(text: &str) -> Result<Pattern, String> {
        // Braces are letters to Go.
        let text = text.replace('{', "[{]").replace('}', "[}]");
        GlobBuilder::new(&text)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map(|glob| Pattern(glob.compile_matcher()))
            .map_err(|error| format!("the pattern {text} is broken: {}", error.kind()))
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        !path.is_empty() && self.0.is_match(std::ffi::OsStr::from_bytes(path))
    }
}

pub const IGNORE_FILE: &str = ".dockerignore";
const IGNORE_LINES_MAX: usize = 10_000;

/// What of a context is not seen; later lines win.
#[derive(Debug)]
pub struct Ignore(Vec<(Pattern, Sign)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Hide,
    Show,
}

impl Ignore {
    pub fn parse(text: &str) -> Result<Ignore, String> {
        let mut rules = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines().take(IGNORE_LINES_MAX) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (sign, pattern) = match line.strip_prefix('!') {
                Some(pattern) => (Sign::Show, pattern.trim()),
                None => (Sign::Hide, line),
            };
            let pattern = clean(pattern);
            if !pattern.is_empty() {
                rules.push((Pattern::new(&pattern)?, sign));
            }
        }
        Ok(Ignore(rules))
    }

    /// A path is hidden with the folder that it lies in.
    pub fn hides(&self, path: &[u8]) -> bool {
        let ends = (0..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]);
        let with_parents: Vec<&[u8]> = ends.map(|end| &path[..end]).collect();
        let mut hidden = false;
        for (pattern, sign) in &self.0 {
            if with_parents.iter().any(|path| pattern.matches(path)) {
                hidden = *sign == Sign::Hide;
            }
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stop_at_a_slash_and_braces_are_letters() {
        let matches = |pattern: &str, path: &str| {
            Pattern::of_source(pattern).unwrap().unwrap().matches(path.as_bytes())
        };

        assert!(matches("src/*.py", "src/a.py"));
        assert!(!matches("src/*.py", "src/b/a.py"));
        assert!(!matches("*", "a/b"));
        assert!(matches("a?[b-d]", "axc"));
        assert!(matches("**/x", "y/x"));
        assert!(!matches("**/x", "x"));
        assert!(matches("{a}*", "{a}1"));
        assert!(!matches("{a,b}*", "a1"));
        assert!(Pattern::of_source("plain/name").is_none());
        assert!(Pattern::of_source("a[").unwrap().is_err());
    }

    #[test]
    fn the_last_matching_line_of_an_ignore_file_wins() {
        let ignore = Ignore::parse("# no\n*.log\n/build/\n**/cache\n!keep.log\n!build/keep\n").unwrap();
        let hidden = |path: &str| ignore.hides(path.as_bytes());

        assert!(hidden("a.log"));
        assert!(!hidden("x/a.log"));
        assert!(!hidden("keep.log"));
        assert!(hidden("build/x") && hidden("build"));
        assert!(!hidden("build/keep"));
        assert!(hidden("a/b/cache/c"));
        assert!(hidden("cache"));
    }
}
