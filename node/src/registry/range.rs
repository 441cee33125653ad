//! The two kinds of ranges: what part of a blob is wanted, and where a chunk of an upload belongs.

/// Both ends are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub first: u64,
    pub last: u64,
}

impl Part {
    pub fn bytes(self) -> u64 {
        self.last - self.first + 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Also when a range was asked for in a way that may be ignored.
    Whole,
    Part(Part),
    Impossible,
}

/// The value of a `Range` header, for a blob of `bytes`.
pub fn wanted(range: &str, bytes: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Wanted::Whole;
    };
    let end = bytes.checked_sub(1);
    match (number(first), number(last), end) {
        (Some(first), Some(last), _) if first > last => Wanted::Whole,
        (Some(first), last, Some(end)) if first <= end && (last.is_some() || range.ends_with('-')) => {
            Wanted::Part(Part { first, last: last.unwrap_or(end).min(end) })
        }
        (Some(_), last, _) if last.is_some() || range.ends_with('-') => Wanted::Impossible,
        // The last so many bytes.
        (None, Some(0), _) | (None, Some(_), None) if first.is_empty() => Wanted::Impossible,
        (None, Some(count), Some(end)) if first.is_empty() => {
            Wanted::Part(Part { first: bytes - count.min(bytes), last: end })
        }
        _ => Wanted::Whole,
    }
}

/// The value of an upload's `Content-Range`: `0-1023`, as this specification has it, or as HTTP does.
pub fn chunk(range: &str) -> Option<Part> {
    let range = range.trim();
    let range = range.strip_prefix("bytes ").or(range.strip_prefix("bytes=")).unwrap_or(range);
    let range = range.split_once('/').map_or(range, |(range, _)| range);
    let (first, last) = range.split_once('-')?;
    let part = Part { first: number(first)?, last: number(last)? };
    (part.first <= part.last && part.last < u64::MAX).then_some(part)
}

fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_given_and_an_odd_one_ignored() {
        let part = |first, last| Wanted::Part(Part { first, last });
        for (range, bytes, expected) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=2-5", 10, part(2, 5)),
            ("bytes=2-", 10, part(2, 9)),
            ("bytes=2-500", 10, part(2, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-30", 10, part(0, 9)),
            ("bytes=10-", 10, Wanted::Impossible),
            ("bytes=10-12", 10, Wanted::Impossible),
            ("bytes=-0", 10, Wanted::Impossible),
            ("bytes=0-", 0, Wanted::Impossible),
            ("bytes=-1", 0, Wanted::Impossible),
            ("bytes=5-2", 10, Wanted::Whole),
            ("bytes=0-1,4-5", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("bytes=a-b", 10, Wanted::Whole),
            ("bytes=+1-2", 10, Wanted::Whole),
            ("bytes=99999999999999999999-", 10, Wanted::Whole),
            ("lines=1-2", 10, Wanted::Whole),
            ("", 10, Wanted::Whole),
        ] {
            assert_eq!(wanted(range, bytes), expected, "{range} of {bytes}");
        }
    }

    #[test]
    fn a_chunk_says_where_it_begins_and_ends() {
        for (range, expected) in [
            ("0-9", Some((0, 9))),
            ("10-19", Some((10, 19))),
            ("bytes 0-9/100", Some((0, 9))),
            ("bytes 0-9/*", Some((0, 9))),
            ("9-0", None),
            ("0", None),
            ("-5", None),
            ("5-", None),
            ("a-b", None),
            ("0-18446744073709551615", None),
        ] {
            let part = chunk(range).map(|part| (part.first, part.last));
            assert_eq!(part, expected, "{range}");
        }
    }
}
