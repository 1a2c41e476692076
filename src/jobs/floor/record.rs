//! The codec of the floor record: the highest serial that was ever good on a robot, and the releases that are refused
//! on it. Pure.
//!
//! A copy has one sector, so that a write is atomic on every disk. Numbers are little endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `RFLASHFL` |
//! | 8 | 2 | version, 1; a reader of this one reads what is here of every later one |
//! | 10 | 1 | number of refused releases, at most 8 |
//! | 11 | 1 | number of lowerings, at most 4 |
//! | 12 | 1 | 1 if a release below the floor is allowed, else 0 |
//! | 16 | 8 | sequence: the copy with the highest one is the newest |
//! | 24 | 8 | the floor: highest serial that was ever good, 0 before the first one |
//! | 32 | 16 | identity: random, made with the first copy; a copy that is not on the disk counts by it |
//! | 48 | 16 | release that a person allowed below the floor: serial, first 8 bytes of the BLAKE3 of its manifest |
//! | 64 | 128 | refused releases, each like the one above, the last one refused last |
//! | 192 | 128 | lowerings, each: kind (1 byte), 7 zeros, a release like those above, the floor before |
//! | 320 | 1 | 1 if a release called itself good since there is room for it here, else 0 |
//! | 328 | 24 | the release that did so last, and the first 8 bytes of the identity of its image |
//! | 352 | 32 | the newest roll-out and halt files that were seen: see `seen.rs` |
//! | 384 | 96 | zeros; a writer keeps what it finds here |
//! | 480 | 32 | BLAKE3 of all before |

use super::seen::{self, SeenRollout};
use crate::release::digest::Digest;
use crate::release::fields::u64_at;
use crate::release::manifest::MAX_SERIAL;
use crate::release::rollout::OwnRelease;

/// Size of a copy, bytes: one logical sector.
pub const SIZE_BYTES: usize = 512;
/// Number of refused releases that are kept. The one that was refused first makes room.
pub const MAX_REFUSED: usize = 8;
/// Number of lowerings that are kept. The first one makes room.
pub const MAX_LOWERINGS: usize = 4;

const MAGIC: &[u8; 8] = b"RFLASHFL";
const VERSION: u16 = 1;
const RELEASE_BYTES: usize = 16;
const LOWERING_BYTES: usize = 32;
const ALLOWED_AT: usize = 48;
const REFUSED_AT: usize = 64;
const LOWERINGS_AT: usize = REFUSED_AT + MAX_REFUSED * RELEASE_BYTES;
const GOOD_AT: usize = LOWERINGS_AT + MAX_LOWERINGS * LOWERING_BYTES;
const SEEN_AT: usize = GOOD_AT + 32;
const RESERVED_AT: usize = SEEN_AT + seen::SIZE_BYTES;
const DIGEST_AT: usize = SIZE_BYTES - 32;
const RESERVED_BYTES: usize = DIGEST_AT - RESERVED_AT;
/// The highest sequence that is believed: no robot counts that far, and a higher one would leave none for the next
/// write.
const MAX_SEQUENCE: u64 = u32::MAX as u64;

/// Identity of a release: its serial and its very manifest. Another manifest of the same serial is another release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseId {
    /// Serial of the release.
    pub serial: u64,
    /// First bytes of the BLAKE3 digest of its signed manifest.
    pub digest: [u8; 8],
}

impl ReleaseId {
    /// The identity of a release with this serial and these signed bytes.
    #[must_use]
    pub fn new(serial: u64, signed_bytes: &[u8]) -> Self {
        let digest = Digest::of(signed_bytes).0;
        Self { serial, digest: std::array::from_fn(|at| digest[at]) }
    }

    fn encode(self) -> [u8; RELEASE_BYTES] {
        let mut bytes = [0; RELEASE_BYTES];
        bytes[..8].copy_from_slice(&self.serial.to_le_bytes());
        bytes[8..].copy_from_slice(&self.digest);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (serial, digest) = (u64_at(bytes, 0)?, *bytes.get(8..)?.first_chunk()?);
        (serial <= MAX_SERIAL).then_some(Self { serial, digest })
    }
}

/// The release that called itself good last. The boot environment has only its serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoodRelease {
    /// Identity of the release.
    pub release: ReleaseId,
    /// First bytes of the identity of its system image: other releases may have the same one.
    pub image: [u8; 8],
}

