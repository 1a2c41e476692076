//! Frames on their way from the network to the disk.
//!
//! Three kinds of threads: one fetches, one per core decodes and checks, one writes. Two bounded queues between
//! them keep memory small whatever the image: a slow disk stops the download, a slow link stops nothing else.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::{WriteError, Writer};
use crate::digest::Digest;
use crate::fetch::{SinkError, Source};
use crate::index::{Index, StoredNo};
use crate::manifest::object_path;
use crate::plan::Request;
use crate::sys::block::AlignedBuf;

/// Bytes of compressed and of decoded frames that may wait in each of the two queues.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// One compressed frame on its way to the decoders.
struct Compressed {
    stored: StoredNo,
    bytes: Vec<u8>,
}

/// One checked frame on its way to the disk.
pub(super) struct Decoded {
    pub(super) stored: StoredNo,
    pub(super) content: AlignedBuf,
    pub(super) len: usize,
}

/// Fetches, decodes and writes the frames of `requests`. Returns those that arrived with a wrong digest.
pub(super) fn pipeline(
    index: &Index,
    requests: &[Request],
    source: &dyn Source,
    writer: &mut Writer<'_>,
) -> Result<Vec<StoredNo>, WriteError> {
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
    let queue = (QUEUE_BYTES / index.frame_bytes() as usize).clamp(2, 256);
    let (to_decode, compressed) = sync_channel::<Compressed>(queue);
    let (to_write, decoded) = sync_channel::<Result<Decoded, WriteError>>(queue);
    let compressed = Mutex::new(compressed);
    let (recycle, recycled) = std::sync::mpsc::channel::<AlignedBuf>();
    let recycled = Mutex::new(recycled);
    let damaged = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let fetcher = {
            let stop = &stop;
            scope.spawn(move || fetch_all(index, requests, source, &to_decode, stop))
        };
        for _ in 0..workers {
            let to_write = to_write.clone();
            let (compressed, recycled, damaged) = (&compressed, &recycled, &damaged);
            scope.spawn(move || decode_all(index, compressed, recycled, damaged, &to_write));
        }
        drop(to_write);
        let mut failure = None;
        for frame in decoded {
            if failure.is_some() {
                continue; // Drain, so that no thread blocks on a full queue.
            }
            match frame.and_then(|frame| writer.write(&frame).map(|()| frame.content)) {
                Ok(buffer) => drop(recycle.send(buffer)),
                Err(error) => {
                    failure = Some(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        let fetched = fetcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failure.map_or(fetched, Err)
    });
    outcome?;
    let mut damaged = damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
    damaged.sort_unstable();
    Ok(damaged)
}

fn fetch_all(
    index: &Index,
    requests: &[Request],
    source: &dyn Source,
    to_decode: &SyncSender<Compressed>,
    stop: &AtomicBool,
) -> Result<(), WriteError> {
    for request in requests {
        let mut splitter = Splitter::new(index, request);
        let mut sink = |bytes: &[u8]| {
            if stop.load(Ordering::Relaxed) {
                return Err(local("the writer stopped"));
            }
            splitter.take(bytes, |frame| to_decode.send(frame).map_err(|_| local("the decoders stopped")))
        };
        let result = get(index, request, source, &mut sink);
        if stop.load(Ordering::Relaxed) {
            return Ok(()); // The writer's own error says what happened.
        }
        result?;
    }
    Ok(())
}

/// Downloads frames that arrived damaged once more, checking each before the next byte is taken: the source then
/// knows which copy sent wrong bytes, and asks another one.
pub(super) fn fetch_again(
    index: &Index,
    request: &Request,
    source: &dyn Source,
    writer: &mut Writer<'_>,
) -> Result<(), WriteError> {
    let mut zstd = zstd::bulk::Decompressor::new().map_err(WriteError::Decompressor)?;
    let mut splitter = Splitter::new(index, request);
    let mut failure = None;
    let mut sink = |bytes: &[u8]| {
        let mut wrong = None;
        let taken = splitter.take(bytes, |frame| {
            let mut content = AlignedBuf::zeroed(index.frame_bytes() as usize);
            let Some(len) = decode(index, &mut zstd, &frame, &mut content) else {
                let from = index.location(frame.stored).range.start;
                wrong = Some(from);
                let digest = index.digest(frame.stored);
                return Err(SinkError::Wrong { from, reason: format!("the frame there has not the digest {digest}") });
            };
            writer.write(&Decoded { stored: frame.stored, content, len }).map_err(|error| {
                failure = Some(error);
                local("the writer stopped")
            })
        });
        if let Some(from) = wrong {
            splitter.rewind(from);
        }
        taken
    };
    let result = get(index, request, source, &mut sink);
    failure.map_or(result, Err)
}

fn get(
    index: &Index,
    request: &Request,
    source: &dyn Source,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
) -> Result<(), WriteError> {
    let pack = index.packs()[request.pack as usize].digest;
    source.get_range(&object_path(&pack), request.range.clone(), sink).map_err(|source| WriteError::Fetch {
        pack,
        start: request.range.start,
        end: request.range.end,
        source,
    })
}

fn local(text: &str) -> SinkError {
    SinkError::Local(text.into())
}

/// Decompresses a frame and checks its digest; the length of its content if it is right. Content that does not
/// decompress was damaged on the way, the same as content with a wrong digest.
fn decode(
    index: &Index,
    zstd: &mut zstd::bulk::Decompressor<'_>,
    frame: &Compressed,
    content: &mut AlignedBuf,
) -> Option<usize> {
    let len = zstd.decompress_to_buffer(&frame.bytes, &mut content[..]).ok()?;
    (Digest::of(&content[..len]) == *index.digest(frame.stored)).then_some(len)
}

/// Cuts the bytes of one request into its frames, leaving out the gaps.
struct Splitter<'a> {
    index: &'a Index,
    request: &'a Request,
    /// Offset in the pack of the next byte.
    position: u64,
    next: usize,
    current: Vec<u8>,
}

impl<'a> Splitter<'a> {
    fn new(index: &'a Index, request: &'a Request) -> Self {
        Self { index, request, position: request.range.start, next: 0, current: Vec::new() }
    }

    /// Goes back to the start of a frame of this request.
    fn rewind(&mut self, position: u64) {
        self.position = position;
        self.next = self.request.stored.partition_point(|stored| self.index.location(*stored).range.start < position);
        self.current.clear();
    }

    fn take(
        &mut self,
        mut bytes: &[u8],
        mut send: impl FnMut(Compressed) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        while let Some(stored) = self.request.stored.get(self.next) {
            let place = self.index.location(*stored).range;
            let gap = place.start.saturating_sub(self.position).min(bytes.len() as u64);
            bytes = &bytes[gap as usize..];
            self.position += gap;
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = (place.end - self.position).min(bytes.len() as u64) as usize;
            let (head, rest) = bytes.split_at(wanted);
            self.current.extend_from_slice(head);
            self.position += wanted as u64;
            bytes = rest;
            if self.position == place.end {
                self.next += 1;
                send(Compressed { stored: *stored, bytes: std::mem::take(&mut self.current) })?;
            }
        }
        Ok(())
    }
}

fn decode_all(
    index: &Index,
    compressed: &Mutex<Receiver<Compressed>>,
    recycled: &Mutex<Receiver<AlignedBuf>>,
    damaged: &Mutex<Vec<StoredNo>>,
    to_write: &SyncSender<Result<Decoded, WriteError>>,
) {
    let mut zstd = match zstd::bulk::Decompressor::new() {
        Ok(zstd) => zstd,
        Err(error) => return drop(to_write.send(Err(WriteError::Decompressor(error)))),
    };
    loop {
        let Ok(frame) = compressed.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        let spare = recycled.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok();
        let mut content = spare.unwrap_or_else(|| AlignedBuf::zeroed(index.frame_bytes() as usize));
        match decode(index, &mut zstd, &frame, &mut content) {
            Some(len) => {
                if to_write.send(Ok(Decoded { stored: frame.stored, content, len })).is_err() {
                    return;
                }
            }
            None => damaged.lock().unwrap_or_else(PoisonError::into_inner).push(frame.stored),
        }
    }
}
