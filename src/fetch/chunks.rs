//! The frame of a chunked body, from the forms in which servers send it to the one that ureq reads. Pure.
//!
//! ureq refuses the line of a chunk that is longer than 20 bytes, as extensions with a signature are, and line feeds
//! alone. Trailers mean nothing for a file and are dropped.

/// The most bytes of the line before a chunk.
const MAX_LINE_BYTES: usize = 4 << 10;
/// What ureq takes for no size, so that it ends the transfer in its own words.
const WRONG: &[u8] = b"wrong\r\n";

/// The place in a chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    place: Place,
    /// The line under way.
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the line that has the size of a chunk.
    #[default]
    Size,
    /// In a chunk with so many bytes to come.
    Data(u64),
    /// In the end of the line behind a chunk.
    DataEnd,
    /// In the lines behind the last chunk.
    Trailers,
    /// Behind the body, or in what is none.
    Beyond,
}

impl Chunks {
    /// Appends the body with plain frames to `out`.
    pub(super) fn pass(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            let used = match self.place {
                Place::Beyond => {
                    out.extend_from_slice(input);
                    input.len()
                }
                Place::Data(left) => self.data(left, input, out),
                Place::Size | Place::DataEnd | Place::Trailers => self.line(input, out),
            };
            input = &input[used..];
        }
    }

    fn data(&mut self, left: u64, input: &[u8], out: &mut Vec<u8>) -> usize {
        let used = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        out.extend_from_slice(&input[..used]);
        let left = left - used as u64;
        self.place = if left == 0 { Place::DataEnd } else { Place::Data(left) };
        used
    }

    fn line(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let end = input.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(input.len(), |end| end + 1);
        let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
        let is_cut = used > room;
        self.line.extend_from_slice(&input[..used.min(room)]);
        if end.is_none() && !(is_cut && self.place != Place::Trailers) {
            return used;
        }
        let line = std::mem::take(&mut self.line);
        let line = line.trim_ascii();
        let wrong = || (WRONG.to_vec(), Place::Beyond);
        let (frame, place) = match self.place {
            Place::Trailers if line.is_empty() => (b"\r\n".to_vec(), Place::Beyond),
            Place::Trailers => (Vec::new(), Place::Trailers),
            Place::DataEnd if line.is_empty() => (b"\r\n".to_vec(), Place::Size),
            _ if is_cut => wrong(),
            Place::Size => match size(line) {
                Some(0) => (b"0\r\n".to_vec(), Place::Trailers),
                Some(size) => (format!("{size:x}\r\n").into_bytes(), Place::Data(size)),
                None => wrong(),
            },
            _ => wrong(),
        };
        out.extend_from_slice(&frame);
        self.place = place;
        used
    }
}

/// The size in the line before a chunk, without its extensions.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| are_digits)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    fn passed(body: &str, piece: usize) -> String {
        let (mut chunks, mut out) = (Chunks::default(), Vec::new());
        body.as_bytes().chunks(piece).for_each(|part| chunks.pass(part, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_form_of_a_frame_becomes_the_plain_one() {
        let plain = "5\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n";
        let signed = format!("5;chunk-signature={}\r\n", "0".repeat(64));
        for body in [
            plain.to_owned(),
            plain.replace("\r\n", "\n"),
            plain.replace("5\r\n", &signed).replace("1a", "00001A  "),
            plain.replace("0\r\n\r\n", "000;last\r\nX-Sum: 1\r\nY: 2\r\n\r\n"),
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                assert_eq!(passed(&body, piece), plain, "{body:?} in pieces of {piece}");
            }
        }
        assert_eq!(passed(&format!("{plain}more"), 3), format!("{plain}more"), "what follows is not hidden");
    }

    #[test]
    fn wrong_frames_end_in_what_ureq_refuses() {
        let endless = "1".repeat(10_000);
        for body in ["x\r\n", "\r\n\r\n", "-5\r\n", "+5\r\n", "5\r\nhello!\r\n", "fffffffffffffffff\r\n", &endless] {
            for piece in [1, 1000] {
                assert!(passed(body, piece).contains("wrong\r\n"), "{body:?}");
            }
        }
        assert_eq!(passed("ffffffffffffffff\r\nab", 2), "ffffffffffffffff\r\nab");
    }
}
