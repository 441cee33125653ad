//! Shell patterns on one name: `*`, `?`, `[a-z]`, `[^a]`, `\x`.

#[derive(Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Any,
    One,
    Literal(char),
    Class { negated: Negated, ranges: Vec<(char, char)> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Negated {
    No,
    Yes,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pattern: a class or an escape does not end")]
pub struct BadPattern;

impl Glob {
    pub fn parse(pattern: &str) -> Result<Glob, BadPattern> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' if tokens.last() == Some(&Token::Any) => continue,
                '*' => Token::Any,
                '?' => Token::One,
                '\\' => Token::Literal(chars.next().ok_or(BadPattern)?),
                '[' => {
                    let negated = if chars.next_if(|c| matches!(c, '^' | '!')).is_some() {
                        Negated::Yes
                    } else {
                        Negated::No
                    };
                    let mut ranges = Vec::new();
                    loop {
                        let mut low = chars.next().ok_or(BadPattern)?;
                        if low == ']' && !ranges.is_empty() {
                            break;
                        }
                        if low == '\\' {
                            low = chars.next().ok_or(BadPattern)?;
                        }
                        let mut high = low;
                        if chars.peek() == Some(&'-') {
                            chars.next();
                            match chars.next().ok_or(BadPattern)? {
                                // A dash at the end is itself.
                                ']' => {
                                    ranges.extend([(low, low), ('-', '-')]);
                                    break;
                                }
                                '\\' => high = chars.next().ok_or(BadPattern)?,
                                char => high = char,
                            }
                        }
                        ranges.push((low, high));
                    }
                    Token::Class { negated, ranges }
                }
                char => Token::Literal(char),
            });
        }
        Ok(Glob(tokens))
    }

    /// In time of at most pattern × name: only the last star is ever tried again.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(token) {
                Some(Token::Any) => {
                    star = Some((token, at));
                    token += 1;
                }
                Some(single) if single.takes(name[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => match star {
                    Some((star_token, star_at)) => {
                        star = Some((star_token, star_at + 1));
                        (token, at) = (star_token + 1, star_at + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0[token..].iter().all(|token| *token == Token::Any)
    }
}

impl Token {
    fn takes(&self, char: char) -> bool {
        match self {
            Token::Any => false,
            Token::One => true,
            Token::Literal(literal) => *literal == char,
            Token::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != (*negated == Negated::Yes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt~", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]*", "beta", true),
            ("[^a-c]*", "beta", false),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c*", "xxaxxcxxbxx", false),
            ("", "", true),
            ("**", "anything", true),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn what_does_not_end_is_no_pattern() {
        for bad in ["[", "[a", "[a-", "\\"] {
            assert_eq!(Glob::parse(bad), Err(BadPattern), "{bad}");
        }
    }
}
