//! Words of a Dockerfile, as its reference has them: variables, quotes and escapes. Not a shell's, though they look alike.

/// A word that grows beyond this is an attack: `ENV a=$b$b` doubles with each line.
pub const WORD_BYTES_MAX: usize = 1 << 20;
const NESTING_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotes {
    /// They group, and go.
    Process,
    /// They are text (here-documents).
    Keep,
}

#[derive(Debug, Clone, Copy)]
pub struct Words {
    escape: char,
    quotes: Quotes,
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Words {
    pub fn new(escape: char, quotes: Quotes) -> Words {
        Words { escape, quotes }
    }

    /// `text` with its variables replaced by what `lookup` says, unset ones by nothing.
    pub fn expand(&self, text: &str, lookup: Lookup<'_>) -> Result<String, String> {
        let mut scan = Scan { words: *self, rest: text, lookup, depth: 0 };
        scan.until(None)
    }
}

/// Splits at white space outside of quotes; the words keep their quotes and escapes.
pub fn split(text: &str, escape: char) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match quote {
            None if char.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if char == '\'' || char == '"' => quote = Some(char),
            Some(open) if char == open => quote = None,
            _ => {}
        }
        word.push(char);
        if char == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if let Some(open) = quote {
        return Err(format!("the quote {open} is not closed"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// `name=value …` of ENV, LABEL and ARG, or the old `name value with spaces`. Values are raw; `None` has no `=`.
pub fn pairs(text: &str, escape: char) -> Result<Vec<(String, Option<String>)>, String> {
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.clone(), None),
    };
    Ok(split(text, escape)?.iter().map(pair).collect())
}

struct Scan<'a> {
    words: Words,
    rest: &'a str,
    lookup: Lookup<'a>,
    depth: usize,
}

impl Scan<'_> {
    fn next(&mut self) -> Option<char> {
        let char = self.rest.chars().next()?;
        self.rest = &self.rest[char.len_utf8()..];
        Some(char)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Up to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<String, String> {
        let processes_quotes = self.words.quotes == Quotes::Process;
        let mut out = String::new();
        while let Some(char) = self.next() {
            if Some(char) == stop {
                return Ok(out);
            }
            match char {
                '$' => out.push_str(&self.dollar()?),
                '\'' if processes_quotes => self.single(&mut out)?,
                '"' if processes_quotes => self.double(&mut out)?,
                _ if char == self.words.escape => match self.next() {
                    None => out.push(char),
                    // In a here-document only what would mean something is escaped.
                    Some(next) if !processes_quotes && next != '$' && next != self.words.escape => {
                        out.extend([char, next])
                    }
                    Some(next) => out.push(next),
                },
                _ => out.push(char),
            }
            if out.len() > WORD_BYTES_MAX {
                return Err(format!("a word is longer than {WORD_BYTES_MAX} bytes"));
            }
        }
        match stop {
            None => Ok(out),
            Some(stop) => Err(format!("a {stop} is missing")),
        }
    }

    fn single(&mut self, out: &mut String) -> Result<(), String> {
        let end = self.rest.find('\'').ok_or("the quote ' is not closed")?;
        out.push_str(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Ok(())
    }

    fn double(&mut self, out: &mut String) -> Result<(), String> {
        while let Some(char) = self.next() {
            match char {
                '"' => return Ok(()),
                '$' => out.push_str(&self.dollar()?),
                _ if char == self.words.escape => match self.next() {
                    Some(next) if next == '"' || next == '$' || next == char => out.push(next),
                    Some(next) => out.extend([char, next]),
                    None => out.push(char),
                },
                _ => out.push(char),
            }
        }
        Err("the quote \" is not closed".into())
    }

    /// After a `$`.
    fn dollar(&mut self) -> Result<String, String> {
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".into() } else { (self.lookup)(&name).unwrap_or_default() });
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err("a name is missing in ${…}".into());
        }
        let value = (self.lookup)(&name);
        let (colon, operator) = match self.next() {
            Some('}') => return Ok(value.unwrap_or_default()),
            Some(':') => (true, self.next()),
            other => (false, other),
        };
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err("${…} is nested too deeply".into());
        }
        let word = match operator {
            Some('-' | '+' | '?') => self.until(Some('}'))?,
            Some(other) => return Err(format!("${{{name}…{other}…}} is not supported; -, + and ? are")),
            None => return Err("a } is missing".into()),
        };
        self.depth -= 1;
        let value = value.filter(|value| !(colon && value.is_empty()));
        match (operator, value) {
            (Some('-'), value) => Ok(value.unwrap_or(word)),
            (Some('+'), value) => Ok(value.map(|_| word).unwrap_or_default()),
            (_, Some(value)) => Ok(value),
            (_, None) if word.is_empty() => Err(format!("{name} must be set")),
            (_, None) => Err(format!("{name}: {word}")),
        }
    }

    fn name(&mut self) -> String {
        let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let end = match self.peek() {
            Some(c) if is_start(c) => {
                self.rest.find(|c: char| !is_start(c) && !c.is_ascii_digit()).unwrap_or(self.rest.len())
            }
            Some(c) if c.is_ascii_digit() => {
                self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len())
            }
            Some('@' | '*' | '#' | '?' | '!' | '$') => 1,
            _ => 0,
        };
        let name = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        Words::new('\\', Quotes::Process).expand(text, &lookup)
    }

    #[test]
    fn variables_quotes_and_escapes_are_read_as_the_reference_says() {
        for (text, expected) in [
            ("$A${A}x", "aax"),
            ("$A_", ""),
            ("x$N.y", "x.y"),
            (r"\$A \\ \x", r"$A \ x"),
            (r#"'$A' "$A" "\$A" "\n""#, r#"$A a $A \n"#),
            ("${N:-d} ${E:-d} ${E-d} ${A:-d}", "d d  a"),
            ("${N:+d}|${E:+d}|${E+d}|${A:+d}", "||d|d"),
            ("${N:-${A}/${N:-x}}", "a/x"),
            ("${N:-'}'}", "}"),
            ("${A:?no} $ $/", "a $ $/"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_is_refused() {
        for (text, reason) in [
            ("'a", "the quote ' is not closed"),
            ("\"a", "the quote \" is not closed"),
            ("${A", "a } is missing"),
            ("${N:?wanted}", "N: wanted"),
            ("${}", "a name is missing in ${…}"),
            ("${A%%x}", "${A…%…} is not supported; -, + and ? are"),
        ] {
            assert_eq!(expand(text), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn here_documents_keep_their_quotes() {
        let words = Words::new('\\', Quotes::Keep);

        assert_eq!(words.expand(r#"'$A' "\$A" \n"#, &|_| Some("v".into())).unwrap(), r#"'v' "$A" \n"#);
    }

    #[test]
    fn words_are_split_outside_of_quotes() {
        let words = split(r#"a=1  b="x y" c=\ d e='f "g'"#, '\\').unwrap();

        assert_eq!(words, ["a=1", r#"b="x y""#, r"c=\ d", r#"e='f "g'"#]);
    }
}
