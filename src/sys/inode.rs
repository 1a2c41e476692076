//! What tells one inode of a file system from every other, also from one that had its number before.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

/// Identity of an inode: what a file or directory is known by, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeIdentity {
    /// Number of the inode. It is given out again.
    pub inode: u64,
    /// Time at which the inode was made, in nanoseconds since 1970.
    pub made_ns: u64,
    /// Kind and permissions.
    pub mode: u16,
    /// Number of the owner.
    pub owner: u32,
    /// Number of the group.
    pub group: u32,
}

impl InodeIdentity {
    /// Returns the identity of what lies at `path`, which is not followed.
    ///
    /// `None` where there is nothing, or a file system that does not say when it was made.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted).ok()?;
        if found.stx_mask & StatxFlags::BTIME.bits() == 0 {
            return None;
        }
        let (seconds, rest) = (u64::try_from(found.stx_btime.tv_sec).ok()?, u64::from(found.stx_btime.tv_nsec));
        Some(Self {
            inode: found.stx_ino,
            made_ns: seconds.checked_mul(1_000_000_000)?.checked_add(rest)?,
            mode: found.stx_mode,
            owner: found.stx_uid,
            group: found.stx_gid,
        })
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_directory(self) -> bool {
        FileType::from_raw_mode(self.mode.into()) == FileType::Directory
    }

    /// Whether this is the same file, whatever has become of its owner and permissions.
    #[must_use]
    pub fn is(self, other: Self) -> bool {
        let kind = |mode: u16| FileType::from_raw_mode(mode.into());
        (self.inode, self.made_ns, kind(self.mode)) == (other.inode, other.made_ns, kind(other.mode))
    }
}
