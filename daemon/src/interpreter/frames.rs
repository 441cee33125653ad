//! What a run says, and in which pieces: a line, or 1 KiB of one.

use serde::Serialize;

use crate::utf8::{Decoder, boundary_at_most};

pub const PIECE_BYTES_MAX: usize = 1024;

/// One message to the client. Fields that say nothing are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Frame {
    Stdout { text: String },
    Stderr { text: String },
    Error { name: String, value: String, traceback: String },
    Control { text: Control },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    Completed,
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn frame(self, text: &str) -> Frame {
        let text = text.to_owned();
        match self {
            Source::Stdout => Frame::Stdout { text },
            Source::Stderr => Frame::Stderr { text },
        }
    }
}

/// Makes frames of one stream's bytes. What has no newline yet is sent as it is: whoever flushed it wants it seen.
pub struct Cutter {
    source: Source,
    decoder: Decoder,
}

impl Cutter {
    pub fn new(source: Source) -> Cutter {
        Cutter { source, decoder: Decoder::default() }
    }

    pub fn cut(&mut self, bytes: &[u8], frames: &mut impl Extend<Frame>) {
        let text = self.decoder.decode(bytes);
        frames.extend(pieces(&text).map(|piece| self.source.frame(piece)));
    }

    pub fn finish(&mut self, frames: &mut impl Extend<Frame>) {
        let text = self.decoder.finish();
        frames.extend(pieces(&text).map(|piece| self.source.frame(piece)));
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || {
            let (piece, after) = rest.split_at(boundary_at_most(rest, PIECE_BYTES_MAX));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_line_or_a_kibibyte_of_one() {
        let long = "ä".repeat(700);
        let text = format!("one\n\ntwo\n{long}\nrest");

        let lengths: Vec<_> = pieces(&text).map(str::len).collect();

        assert_eq!(lengths, [4, 1, 4, 1024, 377, 4]);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(pieces("").count(), 0);
    }

    #[test]
    fn frames_are_the_documented_objects() {
        let mut frames = Vec::new();
        let mut cutter = Cutter::new(Source::Stderr);
        cutter.cut(b"a\n\xc3", &mut frames);
        cutter.finish(&mut frames);
        frames.push(Frame::Control { text: Control::Interrupted });

        let shown: Vec<_> = frames.iter().map(|frame| serde_json::to_string(frame).unwrap()).collect();
        assert_eq!(
            shown,
            [
                r#"{"type":"stderr","text":"a\n"}"#,
                "{\"type\":\"stderr\",\"text\":\"\u{fffd}\"}",
                r#"{"type":"control","text":"interrupted"}"#
            ]
        );
    }
}
