//! Place of one inode: where it lies in an existing image, or is to lie in the next one.

use super::extents::BlockRun;
use super::tree::Name;

/// Place of one inode and its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InodePlace {
    /// Number of the inode.
    pub number: u32,
    /// Blocks of the content.
    pub runs: Vec<BlockRun>,
    /// Blocks of the tree that lists the runs.
    pub tree_blocks: Vec<u64>,
    /// Block of extended attributes.
    pub attribute_block: Option<u64>,
    /// Names in each block of a directory.
    pub pages: Vec<Vec<Name>>,
}
