//! What is compressed: bytes that pass the check before decompression are one whole frame and nothing else, and none
//! make the decompressor write behind its buffer.

use reflash::release::zstd_frame::check_chunk;

pub fn run(data: &[u8]) {
    let Some((head, bytes)) = data.split_first_chunk::<2>() else { return };
    let content_bytes = usize::from(u16::from_le_bytes(*head));
    let is_one_frame = check_chunk(bytes, content_bytes).is_ok();
    let mut content = vec![0xa5; content_bytes + 64];
    let mut zstd = zstd::bulk::Decompressor::new().unwrap();
    let decompressed = zstd.decompress_to_buffer(bytes, &mut content[..content_bytes]);
    assert!(content[content_bytes..].iter().all(|byte| *byte == 0xa5), "written behind the buffer");
    if !is_one_frame {
        return;
    }
    for more in [&b"\0"[..], bytes] {
        assert!(check_chunk(&[bytes, more].concat(), content_bytes).is_err(), "something follows the frame");
    }
    assert!(check_chunk(&bytes[..bytes.len() - 1], content_bytes).is_err(), "the frame is cut");
    assert!(decompressed.is_err() || bytes.len() >= 9, "content from nothing");
}
