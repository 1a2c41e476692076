//! The head of an answer, from the forms in which servers send it to the one that ureq reads. Pure.
//!
//! ureq takes 128 header lines of names and values without fault, in at most as many bytes as it buffers. Servers,
//! balancers and old devices send lower-case versions, folded lines, hundreds of cookies, lines without a colon, the
//! same length twice, and interim answers of any size in front of it all. curl and browsers take those, and so does
//! this reader: it keeps the few headers that mean something for a file, and drops everything else line by line, so
//! that its memory does not grow with the head.

/// The most bytes of the head of one answer. What is not kept costs only time.
const MAX_HEAD_BYTES: usize = 1 << 20;
/// The most bytes of interim answers before one answer.
const MAX_INTERIM_BYTES: usize = 4 << 20;
/// The most bytes of one header with its folded lines; a longer one is dropped. The longest that is of use is the
/// signed URL of a redirect.
const MAX_LINE_BYTES: usize = 16 << 10;
/// The most values of one header that are kept.
const MAX_VALUES: usize = 8;
/// The headers that this program or ureq reads.
const KEPT: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "location",
    "retry-after",
    "transfer-encoding",
];
const VERSION_PREFIX: &[u8] = b"HTTP/";

/// A head without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum EndlessHead {
    /// More interim answers than any server means.
    #[error("more than {MAX_INTERIM_BYTES} bytes of interim answers")]
    Interim,
    /// More header lines than any server means.
    #[error("more than {MAX_HEAD_BYTES} bytes in the head of the answer")]
    Answer,
}

/// What a reader knows after more bytes came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The head goes on.
    More,
    /// The head is whole. It is repeated in the one form that is read further.
    Whole { head: Vec<u8>, is_chunked: bool },
    /// What came is no HTTP, and is returned as it is.
    NotHttp(Vec<u8>),
}

/// Reads the head of one answer, with the interim answers before it.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// The line under way, without what is beyond the limit.
    line: Vec<u8>,
    /// The header that the next line may continue.
    header: Vec<u8>,
    /// The status, once its line is read, and whether the version is 1.0.
    status: Option<(u16, bool)>,
    kept: Vec<(&'static str, String)>,
    head_bytes: usize,
    interim_bytes: usize,
}

