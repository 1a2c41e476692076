//! Carries chunks from the network to the disk.
//!
//! Several connections fetch, each a request of its own. Other threads, two more than cores, decode, check and write.
//! A bounded queue between them keeps memory small for images of any size: a slow disk stops the download, and a slow
//! link stops nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use super::content::decode;
use super::error::WriteError;
use super::groups;
use super::splitter::{Load, PARCEL_BYTES, Parcel, Splitter};
use super::writer::Writer;
use crate::fetch::SinkError;
use crate::flash::plan::{ChunkPlaces, Plan, Request};
use crate::flash::threads::{self, lock};
use crate::release::index::{ChunkNo, Index};
use crate::release::manifest::object_path;
use crate::sys::block::AlignedBuf;

/// Number of requests that run at the same time. One connection waits for the answer while another delivers, and some
/// networks give more to several streams. More connections would only take bandwidth from others.
const CONNECTIONS: usize = 4;

/// Number of requests that run at the same time where some are for groups.
const CONNECTIONS_WITH_GROUPS: usize = 2;

/// Compressed bytes that may wait for a decoder.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Starts the threads that fetch and write what the plan asks for.
pub(super) fn spawn<'s>(writer: &'s Writer<'_>, scope: &'s Scope<'s, '_>) {
    let Plan { requests, group_requests, kept, .. } = writer.work.plan;
    if requests.is_empty() && group_requests.is_empty() {
        return;
    }
    let places = ChunkPlaces::with(writer.index, kept.as_ref());
    let parcel_bytes = PARCEL_BYTES.max(writer.index.chunk_bytes() as usize).max(groups::largest_content_bytes(writer));
    // Each connection has a whole group in memory, and so has each decoder: no queue, and fewer connections.
    let has_groups = !group_requests.is_empty();
    let queue = if has_groups { 0 } else { (QUEUE_BYTES / parcel_bytes).max(1) };
    let (to_decode, parcels) = sync_channel::<Load>(queue);
    let connections = if has_groups { CONNECTIONS_WITH_GROUPS } else { CONNECTIONS };
    let (recycle, recycled) = channel::<Parcel>();
    let (parcels, recycled) = (Arc::new(Mutex::new(parcels)), Arc::new(Mutex::new(recycled)));
    let next = Arc::new(AtomicUsize::new(0));
    for _ in 0..connections.min(requests.len() + group_requests.len()) {
        let (next, to_decode, recycled) = (next.clone(), to_decode.clone(), recycled.clone());
        threads::spawn(scope, "fetch", move || {
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let fetched = match (group_requests.get(turn), requests.get(turn.wrapping_sub(group_requests.len()))) {
                    _ if writer.is_stopped() => return,
                    (Some(request), _) => groups::fetch(writer, request, &to_decode),
                    (None, Some(request)) => fetch(writer, places, request, &to_decode, &recycled),
                    (None, None) => return,
                };
                if let Err(error) = fetched {
                    return writer.fail(error);
                }
            }
        });
    }
    for _ in 0..threads::count_with_buffers(parcel_bytes) {
        let (parcels, recycle) = (parcels.clone(), recycle.clone());
        threads::spawn(scope, "decode", move || {
            if let Err(error) = decode_all(writer, parcel_bytes, &parcels, &recycle) {
                writer.fail(error);
            }
        });
    }
}

/// Number of chunks in a full parcel.
fn chunks_per_parcel(index: &Index) -> usize {
    (PARCEL_BYTES / index.chunk_bytes() as usize).max(1)
}