impl From<ReleaseId> for OwnRelease {
    fn from(id: ReleaseId) -> Self {
        Self { serial: id.serial, digest: id.digest }
    }
}

impl GoodRelease {
    /// The release with this identity and this system image.
    #[must_use]
    pub fn new(release: ReleaseId, image_id: &Digest) -> Self {
        Self { release, image: std::array::from_fn(|at| image_id.0[at]) }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let entry = bytes.get(8..32)?;
        Some(Self { release: ReleaseId::decode(entry)?, image: *entry.get(RELEASE_BYTES..)?.first_chunk()? })
    }
}

/// Act of a person by which the floor no longer holds as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoweringKind {
    /// A person installed an older release at the machine. The floor stays, and this one release is allowed below it.
    Installed,
    /// A person provisioned the disk, which sets the floor anew.
    Provisioned,
    /// An act that a later version knows.
    Other(u8),
}

impl LoweringKind {
    fn code(self) -> u8 {
        match self {
            Self::Installed => 1,
            Self::Provisioned => 2,
            Self::Other(code) => code,
        }
    }

    fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Installed,
            2 => Self::Provisioned,
            code => Self::Other(code),
        }
    }
}

/// Record of one act of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowering {
    /// Kind of the act.
    pub kind: LoweringKind,
    /// Release that the person chose.
    pub release: ReleaseId,
    /// The floor before it.
    pub floor_before: u64,
}

/// Content of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloorRecord {
    /// Number of the write; the copy with the highest one is the newest.
    pub sequence: u64,
    /// Highest serial that was ever good; 0 before the first one.
    pub serial: u64,
    /// Random number that copies of one disk share.
    pub identity: [u8; 16],
    /// Release below the floor that a person installed: it may be repaired and started, and no other one.
    pub allowed: Option<ReleaseId>,
    /// Releases that are not chosen automatically, the one that was refused last at the end.
    pub refused: Vec<ReleaseId>,
    /// The last acts by which a person lowered the floor.
    pub lowerings: Vec<Lowering>,
    /// The release that called itself good last, if that is known.
    pub good: Option<GoodRelease>,
    /// The newest roll-out and halt files that were seen.
    pub seen: SeenRollout,
    /// Version of the writer that knew the most.
    pub(super) version: u16,
    /// Bytes that a later version may have put there.
    pub(super) reserved: [u8; RESERVED_BYTES],
}

impl Default for FloorRecord {
    fn default() -> Self {
        Self {
            sequence: 0,
            serial: 0,
            identity: [0; 16],
            allowed: None,
            refused: Vec::new(),
            lowerings: Vec::new(),
            good: None,
            seen: SeenRollout::default(),
            version: VERSION,
            reserved: [0; RESERVED_BYTES],
        }
    }
}

impl FloorRecord {
    /// The first record of a disk with this identity, whose floor a person set.
    #[must_use]
    pub fn of_new_disk(identity: [u8; 16], release: ReleaseId, floor_before: u64) -> Self {
        let lowerings = vec![Lowering { kind: LoweringKind::Provisioned, release, floor_before }];
        Self { sequence: 1, serial: release.serial, identity, lowerings, ..Self::default() }
    }

    /// Encodes the record into the sector to write.
    #[must_use]
    pub fn encode(&self) -> [u8; SIZE_BYTES] {
        let mut bytes = [0; SIZE_BYTES];
        let (refused, lowerings) = (last(&self.refused, MAX_REFUSED), last(&self.lowerings, MAX_LOWERINGS));
        let mut put = |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
        put(0, MAGIC);
        put(8, &self.version.to_le_bytes());
        put(10, &[count(refused), count(lowerings), u8::from(self.allowed.is_some())]);
        put(16, &self.sequence.to_le_bytes());
        put(24, &self.serial.to_le_bytes());
        put(32, &self.identity);
        put(ALLOWED_AT, &self.allowed.map_or([0; RELEASE_BYTES], ReleaseId::encode));
        for (number, release) in refused.iter().enumerate() {
            put(REFUSED_AT + number * RELEASE_BYTES, &release.encode());
        }
        for (number, lowering) in lowerings.iter().enumerate() {
            let at = LOWERINGS_AT + number * LOWERING_BYTES;
            put(at, &[lowering.kind.code()]);
            put(at + 8, &lowering.release.encode());
            put(at + 24, &lowering.floor_before.to_le_bytes());
        }
        if let Some(good) = &self.good {
            put(GOOD_AT, &[1]);
            put(GOOD_AT + 8, &good.release.encode());
            put(GOOD_AT + 8 + RELEASE_BYTES, &good.image);
        }
        put(SEEN_AT, &self.seen.encode());
        put(RESERVED_AT, &self.reserved);
        let digest = Digest::of(&bytes[..DIGEST_AT]);
        bytes[DIGEST_AT..].copy_from_slice(&digest.0);
        bytes
    }

