//! Text out of bytes that come in pieces: no piece ends inside a character.

/// Holds the beginning of a character whose rest has not come yet. Bytes that are no UTF-8 become U+FFFD.
#[derive(Debug, Default)]
pub struct Decoder {
    begun: Vec<u8>,
}

impl Decoder {
    pub fn decode(&mut self, bytes: &[u8]) -> String {
        let mut whole = std::mem::take(&mut self.begun);
        whole.extend_from_slice(bytes);
        let mut text = String::with_capacity(whole.len());
        let mut chunks = whole.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            if chunk.invalid().is_empty() {
                continue;
            }
            if chunks.peek().is_none() && is_beginning(chunk.invalid()) {
                self.begun = chunk.invalid().to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// What never became a character.
    pub fn finish(&mut self) -> String {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The greatest end of a piece of at most `bytes_max` that is between two characters. Never 0 for a text that is not empty, as
/// long as a character fits.
pub fn boundary_at_most(text: &str, bytes_max: usize) -> usize {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_two_pieces_comes_whole() {
        let (mut decoder, bytes) = (Decoder::default(), "aä€😀".as_bytes());

        for at in 0..=bytes.len() {
            let text = decoder.decode(&bytes[..at]) + &decoder.decode(&bytes[at..]);
            assert_eq!(text + &decoder.finish(), "aä€😀", "cut at {at}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_nothing_is_held() {
        let mut decoder = Decoder::default();

        assert_eq!(decoder.decode(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(decoder.decode(b"c"), "\u{fffd}c");
        assert_eq!(decoder.decode(b"\xf0\x9f"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn a_piece_ends_between_characters() {
        assert_eq!(boundary_at_most("aä", 2), 1);
        assert_eq!(boundary_at_most("aä", 3), 3);
        assert_eq!(boundary_at_most("ab", 9), 2);
    }
}