impl HeadReader {
    /// Takes bytes up to the end of the head; returns how many.
    pub(super) fn take(&mut self, input: &[u8]) -> Result<(usize, Progress), EndlessHead> {
        let mut taken = 0;
        while taken < input.len() {
            let rest = &input[taken..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let part = &rest[..end.map_or(rest.len(), |end| end + 1)];
            taken += part.len();
            self.head_bytes += part.len();
            let room = (MAX_LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if self.status.is_none() && !may_be_http(&self.line) {
                return Ok((taken, Progress::NotHttp(std::mem::take(&mut self.line))));
            }
            if end.is_some() {
                match self.end_line() {
                    Progress::More => {}
                    done => return Ok((taken, done)),
                }
            }
            self.check_size()?;
        }
        Ok((taken, Progress::More))
    }

    fn check_size(&self) -> Result<(), EndlessHead> {
        let is_interim = self.status.is_none_or(|(status, _)| is_interim(status));
        match (self.interim_bytes, self.head_bytes) {
            (before, head) if is_interim && before + head > MAX_INTERIM_BYTES => Err(EndlessHead::Interim),
            (_, head) if !is_interim && head > MAX_HEAD_BYTES => Err(EndlessHead::Answer),
            _ => Ok(()),
        }
    }

    fn end_line(&mut self) -> Progress {
        if self.status.is_some_and(|(status, _)| is_interim(status)) {
            if matches!(self.line.first(), Some(b'\r' | b'\n')) {
                (self.status, self.interim_bytes) = (None, self.interim_bytes + self.head_bytes);
                self.head_bytes = 0;
            }
            self.line.clear();
            return Progress::More;
        }
        let whole = std::mem::take(&mut self.line);
        let line = whole.trim_ascii_end();
        if self.status.is_none() {
            // Some servers end the body before with a line of its own.
            if line.is_empty() {
                return Progress::More;
            }
            self.status = status_line(line);
            return if self.status.is_some() { Progress::More } else { Progress::NotHttp(whole) };
        }
        if matches!(whole.first(), Some(b' ' | b'\t')) {
            self.header.push(b' ');
            self.header.extend_from_slice(line.trim_ascii_start());
            self.header.truncate(MAX_LINE_BYTES + 1);
            return Progress::More;
        }
        self.keep_header();
        if !line.is_empty() {
            self.header = line.to_vec();
            return Progress::More;
        }
        self.whole()
    }

    fn keep_header(&mut self) {
        let header = std::mem::take(&mut self.header);
        let Some(colon) = header.iter().position(|byte| *byte == b':').filter(|_| header.len() <= MAX_LINE_BYTES)
        else {
            return;
        };
        let name = header[..colon].trim_ascii();
        let Some(name) = KEPT.into_iter().find(|kept| kept.as_bytes().eq_ignore_ascii_case(name)) else { return };
        if self.kept.iter().filter(|(kept, _)| *kept == name).count() < MAX_VALUES {
            let printable = |byte: &u8| if byte.is_ascii_control() { ' ' } else { char::from(*byte) };
            self.kept.push((name, header[colon + 1..].trim_ascii().iter().map(printable).collect()));
        }
    }

    /// The words of all values of a header, in lower case.
    fn words(&self, name: &str) -> impl Iterator<Item = String> {
        let values = self.kept.iter().filter(move |(kept, _)| *kept == name);
        values.flat_map(|(_, value)| value.split(',')).map(|word| word.trim().to_ascii_lowercase())
    }

    /// The head in one form, in which nothing about the length of the body is open to interpretation.
    fn whole(&self) -> Progress {
        let Some((status, is_old)) = self.status else { return Progress::More };
        let codings: Vec<String> = self.words("transfer-encoding").collect();
        let is_chunked = codings.iter().any(|coding| coding == "chunked");
        let lengths: Vec<Option<u64>> = self.words("content-length").map(|length| length.parse().ok()).collect();
        // The first of several that differ; where it is too short, the digest of the content shows it.
        let length = lengths.first().copied().flatten().filter(|_| !is_chunked);
        let is_clear = is_chunked || lengths.iter().all(|other| other.is_some() && *other == length);
        let connection: Vec<String> = self.words("connection").collect();
        let is_kept = is_clear
            && !connection.iter().any(|word| word == "close")
            && (!is_old || connection.iter().any(|word| word == "keep-alive"));

        let mut head = format!("HTTP/1.1 {status} \r\n").into_bytes();
        let mut line = |name: &str, value: &str| {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            // Each character stands for one byte that came.
            head.extend(value.chars().map(|byte| u8::try_from(u32::from(byte)).unwrap_or(b' ')));
            head.extend_from_slice(b"\r\n");
        };
        for (name, value) in &self.kept {
            if !matches!(*name, "connection" | "content-length" | "transfer-encoding") {
                line(name, value);
            }
        }
        for coding in codings.iter().filter(|coding| !matches!(coding.as_str(), "chunked" | "identity" | "")) {
            line("content-encoding", coding);
        }
        if is_chunked {
            line("transfer-encoding", "chunked");
        }
        if let Some(length) = length {
            line("content-length", &length.to_string());
        }
        if !is_kept {
            line("connection", "close");
        }
        head.extend_from_slice(b"\r\n");
        Progress::Whole { head, is_chunked }
    }
}

/// Whether the beginning of a line can be that of an answer, or of an empty line before it.
fn may_be_http(line: &[u8]) -> bool {
    let begun = line.len().min(VERSION_PREFIX.len());
    matches!(line, [] | [b'\r'] | [b'\n'] | [b'\r', b'\n'])
        || line[..begun].eq_ignore_ascii_case(&VERSION_PREFIX[..begun])
}

/// The status in the first line of an answer, and whether its version is 1.0; `None` if it is no such line.
pub(super) fn status_line(line: &[u8]) -> Option<(u16, bool)> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (prefix, version) = words.next()?.split_at_checked(VERSION_PREFIX.len())?;
    let is_version = version.first().is_some_and(u8::is_ascii_digit) && prefix.eq_ignore_ascii_case(VERSION_PREFIX);
    let status = words.next().filter(|status| is_version && status.len() == 3)?;
    let status = std::str::from_utf8(status).ok()?.parse().ok().filter(|status| *status >= 100)?;
    Some((status, version == b"1.0" || version == b"0.9"))
}

/// Whether an answer is followed by another one. 101 is not: it ends HTTP on the connection.
fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != 101
}

#[cfg(test)]
mod tests {
    use super::{EndlessHead, HeadReader, MAX_HEAD_BYTES, MAX_INTERIM_BYTES, Progress, status_line};

    /// The canonical head of a stream that arrives in pieces of this size, and what follows it.
    fn read(stream: &[u8], piece: usize) -> (Progress, Vec<u8>) {
        let mut reader = HeadReader::default();
        for (number, part) in stream.chunks(piece).enumerate() {
            match reader.take(part).unwrap() {
                (_, Progress::More) => {}
                (taken, done) => return (done, stream[number * piece + taken..].to_vec()),
            }
        }
        (Progress::More, Vec::new())
    }