    /// Decodes a copy; `None` for a damaged one. What follows the sector is not looked at.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SIZE_BYTES)?;
        let (content, digest) = bytes.split_at(DIGEST_AT);
        if !content.starts_with(MAGIC) || Digest::of(content).0 != digest {
            return None;
        }
        let version = u16::from_le_bytes([content[8], content[9]]);
        let (refused, lowerings) = (usize::from(content[10]), usize::from(content[11]));
        let (sequence, serial) = (u64_at(content, 16)?, u64_at(content, 24)?);
        if version < VERSION
            || refused > MAX_REFUSED
            || lowerings > MAX_LOWERINGS
            || sequence > MAX_SEQUENCE
            || serial > MAX_SERIAL
        {
            return None;
        }
        let releases = (0..refused).map(|number| ReleaseId::decode(&content[REFUSED_AT + number * RELEASE_BYTES..]));
        let lowering = |number| {
            let entry = &content[LOWERINGS_AT + number * LOWERING_BYTES..];
            let (release, floor_before) = (ReleaseId::decode(&entry[8..])?, u64_at(entry, 24)?);
            Some(Lowering { kind: LoweringKind::of_code(entry[0]), release, floor_before })
        };
        Some(Self {
            sequence,
            serial,
            identity: *content[32..].first_chunk()?,
            allowed: match content[12] {
                0 => None,
                _ => Some(ReleaseId::decode(&content[ALLOWED_AT..])?),
            },
            refused: releases.collect::<Option<_>>()?,
            lowerings: (0..lowerings).map(lowering).collect::<Option<_>>()?,
            good: match content[GOOD_AT] {
                0 => None,
                _ => Some(GoodRelease::decode(&content[GOOD_AT..])?),
            },
            seen: SeenRollout::decode(&content[SEEN_AT..])?,
            version,
            reserved: *content[RESERVED_AT..].first_chunk()?,
        })
    }

    /// Returns what several copies say together: the newest one, with the highest floor of all. `None` where there is
    /// none.
    #[must_use]
    pub fn together(copies: &[Self]) -> Option<Self> {
        let newest = copies.iter().max_by_key(|copy| (copy.sequence, copy.serial))?;
        let serial = copies.iter().map(|copy| copy.serial).max().unwrap_or_default();
        let mut together = Self { serial, ..newest.clone() };
        copies.iter().for_each(|copy| together.seen.take(copy.seen, false));
        Some(together)
    }

    /// Raises the floor to the serial of a release that is good. Returns whether anything changed. A release that was
    /// allowed below the floor is no exception any more once another one is good.
    pub fn raise(&mut self, serial: u64) -> bool {
        if serial <= self.serial || serial > MAX_SERIAL {
            return false;
        }
        self.serial = serial;
        self.allowed = None;
        true
    }

    /// Notes the release that called itself good last. Returns whether anything changed. A serial that no release can
    /// have, as one that an older agent installed, would make a copy that is taken for a damaged one.
    pub fn note_good(&mut self, good: GoodRelease) -> bool {
        good.release.serial <= MAX_SERIAL && self.good.replace(good) != Some(good)
    }

    /// Notes the roll-out and halt files that were seen. Returns whether anything changed.
    pub fn note_seen(&mut self, seen: SeenRollout) -> bool {
        let before = self.seen;
        self.seen.take(seen, true);
        self.seen != before
    }

    /// Refuses a release from now on. Returns whether anything changed. What has a serial that no release can have is
    /// not offered again.
    pub fn refuse(&mut self, release: ReleaseId) -> bool {
        if release.serial > MAX_SERIAL || self.refused.last() == Some(&release) {
            return false;
        }
        self.refused.retain(|known| *known != release);
        self.refused.push(release);
        let surplus = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..surplus);
        true
    }

    /// Whether the release is refused.
    #[must_use]
    pub fn refuses(&self, release: &ReleaseId) -> bool {
        self.refused.contains(release)
    }

    /// Lifts the refusal of all releases for which `which` holds. Returns whether anything changed.
    pub fn lift(&mut self, which: impl Fn(&ReleaseId) -> bool) -> bool {
        let before = self.refused.len();
        self.refused.retain(|known| !which(known));
        before != self.refused.len()
    }

    /// Notes that a person installs this release. The floor stays; where the release is below it, it is the one that is
    /// allowed there, and the act is recorded. Returns whether anything changed.
    pub fn allow(&mut self, release: ReleaseId) -> bool {
        let lifted = self.lift(|known| *known == release);
        let below = (release.serial < self.serial).then_some(release);
        if self.allowed == below {
            return lifted;
        }
        self.allowed = below;
        if below.is_some() {
            self.record(Lowering { kind: LoweringKind::Installed, release, floor_before: self.serial });
        }
        true
    }

    /// Records an act of a person.
    pub fn record(&mut self, lowering: Lowering) {
        self.lowerings.push(lowering);
        let surplus = self.lowerings.len().saturating_sub(MAX_LOWERINGS);
        self.lowerings.drain(..surplus);
    }
}

