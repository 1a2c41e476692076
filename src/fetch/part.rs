//! What an answer to a request for a range has of that range. Servers, caches and proxies answer with less, with more,
//! or with everything; the digests of the caller decide whether the bytes are right. Pure.

use std::ops::Range;

use super::answer::{WEB_PAGE, parse_content_range};

/// The most bytes that are read and dropped before a range, of a server without range support.
pub(super) const MAX_SKIP: u64 = 64 << 20;

/// The head of an answer, as far as it says what the body is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Head<'a> {
    pub status: u16,
    pub content_range: Option<&'a str>,
    pub content_length: Option<u64>,
    pub is_multipart: bool,
    pub is_called_html: bool,
}

/// The bytes of a body that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Bytes before the wanted ones.
    pub skip_bytes: u64,
    /// Wanted bytes, from the beginning of the range on: at least one, and fewer than the range has where the answer
    /// has fewer.
    pub take_bytes: u64,
    /// Whether the body ends with them.
    pub is_last: bool,
}

/// An answer that has nothing of the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Useless {
    pub problem: String,
    /// Whether the same object can be asked for as a whole, since only the range was at fault.
    pub whole_may_help: bool,
}

impl Useless {
    fn range(problem: String, wanted: &Range<u64>) -> Self {
        Self { problem, whole_may_help: wanted.start <= MAX_SKIP }
    }

    fn object(problem: String) -> Self {
        Self { problem, whole_may_help: false }
    }
}

/// Finds the wanted bytes in an answer.
pub(super) fn find(head: &Head<'_>, wanted: &Range<u64>) -> Result<Part, Useless> {
    match head.status {
        206 => in_partial(head, wanted),
        // 203 is the 200 of a proxy that changed something on the way.
        200 | 203 if is_named_part(head, wanted) => in_partial(head, wanted),
        200 | 203 => in_whole(head, wanted),
        416 => {
            let problem = "the object is shorter than it has to be (HTTP 416)".to_owned();
            Err(Useless::range(problem, wanted))
        }
        status => {
            let problem = format!("status {status} to a request for bytes {} to {}", wanted.start, wanted.end - 1);
            Err(Useless::object(problem))
        }
    }
}

/// Whether an answer that calls itself whole says which part it is, as some proxies make of one that came from a cache:
/// its length is that of the part, or is not known.
fn is_named_part(head: &Head<'_>, wanted: &Range<u64>) -> bool {
    let named = head.content_range.and_then(parse_content_range).filter(|(range, _)| range.contains(&wanted.start));
    named.is_some_and(|(range, _)| head.content_length.is_none_or(|bytes| bytes == range.end - range.start))
}

fn in_partial(head: &Head<'_>, wanted: &Range<u64>) -> Result<Part, Useless> {
    if head.is_multipart {
        let problem = "the answer is multipart/byteranges although one range was asked for".to_owned();
        return Err(Useless::range(problem, wanted));
    }
    let wanted_bytes = wanted.end - wanted.start;
    // Without its head it is the range or everything, as a 200 is that has a length.
    if head.content_range.is_none() && head.content_length.is_some() && !head.is_multipart {
        return in_whole(head, wanted);
    }
    let value = head.content_range.unwrap_or_default();
    let other = || {
        let Range { start, end } = wanted;
        let problem = format!("asked for bytes {start} to {}, the answer's Content-Range is {value:?}", end - 1);
        Useless::range(problem, wanted)
    };
    let (answered, total) = parse_content_range(value).ok_or_else(other)?;
    // A total below what the answer itself has is a mistake, as of caches that put the length of the part there.
    if let Some(total) = total.filter(|total| (answered.end..wanted.end).contains(total)) {
        return Err(Useless::object(format!(
            "the object has {total} bytes, but bytes up to {} are needed",
            wanted.end
        )));
    }
    let skip_bytes = wanted.start.checked_sub(answered.start).filter(|skip| *skip <= MAX_SKIP).ok_or_else(other)?;
    let answered_bytes = answered.end - answered.start;
    // A length that contradicts the range: what is there is taken.
    let body_bytes = head.content_length.unwrap_or(answered_bytes).min(answered_bytes);
    let take_bytes = body_bytes.checked_sub(skip_bytes).filter(|bytes| *bytes > 0).ok_or_else(other)?;
    let take_bytes = take_bytes.min(wanted_bytes);
    let is_last =
        skip_bytes + take_bytes == answered_bytes && head.content_length.is_none_or(|len| len == answered_bytes);
    Ok(Part { skip_bytes, take_bytes, is_last })
}

fn in_whole(head: &Head<'_>, wanted: &Range<u64>) -> Result<Part, Useless> {
    let (start, wanted_bytes) = (wanted.start, wanted.end - wanted.start);
    if let Some(len) = head.content_length.filter(|len| *len < wanted.end) {
        // Some proxies deliver the range and lose its head.
        if len == wanted_bytes && !head.is_called_html {
            return Ok(Part { skip_bytes: 0, take_bytes: wanted_bytes, is_last: true });
        }
        if head.is_called_html {
            return Err(Useless::object(WEB_PAGE.to_owned()));
        }
        if start > MAX_SKIP {
            return Err(ignored(start));
        }
        return Err(Useless::object(format!("{len} bytes are announced where {} are expected", wanted.end)));
    }
    if start > MAX_SKIP {
        return Err(ignored(start));
    }
    Ok(Part { skip_bytes: start, take_bytes: wanted_bytes, is_last: head.content_length == Some(wanted.end) })
}

