//! A partition in memory, and a source of objects in memory that may lie.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use reflash::fetch::{Check, FetchError, FetchErrorKind, Refusal, Sink, SinkError, Source};
use reflash::flash::target::BlockTarget;

const BLOCK: u64 = 4096;

/// A partition.
pub struct Partition {
    pub content: Mutex<Vec<u8>>,
    /// Number of writes so far.
    pub writes: AtomicUsize,
    /// Offset that cannot be read.
    pub unreadable: Option<u64>,
}

impl Partition {
    pub fn new(content: Vec<u8>) -> Self {
        Self { content: Mutex::new(content), writes: AtomicUsize::new(0), unreadable: None }
    }

    pub fn content(&self) -> Vec<u8> {
        self.content.lock().unwrap().clone()
    }

    fn write(&self, range: Range<u64>, fill: impl FnOnce(&mut [u8])) {
        assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK), "{range:?} is not aligned");
        self.writes.fetch_add(1, Ordering::Relaxed);
        fill(&mut self.content.lock().unwrap()[range.start as usize..range.end as usize]);
    }
}

impl BlockTarget for Partition {
    fn name(&self) -> &str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.content.lock().unwrap().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK), "{range:?} is not aligned");
        if self.unreadable.is_some_and(|unreadable| range.contains(&unreadable)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let content = self.content.lock().unwrap();
        let found = content.get(range.start as usize..range.end as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.write(offset..offset + content.len() as u64, |place| place.copy_from_slice(content));
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.write(range, |place| place.fill(0));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A source of objects by path.
#[derive(Default)]
pub struct Objects {
    pub objects: HashMap<String, Vec<u8>>,
    /// Changes to pieces that are sent: a place in the piece, and the bits that are flipped there.
    pub lies: Vec<(u8, u8)>,
    /// Whether the lies never end.
    pub lies_for_ever: bool,
    /// Ranges that end early with success, from the first on.
    pub hasty: AtomicU32,
    pub sent: AtomicUsize,
}

/// Pieces after which a source is honest.
const PIECES_WITH_LIES: usize = 24;
/// Refusals after which a source gives up, as mirrors do.
const MOST_REFUSALS: u32 = 60;

impl Objects {
    fn piece(&self, path: &str, object: &[u8], at: usize, end: usize) -> Vec<u8> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let len = (end - at).min(1 + number.wrapping_mul(2_654_435_761) % 9000);
        let mut piece = object.get(at..at + len).unwrap_or_else(|| panic!("asked beyond the end of {path}")).to_vec();
        if !self.lies.is_empty() && (self.lies_for_ever || number < PIECES_WITH_LIES) {
            let (place, bits) = self.lies[number % self.lies.len()];
            let place = usize::from(place) * 37 % piece.len();
            piece[place] ^= bits;
        }
        piece
    }
}

impl Source for Objects {
    fn describe(&self) -> String {
        "objects in memory".to_owned()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let missing = |path: &str| FetchError::new(FetchErrorKind::Missing, path, "not there");
        let files: Vec<Vec<u8>> = wanted
            .iter()
            .map(|(path, limit)| {
                let object = self.objects.get(*path).ok_or_else(|| missing(path))?;
                match object.len() as u64 <= *limit {
                    true => Ok(object.clone()),
                    false => Err(FetchError::new(FetchErrorKind::Protocol, path, "more than was asked for")),
                }
            })
            .collect::<Result<_, _>>()?;
        check(&files).map_err(|refusal| match refusal {
            Refusal::Wrong(why) => FetchError::new(FetchErrorKind::Corrupt, wanted[0].0, why),
            Refusal::Unsuitable(why) => FetchError::new(FetchErrorKind::Unsuitable, wanted[0].0, why),
        })?;
        Ok(files)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        assert!(range.start < range.end, "nothing is asked for: {range:?}");
        let object =
            self.objects.get(path).ok_or_else(|| FetchError::new(FetchErrorKind::Missing, path, "not there"))?;
        // A server knows where its object ends, and says so.
        if range.end > object.len() as u64 {
            return Err(FetchError::new(FetchErrorKind::Protocol, path, "the range is beyond the end"));
        }
        let is_hasty =
            self.hasty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let (mut at, mut end) = (range.start as usize, range.end as usize);
        if is_hasty {
            end = at + (end - at) / 2;
        }
        let mut refusals = 0;
        while at < end {
            let piece = self.piece(path, object, at, end);
            match sink(&piece) {
                Ok(()) => at += piece.len(),
                Err(SinkError::Wrong { from, .. }) => {
                    assert!(from >= range.start && from < (at + piece.len()) as u64, "{from} was not delivered");
                    refusals += 1;
                    if refusals > MOST_REFUSALS {
                        return Err(FetchError::new(FetchErrorKind::Corrupt, path, "wrong bytes"));
                    }
                    at = from as usize;
                }
                Err(SinkError::Local(_)) => {
                    return Err(FetchError::new(FetchErrorKind::Local, path, "the sink failed"));
                }
            }
        }
        Ok(())
    }
}

/// Content of a block: the same for the same number, zeros for 0, and no two alike.
pub fn block(number: u8) -> [u8; BLOCK as usize] {
    let mut content = [number; BLOCK as usize];
    if number != 0 {
        for (place, byte) in content.iter_mut().enumerate().step_by(64) {
            *byte = (place / 64) as u8 ^ number;
        }
    }
    content
}