/// Number of a list that [`last`] has made short.
fn count<T>(items: &[T]) -> u8 {
    u8::try_from(items.len()).unwrap_or(u8::MAX)
}

fn last<T>(items: &[T], most: usize) -> &[T] {
    &items[items.len().saturating_sub(most)..]
}

#[cfg(test)]
mod tests {
    use super::{FloorRecord, GoodRelease, Lowering, LoweringKind, MAX_REFUSED, ReleaseId, SIZE_BYTES, SeenRollout};
    use crate::release::manifest::MAX_SERIAL;

    fn release(serial: u64) -> ReleaseId {
        ReleaseId::new(serial, &serial.to_le_bytes())
    }

    fn record() -> FloorRecord {
        let mut record = FloorRecord { sequence: 7, identity: [9; 16], ..FloorRecord::default() };
        assert!(record.raise(40) && record.allow(release(30)));
        for serial in 50..55 {
            assert!(record.refuse(release(serial)));
        }
        record.record(Lowering { kind: LoweringKind::Other(77), release: release(3), floor_before: 2 });
        record.note_good(GoodRelease { release: release(40), image: [6; 8] });
        record.seen = SeenRollout::decode(&[5, 0, 0, 0, 0, 0, 0, 0].repeat(4)).unwrap();
        record.reserved = [0x3c; super::RESERVED_BYTES];
        record
    }

    #[test]
    fn what_is_written_is_read_back_with_what_a_later_version_put_there() {
        let mut later = record();
        later.version = 300;
        for record in [FloorRecord::default(), record(), later] {
            let bytes = record.encode();
            assert_eq!(FloorRecord::decode(&bytes), Some(record.clone()));
            assert_eq!(FloorRecord::decode(&[&bytes[..], &[0x55; 4096]].concat()), Some(record));
        }
    }

    #[test]
    fn a_serial_that_no_release_can_have_makes_no_copy_that_is_not_believed() {
        let mut record = record();
        for serial in [MAX_SERIAL + 1, u64::MAX] {
            let id = release(serial);
            assert!(!record.raise(serial) && !record.refuse(id));
            assert!(!record.note_good(GoodRelease { release: id, image: [7; 8] }));
            record.allow(id);
            assert_eq!(FloorRecord::decode(&record.encode()), Some(record.clone()));
        }
        assert!(record.refuse(release(MAX_SERIAL)) && record.raise(MAX_SERIAL));
        assert_eq!(FloorRecord::decode(&record.encode()), Some(record));
    }

    #[test]
    fn the_bytes_of_a_copy_stay_what_they_are() {
        let bytes = record().encode();
        assert_eq!(
            (&bytes[..13], &bytes[16..32]),
            (&b"RFLASHFL\x01\0\x05\x02\x01"[..], &[7, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0][..],)
        );
        assert_eq!((bytes[32], bytes[48], bytes[64], bytes[128]), (9, 30, 50, 54));
        assert_eq!((bytes[192], bytes[200], bytes[216], bytes[224]), (1, 30, 40, 77));
        assert_eq!((bytes[320], bytes[328], bytes[344], bytes[351]), (1, 40, 6, 6));
        assert_eq!((bytes[352], bytes[360], bytes[376], bytes[383], bytes[384]), (5, 5, 5, 0, 0x3c));
    }

