//! Fetches and decodes groups: many chunks that are compressed together.

use std::sync::mpsc::SyncSender;

use super::bad_packs::MOST_WRONG;
use super::error::WriteError;
use super::splitter::Load;
use super::writer::Writer;
use crate::fetch::pieces::{Cutter, PieceRefusal};
use crate::fetch::{FetchError, FetchErrorKind};
use crate::flash::plan::NumberedRequest;
use crate::release::digest::Digest;
use crate::release::index::ChunkNo;
use crate::release::manifest::object_path;
use crate::release::zstd_frame;

/// Bytes of content of the largest group that the plan asks for.
pub(super) fn largest_content_bytes(writer: &Writer<'_>) -> usize {
    let plan = writer.work.plan;
    let used = plan.group_requests.iter().flat_map(|request| &request.numbers);
    let most = used.map(|number| plan.groups.get(*number).members.len()).max().unwrap_or_default();
    most * writer.index.chunk_bytes() as usize
}

/// Fetches the groups of one request. Each is checked by its digest before anything else looks at it, so that the
/// source knows which of its copies is damaged.
///
/// The chunks of a group that is wrong everywhere are fetched one by one in the end.
pub(super) fn fetch(
    writer: &Writer<'_>,
    request: &NumberedRequest,
    to_decode: &SyncSender<Load>,
) -> Result<(), WriteError> {
    let NumberedRequest { pack, range, numbers } = request;
    let mut rest = &numbers[..];
    while !rest.is_empty() && !writer.is_stopped() {
        if writer.bad_packs.is_given_up(pack) {
            rest.iter().for_each(|number| give_up(writer, *number));
            break;
        }
        let (taken, fetched) = fetch_some(writer, *pack, rest, to_decode);
        let not_come = &rest[taken..];
        let wrong = match fetched {
            // Another thread has already recorded the cause.
            _ if writer.is_stopped() => break,
            Ok(()) if not_come.is_empty() => break,
            // A source that says "done" before the last byte has not delivered the rest.
            Ok(()) => {
                writer.bad_packs.note(*pack, 1);
                not_come.len()
            }
            Err(error) if error.kind() == FetchErrorKind::Corrupt => {
                writer.bad_packs.note(*pack, 1);
                1
            }
            // The release is complete without groups.
            Err(error) if error.is_of_the_object() => {
                writer.bad_packs.note(*pack, MOST_WRONG);
                not_come.len()
            }
            Err(source) => return Err(WriteError::Fetch { pack: *pack, start: range.start, end: range.end, source }),
        };
        let (wrong, others) = not_come.split_at(wrong.min(not_come.len()));
        wrong.iter().for_each(|number| give_up(writer, *number));
        rest = others;
    }
    Ok(())
}

/// Has the chunks of a group fetched by themselves.
fn give_up(writer: &Writer<'_>, number: u32) {
    let members = writer.work.plan.groups.get(number).members;
    members.iter().flatten().for_each(|stored| writer.add_all_damaged(*stored));
}

/// Fetches groups up to the first that is wrong everywhere. Returns how many came, and how the transfer ended.
fn fetch_some(
    writer: &Writer<'_>,
    pack: Digest,
    numbers: &[u32],
    to_decode: &SyncSender<Load>,
) -> (usize, Result<(), FetchError>) {
    let groups = &writer.work.plan.groups;
    let places: Vec<_> = numbers.iter().map(|number| groups.get(*number).range).collect();
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return (0, Ok(())) };
    let range = first.start..last.end;
    let mut cutter = Cutter::new(range.start, places);
    let fetched = writer.work.source.get_range(&object_path(&pack), range, &mut |bytes| {
        writer.work.done.network(bytes.len() as u64);
        cutter.take(bytes, |which, group| {
            let number = numbers[which];
            let (found, expected) = (Digest::of(&group).half(), groups.get(number).digest);
            if found != expected {
                let reason = format!("group {number} has a digest that begins with {found:02x?}, not {expected:02x?}");
                return Err(PieceRefusal::Wrong(reason));
            }
            if writer.is_stopped() {
                return Err(PieceRefusal::Local("the writer stopped".to_owned()));
            }
            to_decode
                .send(Load::Group(number, group))
                .map_err(|_| PieceRefusal::Local("the decoders stopped".to_owned()))
        })
    });
    (cutter.taken(), fetched)
}

/// Decodes a group. Returns those of its chunks that are wanted and right, each with its place in `content`.
pub(super) fn decode(
    writer: &Writer<'_>,
    zstd: &mut zstd::bulk::Decompressor<'_>,
    number: u32,
    bytes: &[u8],
    content: &mut [u8],
) -> Vec<(ChunkNo, usize)> {
    let (index, plan) = (writer.index, writer.work.plan);
    let members = plan.groups.get(number).members;
    let chunk_bytes = index.chunk_bytes() as usize;
    let expected = members.len() * chunk_bytes;
    let decoded = zstd_frame::check_chunk(bytes, expected)
        .and_then(|()| zstd.decompress_to_buffer(bytes, &mut content[..expected]))
        .is_ok_and(|found| found == expected);
    let mut chunks = Vec::new();
    for (stored, from) in members.iter().zip((0..).step_by(chunk_bytes)) {
        let Some(stored) = stored else { continue };
        let mut wanted = plan.destinations(*stored).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        if decoded && index.is_stored(*stored, &content[from..from + chunk_bytes]) {
            chunks.extend(wanted.map(|chunk| (chunk, from)));
        } else {
            writer.add_all_damaged(*stored);
        }
    }
    chunks
}
