//! Joins what a Dockerfile's escape character continues and lifts here-documents out, so that the parser sees one
//! line for each instruction: the parser crate knows here-documents only as a RUN's first word.
//!
//! Line numbers stay: what was joined or lifted leaves empty lines behind.

use super::BuildError;
use super::words::{Quotes, split};

/// Stands for the `<<` of a here-document that was lifted out.
pub const LIFTED: &str = "\u{1}\u{1}";

/// A Dockerfile is written by people.
pub const DOCKERFILE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HereDoc {
    /// The delimiter without its quotes; for COPY the file's name.
    pub name: String,
    /// As written, with the tabs that `<<-` takes away taken away.
    pub body: String,
    /// Not between quotes: variables in it are expanded.
    pub expand: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Joined {
    /// As long as the original in lines.
    pub text: String,
    /// By the line of their instruction, counted from 1.
    pub here_docs: Vec<(usize, HereDoc)>,
    pub escape: char,
}

impl Joined {
    /// The line that byte `at` of the text is on, counted from 1.
    pub fn line_of(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }
}

pub fn join(text: &str) -> Result<Joined, BuildError> {
    if text.len() > DOCKERFILE_BYTES_MAX {
        return Err(BuildError::at(1, format!("a Dockerfile may have {DOCKERFILE_BYTES_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(at) = text.find(['\u{0}', '\u{1}']) {
        let line = 1 + text[..at].matches('\n').count();
        return Err(BuildError::at(line, "a control character in the text"));
    }
    let escape = escape_of(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let mut joined = Joined { text: String::with_capacity(text.len()), here_docs: Vec::new(), escape };
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        let mut logical = String::new();
        loop {
            let line = lines[at];
            at += 1;
            let is_first = at == first + 1;
            // Inside a continued instruction, comments and empty lines vanish.
            if !is_first && (is_comment(line) || line.trim().is_empty()) {
                if at == lines.len() {
                    break;
                }
                continue;
            }
            let (kept, continues) = match continued(line, escape) {
                Some(kept) if !(is_first && is_comment(line)) => (kept, true),
                _ => (line, false),
            };
            logical.push_str(kept);
            if !continues || at == lines.len() {
                break;
            }
        }
        at = lift(&mut joined, &mut logical, &lines, first, at)?;
        joined.text.push_str(&logical);
        joined.text.push_str(&"\n".repeat(at - first));
    }
    Ok(joined)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without its escape character, if it ends with one that is not itself escaped.
fn continued(line: &str, escape: char) -> Option<&str> {
    let kept = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!kept.ends_with(escape)).then_some(kept)
}

/// Of the directives only this one changes how lines are read.
fn escape_of(text: &str) -> char {
    for line in text.lines() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            break;
        };
        match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "`") => return '`',
            ("escape" | "syntax" | "check", _) => {}
            _ => break,
        }
    }
    '\\'
}

/// Takes the here-documents that `logical` announces from the lines that follow; says where the next one begins.
fn lift(
    joined: &mut Joined,
    logical: &mut String,
    lines: &[&str],
    first: usize,
    mut at: usize,
) -> Result<usize, BuildError> {
    let trimmed = logical.trim_start();
    let keyword = trimmed.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") || !logical.contains("<<") {
        return Ok(at);
    }
    let arguments = trimmed[keyword.len()..].trim_start();
    if arguments.starts_with('[') && arguments.trim_end().ends_with(']') {
        return Ok(at);
    }
    let Ok(words) = split(arguments, joined.escape) else { return Ok(at) };
    for word in words {
        let Some((name, chomp, expand)) = announced(&word, joined.escape) else { continue };
        let mut body = String::new();
        loop {
            let Some(line) = lines.get(at) else {
                return Err(BuildError::at(first + 1, format!("the here-document {name} has no end")));
            };
            at += 1;
            let line = if chomp { line.trim_start_matches('\t') } else { line };
            if line == name {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        joined.here_docs.push((first + 1, HereDoc { name, body, expand }));
        *logical = logical.replacen(&word, &word.replacen("<<", LIFTED, 1), 1);
    }
    Ok(at)
}

/// `<<EOF`, `<<-EOF`, `3<<"EOF"`: name, whether tabs go, whether variables are expanded.
fn announced(word: &str, escape: char) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = super::words::Words::new(escape, Quotes::Process).expand(rest, &|_| None).ok()?;
    (!name.is_empty()).then(|| (name, chomp, !rest.contains(['"', '\''])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(of: &str) -> String {
        join(of).unwrap().text
    }

    #[test]
    fn continued_lines_become_one_and_keep_the_numbers_of_those_after() {
        assert_eq!(text("RUN a && \\\n  # why\n\n  b\nRUN c"), "RUN a &&   b\n\n\n\nRUN c\n");
        assert_eq!(text("RUN a \\  \n b\\\\\n"), "RUN a  b\\\\\n\n\n");
        assert_eq!(text("# escape=`\nRUN a `\n b \\\nRUN c"), "# escape=`\nRUN a  b \\\n\nRUN c\n");
        assert_eq!(text("# a comment \\\nRUN a"), "# a comment \\\nRUN a\n");
        assert_eq!(text("RUN a\r\nRUN b \\\r\n c\r\n"), "RUN a\nRUN b  c\n\n\n");
        assert_eq!(text("RUN a \\\n# only a comment"), "RUN a \n\n");
    }

    #[test]
    fn here_documents_are_lifted_wherever_they_stand() {
        let joined = join("RUN cat <<EOF >/a && cat <<-'B' \\\n >/b\n$x\nEOF\n\t\ttwo\n\tB\nRUN c").unwrap();

        assert_eq!(
            joined.text,
            format!("RUN cat {LIFTED}EOF >/a && cat {LIFTED}-'B'  >/b\n\n\n\n\n\nRUN c\n")
        );
        let here = |name: &str, body: &str, expand| HereDoc { name: name.into(), body: body.into(), expand };
        assert_eq!(joined.here_docs, [(1, here("EOF", "$x\n", true)), (1, here("B", "two\n", false))]);
        assert_eq!(joined.line_of(joined.text.rfind("RUN c").unwrap()), 7);
    }

    #[test]
    fn what_only_looks_like_a_here_document_stays() {
        for same in [
            "RUN echo $((1<<2))",
            "RUN cat <<< word",
            "ENV a=<<EOF",
            "RUN [\"cat\", \"<<EOF\"]",
            "RUN echo \"<<EOF\"",
        ] {
            let joined = join(same).unwrap();
            assert_eq!((joined.text, joined.here_docs), (format!("{same}\n"), vec![]));
        }
    }

    #[test]
    fn a_here_document_without_end_and_control_characters_are_refused_with_their_line() {
        let refused = |text: &str| join(text).unwrap_err().to_string();

        assert_eq!(refused("FROM a\nRUN <<EOF\nhi"), "Dockerfile line 2: the here-document EOF has no end");
        assert_eq!(refused("FROM a\n\u{1}"), "Dockerfile line 2: a control character in the text");
    }
}