fn ignored(start: u64) -> Useless {
    Useless::object(format!("the server ignores ranges and {start} bytes lie before the wanted ones"))
}

#[cfg(test)]
mod tests {
    use super::{Head, MAX_SKIP, Part, find};

    fn part(skip_bytes: u64, take_bytes: u64, is_last: bool) -> Part {
        Part { skip_bytes, take_bytes, is_last }
    }

    fn partial(content_range: &str, content_length: Option<u64>) -> Head<'_> {
        Head { status: 206, content_range: Some(content_range), content_length, ..Head::default() }
    }

    #[test]
    fn less_and_more_than_was_asked_for_are_of_use() {
        for (content_range, len, expected) in [
            ("bytes 10-19/100", Some(10), part(0, 10, true)),
            ("bytes 10-19/*", None, part(0, 10, true)),
            ("bytes 10-14/100", Some(5), part(0, 5, true)),
            ("bytes 0-63/100", Some(64), part(10, 10, false)),
            ("bytes 8-15/100", Some(8), part(2, 6, true)),
            // Lengths that contradict the range.
            ("bytes 10-19/100", Some(100), part(0, 10, false)),
            ("bytes 10-19/100", Some(3), part(0, 3, false)),
            // A total that cannot be.
            ("bytes 10-19/10", Some(10), part(0, 10, true)),
            ("bytes 10-14/5", Some(5), part(0, 5, true)),
        ] {
            assert_eq!(find(&partial(content_range, len), &(10..20)), Ok(expected), "{content_range} {len:?}");
        }
    }

    #[test]
    fn what_has_nothing_of_the_range_is_refused_and_the_whole_may_help() {
        for content_range in ["bytes 11-20/100", "bytes 0-9/100", "bytes */100", "", "bytes 20-29/100"] {
            assert!(find(&partial(content_range, None), &(10..20)).unwrap_err().whole_may_help, "{content_range}");
        }
        assert!(find(&partial("bytes 10-19/100", Some(0)), &(10..20)).is_err());
        let short = find(&partial("bytes 10-14/15", None), &(10..20)).unwrap_err();
        assert!(!short.whole_may_help && short.problem.contains("has 15 bytes"), "{short:?}");
        let multipart = Head { is_multipart: true, ..partial("", None) };
        assert!(find(&multipart, &(10..20)).unwrap_err().problem.contains("multipart/byteranges"));
        let headless = Head { content_length: Some(10), content_range: None, ..partial("", None) };
        assert_eq!(find(&headless, &(10..20)), Ok(part(0, 10, true)));
        let far = MAX_SKIP + 1;
        assert!(!find(&partial("", None), &(far..far + 1)).unwrap_err().whole_may_help);
        assert!(find(&Head { status: 204, ..Head::default() }, &(10..20)).is_err());
    }

    #[test]
    fn a_whole_object_is_read_up_to_the_range() {
        let whole = |content_length| Head { status: 200, content_length, ..Head::default() };
        assert_eq!(find(&whole(Some(20)), &(10..20)), Ok(part(10, 10, true)));
        assert_eq!(find(&whole(Some(100)), &(10..20)), Ok(part(10, 10, false)));
        assert_eq!(find(&whole(None), &(10..20)), Ok(part(10, 10, false)));
        assert_eq!(find(&whole(Some(10)), &(10..20)), Ok(part(0, 10, true)), "the range without its head");
        assert!(find(&whole(Some(19)), &(10..20)).unwrap_err().problem.contains("19 bytes are announced where 20"));
        let named =
            |content_range, content_length| Head { content_range: Some(content_range), ..whole(content_length) };
        for (content_range, len, expected) in [
            ("bytes 10-19/100", Some(10), part(0, 10, true)),
            ("bytes 10-14/100", Some(5), part(0, 5, true)),
            ("bytes 10-14/100", None, part(0, 5, true)),
            ("bytes 0-99/100", Some(100), part(10, 10, false)),
            // Everything, by its length.
            ("bytes 10-19/100", Some(100), part(10, 10, false)),
            ("bytes 30-39/100", Some(100), part(10, 10, false)),
        ] {
            assert_eq!(find(&named(content_range, len), &(10..20)), Ok(expected), "{content_range} {len:?}");
        }
        let page = Head { is_called_html: true, ..whole(Some(10)) };
        assert!(find(&page, &(10..20)).unwrap_err().problem.contains("web page"));
        let far = find(&whole(None), &(MAX_SKIP + 1..MAX_SKIP + 2)).unwrap_err();
        assert!(far.problem.contains("ignores ranges"), "{far:?}");
    }
}