fn fetch(
    writer: &Writer<'_>,
    places: ChunkPlaces<'_>,
    request: &Request,
    to_decode: &SyncSender<Load>,
    recycled: &Mutex<Receiver<Parcel>>,
) -> Result<(), WriteError> {
    let empty_parcel = || lock(recycled).try_recv().map_or_else(|_| Parcel::default(), Parcel::emptied);
    let mut splitter = Splitter::new(places, request, chunks_per_parcel(writer.index), empty_parcel());
    let is_local = writer.work.plan.is_local(request);
    let result = download(writer, places, request, &mut |bytes: &[u8]| {
        if writer.is_stopped() {
            return Err(local_error("the writer stopped"));
        }
        if !is_local {
            writer.work.done.network(bytes.len() as u64);
        }
        splitter.push(bytes, |parcel| {
            let load = Load::Chunks { parcel, is_kept: is_local };
            to_decode.send(load).map_err(|_| local_error("the decoders stopped"))?;
            Ok(empty_parcel())
        })
    });
    // When the writer stopped, another thread has already recorded the cause.
    if writer.is_stopped() {
        return Ok(());
    }
    match result {
        // What is kept and cannot be read is fetched from where it came.
        Err(_) if is_local => {}
        result => result?,
    }
    // A source that says "done" before the last byte has not delivered the rest.
    splitter.undelivered().iter().for_each(|stored| writer.add_all_damaged(*stored));
    Ok(())
}

/// Hands the bytes of one request to `sink` as they arrive.
pub(super) fn download(
    writer: &Writer<'_>,
    places: ChunkPlaces<'_>,
    request: &Request,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
) -> Result<(), WriteError> {
    let pack = places.pack(request.pack).digest;
    writer.work.source.get_range(&object_path(&pack), request.range.clone(), sink).map_err(|source| WriteError::Fetch {
        pack,
        start: request.range.start,
        end: request.range.end,
        source,
    })
}

/// An error on this machine: the transfer is given up, because no other source could help.
pub(super) fn local_error(text: &str) -> SinkError {
    SinkError::Local(text.into())
}

/// Decodes and writes what comes until no connection sends any more.
fn decode_all(
    writer: &Writer<'_>,
    parcel_bytes: usize,
    parcels: &Mutex<Receiver<Load>>,
    recycle: &Sender<Parcel>,
) -> Result<(), WriteError> {
    let mut zstd = zstd::bulk::Decompressor::new().map_err(WriteError::Decompressor)?;
    let mut content = AlignedBuf::zeroed(parcel_bytes);
    loop {
        let Ok(load) = lock(parcels).recv() else { return Ok(()) };
        if writer.is_stopped() {
            continue; // The queue is drained, so that no connection blocks on a full one.
        }
        let mut chunks = match load {
            Load::Group(number, bytes) => groups::decode(writer, &mut zstd, number, &bytes, &mut content),
            Load::Chunks { parcel, is_kept } => {
                let chunks = decode_chunks(writer, &mut zstd, &parcel, is_kept, &mut content);
                let _ = recycle.send(parcel);
                chunks
            }
        };
        // Moves may still have to read what lies there.
        let free_after = chunks.iter().map(|(chunk, _)| writer.work.plan.moves.free_after(*chunk)).max();
        writer.gate.wait(free_after.unwrap_or_default());
        if !writer.is_stopped() {
            writer.write(&mut chunks, &content)?;
        }
    }
}

/// Decodes a parcel, but for what is not as it was compressed for the release. Returns the chunks that are right, each
/// with its place in `content`.
fn decode_chunks(
    writer: &Writer<'_>,
    zstd: &mut zstd::bulk::Decompressor<'_>,
    parcel: &Parcel,
    is_kept: bool,
    content: &mut [u8],
) -> Vec<(ChunkNo, usize)> {
    let chunk_bytes = writer.index.chunk_bytes() as usize;
    let mut chunks: Vec<(ChunkNo, usize)> = Vec::new();
    for (place, (stored, bytes)) in parcel.chunks().enumerate() {
        let from = place * chunk_bytes;
        let is_right = (is_kept || writer.work.plan.frames.allows(stored, bytes))
            && decode(writer.index, zstd, stored, bytes, &mut content[from..from + chunk_bytes]).is_ok();
        for chunk in writer.work.plan.destinations(stored) {
            if is_right { chunks.push((chunk, from)) } else { writer.add_damaged(stored, chunk) }
        }
    }
    chunks
}
