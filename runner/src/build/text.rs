//! Output of any kind as text, piece by piece: what is no UTF-8 becomes U+FFFD, also across the pieces' borders.

#[derive(Debug, Default)]
pub struct Text {
    /// The beginning of a character whose end has not come; at most three bytes.
    begun: Vec<u8>,
    in_line: bool,
}

impl Text {
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut pending = std::mem::take(&mut self.begun);
        pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(pending.len());
        let mut chunks = pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_go_on(invalid) {
                self.begun = invalid.to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        if let Some(last) = text.chars().next_back() {
            self.in_line = last != '\n';
        }
        text
    }

    /// What is left, so that something else can begin its own line.
    pub fn end(self) -> &'static str {
        match (self.begun.is_empty(), self.in_line) {
            (false, _) => "\u{fffd}\n",
            (true, true) => "\n",
            (true, false) => "",
        }
    }
}

/// Is it cut short, rather than wrong?
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(pieces: &[&[u8]]) -> String {
        let mut text = Text::default();
        let mut all: String = pieces.iter().map(|piece| text.push(piece)).collect();
        all += text.end();
        all
    }

    #[test]
    fn a_character_may_come_in_two_pieces() {
        assert_eq!(pieces(&["a\u{20ac}b\n".as_bytes()]), "a\u{20ac}b\n");
        assert_eq!(pieces(&[b"a\xe2\x82", b"", b"\xac\n"]), "a\u{20ac}\n");
        assert_eq!(pieces(&[b"a\xe2\x82", b"x\n"]), "a\u{fffd}x\n");
    }

    #[test]
    fn an_unended_line_is_ended() {
        assert_eq!(pieces(&[b"a"]), "a\n");
        assert_eq!(pieces(&[b"a\n\xf0"]), "a\n\u{fffd}\n");
        assert_eq!(pieces(&[]), "");
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_would(bytes: Vec<u8>, cut in 1usize..9) {
            let cut: Vec<&[u8]> = bytes.chunks(cut).collect();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let expected = if whole.is_empty() || whole.ends_with('\n') { whole } else { whole + "\n" };
            prop_assert_eq!(pieces(&cut), expected);
        }
    }
}
