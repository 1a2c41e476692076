//! The bounds of a zstd frame, checked on its bytes before anything of it is decompressed. Pure.
//!
//! Every compressed part of a release is exactly one frame. zstd itself accepts more: several frames one after the
//! other, skippable frames of any content, frames that ask for a dictionary, and windows of up to 2 GiB, which the
//! decompressor allocates. None of that is made by a releasing side, and each is a way to say one thing to one reader
//! and something else to the next.

use std::io::{self, BufRead, Read};

use zstd::zstd_safe;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Logarithm of the smallest bound of a window: 8 MiB, which every decompressor should support (RFC 8878, section
/// 3.1.1.1.2). Compressors that are not told the size of the content choose windows larger than the content.
const LEAST_WINDOW_LOG: u32 = 23;

/// Refuses bytes that are not exactly one whole frame without a dictionary of its own, and a frame that declares
/// another size of its content than `content_bytes`. A frame need not declare any.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] with what is wrong with the bytes.
pub fn check_chunk(bytes: &[u8], content_bytes: usize) -> io::Result<()> {
    match check_single(bytes)? {
        Some(declared) if declared != content_bytes as u64 => {
            refuse(format!("its zstd frame has {declared} bytes of content, and its place has {content_bytes}"))
        }
        _ => Ok(()),
    }
}

/// Opens an object of at most `limit_bytes` of content for decompression.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] with what is wrong with the object, or zstd's error.
pub(super) fn open(object: &[u8], limit_bytes: u64) -> io::Result<impl Read> {
    if let Some(declared) = check_single(object)?.filter(|declared| *declared > limit_bytes) {
        return refuse(format!(
            "its zstd frame has {declared} bytes of content, and at most {limit_bytes} are allowed"
        ));
    }
    decoder(object, limit_bytes)
}

/// Decompresses an object. Of one that has more than `limit_bytes` of content, one byte more than that is returned, for
/// the caller to refuse.
///
/// # Errors
/// As [`open`].
pub(super) fn content(object: &[u8], limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(object, limit_bytes)?.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decoder<R: BufRead>(object: R, limit_bytes: u64) -> io::Result<zstd::stream::read::Decoder<'static, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(object)?.single_frame();
    // A window is never larger than the content has to be; the decompressor allocates as much.
    decoder.window_log_max(limit_bytes.next_power_of_two().ilog2().max(LEAST_WINDOW_LOG))?;
    Ok(decoder)
}

/// Makes a frame that holds the content as it is: the same bytes from every implementation (RFC 8878, section 3.1.1).
/// The content has less than 4 GiB.
pub(super) fn uncompressed(content: &[u8]) -> Vec<u8> {
    /// The most bytes of a block (section 3.1.1.2.4).
    const BLOCK_BYTES: usize = 128 * 1024;
    let mut out = MAGIC.to_vec();
    // The size of the content has 4 bytes, and there is no window but the content.
    out.push(0b1010_0000);
    #[expect(clippy::cast_possible_truncation, reason = "the content has less than 4 GiB")]
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    let mut blocks = content.chunks(BLOCK_BYTES).peekable();
    if blocks.peek().is_none() {
        out.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let is_last = usize::from(blocks.peek().is_none());
        // Type 0 is a block as it is; its size follows.
        out.extend_from_slice(&(block.len() << 3 | is_last).to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}

/// Returns the size of the content that the frame declares.
fn check_single(bytes: &[u8]) -> io::Result<Option<u64>> {
    if !bytes.starts_with(&MAGIC) {
        return refuse("it does not begin with a zstd frame".to_owned());
    }
    // The length follows from the headers of frame and blocks; nothing is decompressed for it.
    match zstd_safe::find_frame_compressed_size(bytes) {
        Ok(len) if len == bytes.len() => {}
        Ok(len) => return refuse(format!("its zstd frame has {len} bytes, and {} follow it", bytes.len() - len)),
        Err(code) => {
            return refuse(format!("its zstd frame is not whole: {}", zstd_safe::get_error_name(code)));
        }
    }
    if let Some(id) = zstd_safe::get_dict_id_from_frame(bytes) {
        return refuse(format!("its zstd frame asks for the dictionary {id}, and there are none"));
    }
    zstd_safe::get_frame_content_size(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the header of its zstd frame is damaged"))
}

fn refuse<T>(reason: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::{check_chunk, open};

    fn read(object: &[u8], limit: u64) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        let read = open(object, limit).and_then(|content| content.take(limit + 1).read_to_end(&mut Vec::new()));
        read.map_err(|error| error.to_string())?;
        open(object, limit).unwrap().read_to_end(&mut content).unwrap();
        Ok(content)
    }

    /// A skippable frame of 3 bytes (RFC 8878, section 3.1.2).
    const SKIPPABLE: [u8; 11] = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];

    #[test]
    fn exactly_one_frame_without_a_dictionary_is_accepted() {
        let frame = zstd::bulk::compress(&[7; 5000], 3).unwrap();
        assert_eq!(read(&frame, 5000).unwrap(), [7; 5000]);
        check_chunk(&frame, 5000).unwrap();
        let cases: [(Vec<u8>, &str); 6] = [
            ([&frame[..], &[0]].concat(), "1 follow it"),
            ([&frame[..], &frame].concat(), "follow it"),
            ([&frame[..], &SKIPPABLE].concat(), "11 follow it"),
            ([&SKIPPABLE[..], &frame].concat(), "does not begin with a zstd frame"),
            (frame[..frame.len() - 1].to_vec(), "is not whole"),
            (Vec::new(), "does not begin"),
        ];
        for (bytes, expected) in cases {
            for text in [read(&bytes, 5000).unwrap_err(), check_chunk(&bytes, 5000).unwrap_err().to_string()] {
                assert!(text.contains(expected), "{text}");
            }
        }
    }

    #[test]
    fn a_frame_of_what_is_not_compressed_is_read_by_zstd() {
        for len in [0, 1, 128 * 1024, 128 * 1024 + 1, 1_000_000] {
            let content: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
            let frame = super::uncompressed(&content);
            assert!(frame.len() <= len + 9 + 3 * len.div_ceil(128 * 1024).max(1));
            assert_eq!(read(&frame, 1_000_000).unwrap(), content);
        }
    }

    #[test]
    fn declared_sizes_are_compared_before_decompression() {
        let frame = zstd::bulk::compress(&[7; 5000], 3).unwrap();
        assert!(read(&frame, 4999).unwrap_err().contains("has 5000 bytes of content, and at most 4999"));
        let text = check_chunk(&frame, 4096).unwrap_err().to_string();
        assert_eq!(text, "its zstd frame has 5000 bytes of content, and its place has 4096");
    }

    #[test]
    fn a_frame_that_asks_for_a_dictionary_is_refused() {
        // Version 4 byte: single segment, content size of one byte, dictionary ID of one byte.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0b0010_0001, 9, 1, 0b0000_1001, 0, 0, 0x55];
        assert!(check_chunk(&frame, 1).unwrap_err().to_string().contains("dictionary 9"));
    }

    #[test]
    fn a_window_beyond_the_content_is_not_allocated() {
        let with_window = |log: u32| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            // What is flushed first cannot declare the size of the content, so that the frame has a window.
            encoder.write_all(&[1; 100]).unwrap();
            encoder.flush().unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(read(&with_window(23), 200).unwrap(), [1; 100]);
        let text = read(&with_window(24), 200).unwrap_err();
        assert!(text.contains("memory"), "{text}");
        assert_eq!(read(&with_window(24), 9 << 20).unwrap(), [1; 100]);
    }
}