    fn lines(stream: &str) -> Vec<String> {
        let (Progress::Whole { head, .. }, _) = read(stream.as_bytes(), stream.len()) else { panic!("{stream:?}") };
        String::from_utf8(head).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn interim_answers_of_any_size_and_number_are_dropped_however_they_arrive() {
        let long = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(100_000));
        for before in [
            String::new(),
            "\r\n\n".to_owned(),
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
            "HTTP/1.1 100 Continue\r\nServer: a\r\n\r\n".repeat(300),
            "HTTP/1.0 102\n\n".to_owned(),
            format!("{long}HTTP/1.1 199 What\r\nA: b\r\n\r\n{long}"),
        ] {
            let stream = format!("{before}HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\nHTTP/1.1 103 is only body");
            for piece in [1, 2, 7, 1000, stream.len()] {
                let (progress, rest) = read(stream.as_bytes(), piece);
                let head = b"HTTP/1.1 200 \r\ncontent-length: 31\r\n\r\n".to_vec();
                assert_eq!(progress, Progress::Whole { head, is_chunked: false }, "{piece}");
                assert_eq!(rest, b"HTTP/1.1 103 is only body");
            }
        }
    }

    #[test]
    fn every_form_of_a_head_has_the_same_meaning() {
        for stream in [
            "http/1.1 200\nCONTENT-length : 5\n\n",
            "HTTP/2 200  Fine\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\nbad name: x\r\n: y\r\nContent-Length:\r\n \t 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nX: a\r\n b\r\nContent-Length: 5\r\nSet-Cookie: \u{1}\r\n\r\n",
        ] {
            assert_eq!(lines(stream), ["HTTP/1.1 200 ", "content-length: 5", ""], "{stream:?}");
        }
        let many: String = (0..5_000).map(|number| format!("X-{number}: {}\r\n", "y".repeat(100))).collect();
        let stream = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 5\r\n\r\n");
        assert_eq!(lines(&stream).len(), 3);
    }

    #[test]
    fn the_end_of_the_body_is_decided_here() {
        for (headers, kept) in [
            ("1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9", vec!["transfer-encoding: chunked"]),
            ("1.0 200 OK\r\nTransfer-Encoding: chunked", vec!["transfer-encoding: chunked", "connection: close"]),
            (
                "1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
                vec!["content-encoding: gzip", "transfer-encoding: chunked"],
            ),
            ("1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 9", vec!["content-length: 9"]),
            ("1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 8", vec!["content-length: 9", "connection: close"]),
            ("1.1 200 OK\r\nContent-Length: -1", vec!["connection: close"]),
            ("1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 9", vec!["content-length: 9"]),
            ("1.1 200 OK\r\nConnection: x, CLOSE", vec!["connection: close"]),
        ] {
            let lines = lines(&format!("HTTP/{headers}\r\n\r\n"));
            assert_eq!(lines[1..lines.len() - 1], kept, "{headers}");
        }
    }

    #[test]
    fn bytes_beyond_ascii_stay_as_they_came() {
        let (Progress::Whole { head, .. }, _) = read(b"HTTP/1.1 302 Found\r\nLocation: /\xc3\xa9\xff\r\n\r\n", 99)
        else {
            panic!("no head")
        };
        assert!(head.windows(5).any(|window| window == b"/\xc3\xa9\xff\r"));
    }

    #[test]
    fn what_is_no_answer_is_left_alone() {
        for stream in
            ["SSH-2.0-OpenSSH_9.2p1\r\n", "<html>", "HTTP/x", "HTTP/1.1 99 What\r\n", "HTTP/1.1\r\n", "\r\n\r\nx"]
        {
            let (progress, _) = read(format!("{stream}\n").as_bytes(), 1_000);
            assert!(matches!(progress, Progress::NotHttp(_)), "{stream:?}: {progress:?}");
        }
        assert_eq!(status_line(b"HTTP/1.1 101 Switching Protocols"), Some((101, false)));
    }

    #[test]
    fn a_head_without_an_end_is_given_up() {
        let endless = |first: &str| {
            let mut reader = HeadReader::default();
            reader.take(first.as_bytes()).unwrap();
            let line = [b"A: ".repeat(1000), b"\r\n".to_vec()].concat();
            (0..).find_map(|count| reader.take(&line).err().map(|error| (error, count * line.len()))).unwrap()
        };
        let (error, bytes) = endless("HTTP/1.1 200 OK\r\n");
        assert!(error == EndlessHead::Answer && bytes <= MAX_HEAD_BYTES);
        let (error, bytes) = endless("HTTP/1.1 103 Early Hints\r\n");
        assert!(error == EndlessHead::Interim && bytes <= MAX_INTERIM_BYTES);
        let mut reader = HeadReader::default();
        let empty = (0..).find_map(|_| reader.take(&[b'\n'; 10_000]).err());
        assert_eq!(empty, Some(EndlessHead::Interim));
    }
}