    #[test]
    fn every_damage_is_seen() {
        let bytes = record().encode();
        for at in 0..SIZE_BYTES {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = bytes;
                damaged[at] ^= flip;
                assert_eq!(FloorRecord::decode(&damaged), None, "byte {at}");
            }
            assert_eq!(FloorRecord::decode(&bytes[..at]), None);
        }
        assert_eq!(FloorRecord::decode(&[0; 512]), None);
    }

    #[test]
    fn what_no_robot_wrote_is_not_believed_although_its_digest_is_right() {
        for (at, value) in [
            (16, u64::MAX),
            (24, MAX_SERIAL + 1),
            (24, u64::MAX),
            (48, u64::MAX),
            (64, 1 << 63),
            (200, 1 << 63),
            (328, 1 << 63),
            (352, 1 << 53),
            (368, u64::MAX),
        ] {
            let mut bytes = record().encode();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(FloorRecord::decode(&signed(bytes)), None, "{value} at {at}");
        }
        for (at, value) in [(8, 0), (10, 9), (10, 255), (11, 5)] {
            let mut bytes = record().encode();
            bytes[at] = value;
            assert_eq!(FloorRecord::decode(&signed(bytes)), None, "{value} at {at}");
        }
    }

    fn signed(mut bytes: [u8; SIZE_BYTES]) -> [u8; SIZE_BYTES] {
        let digest = crate::release::digest::Digest::of(&bytes[..480]).0;
        bytes[480..].copy_from_slice(&digest);
        bytes
    }

    #[test]
    fn the_floor_never_falls_and_the_newest_copy_says_the_rest() {
        let old = FloorRecord { sequence: 3, serial: 90, ..FloorRecord::default() };
        let newer = FloorRecord { sequence: 4, serial: 80, refused: vec![release(7)], ..FloorRecord::default() };
        let together = FloorRecord::together(&[old.clone(), newer.clone()]).unwrap();
        assert_eq!(together, FloorRecord { serial: 90, ..newer });
        assert_eq!(FloorRecord::together(&[]), None);
        let mut floor = old;
        assert!(!floor.raise(90) && !floor.raise(1) && !floor.raise(u64::MAX) && floor.raise(91));
    }

    #[test]
    fn the_last_refused_releases_are_kept_and_a_lifted_one_is_not() {
        let mut floor = FloorRecord::default();
        for serial in 0..20 {
            assert!(floor.refuse(release(serial)) && !floor.refuse(release(serial)));
        }
        let kept: Vec<u64> = floor.refused.iter().map(|known| known.serial).collect();
        assert_eq!(kept, (12..20).collect::<Vec<_>>());
        // One that is refused again is the last one again.
        assert!(floor.refuse(release(12)) && floor.refused.len() == MAX_REFUSED && floor.refuses(&release(12)));
        let other = ReleaseId { digest: [0; 8], ..release(15) };
        assert!(!floor.refuses(&other), "another manifest of the same serial");
        assert!(floor.lift(|known| known.serial == 15) && !floor.lift(|known| known.serial == 15));
        assert!(!floor.refuses(&release(15)));
        assert!(floor.allow(release(16)) && !floor.refuses(&release(16)), "a person's choice lifts it");
    }

    #[test]
    fn an_older_release_that_a_person_chose_is_the_only_one_below_until_another_is_good() {
        let mut floor = FloorRecord::default();
        assert!(floor.raise(40) && floor.allow(release(30)) && !floor.allow(release(30)));
        assert_eq!((floor.serial, floor.allowed), (40, Some(release(30))));
        assert!(!floor.raise(30), "what is good below the floor leaves it");
        assert!(floor.allow(release(20)) && floor.allowed == Some(release(20)));
        assert_eq!(floor.lowerings.len(), 2);
        assert!(floor.allow(release(45)) && floor.allowed.is_none() && floor.serial == 40);
        assert!(floor.allow(release(20)) && floor.raise(41) && floor.allowed.is_none());
        for serial in 0..9 {
            floor.allow(release(serial));
        }
        assert_eq!(FloorRecord::decode(&floor.encode()), Some(floor));
    }
}
