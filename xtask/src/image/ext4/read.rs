//! Reader of an image, which finds out what lies where: the other half of [`mod@super::write`].

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::bytes::{u16_at, u32_at};
use super::digest::ContentDigest;
use super::directory;
use super::extents::{self, BlockRun};
use super::geometry::{BLOCK, EXTENTS_FLAG, Geometry, INODE, ROOT};
use super::placed::InodePlace;
use super::tree::{Node, NodeKind};
use crate::size::to_usize;

/// Blocks read at a time.
const STRETCH: u64 = 256;

/// Content of an existing image: `places` belong to the `nodes` with the same index.
#[derive(Debug, Default)]
pub struct Old {
    /// Names and digests.
    pub nodes: Vec<Node>,
    /// Numbers and blocks.
    pub places: Vec<InodePlace>,
}

impl Old {
    /// Reads an image. The file may come from anywhere: any fault in it ends in an error.
    ///
    /// # Errors
    /// Fails when the image is damaged, or has something that the builder never makes.
    pub fn read(image: &File, geometry: &Geometry) -> Result<Self> {
        let mut reader = Reader { image, geometry, old: Self::default(), known: HashMap::new() };
        reader.add(ROOT)?;
        let mut at = 0;
        while at < reader.old.nodes.len() {
            if reader.old.nodes[at].kind == NodeKind::Directory {
                reader.descend(at).with_context(|| format!("directory with inode {}", reader.old.places[at].number))?;
            }
            at += 1;
        }
        Ok(reader.old)
    }
}

struct Reader<'a> {
    image: &'a File,
    geometry: &'a Geometry,
    old: Old,
    /// Index into `old` by inode number.
    known: HashMap<u32, usize>,
}

impl Reader<'_> {
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        ensure!(number < self.geometry.blocks, "block {number} is outside of the file system");
        let mut block = vec![0; to_usize(BLOCK)];
        self.image.read_exact_at(&mut block, number * BLOCK).with_context(|| format!("read block {number}"))?;
        Ok(block)
    }

    fn descend(&mut self, at: usize) -> Result<()> {
        let blocks: Vec<u64> =
            self.old.places[at].runs.iter().flat_map(|run| run.physical..run.physical + run.blocks).collect();
        let mut pages = Vec::new();
        for block in blocks {
            let entries = directory::decode(&self.block(block)?)?;
            let mut names = Vec::new();
            for (number, name) in entries.into_values() {
                let child = match self.known.get(&number) {
                    Some(&child) => {
                        ensure!(
                            self.old.nodes[child].kind != NodeKind::Directory,
                            "inode {number} is in two directories"
                        );
                        child
                    }
                    None => self.add(number).with_context(|| format!("inode {number}"))?,
                };
                self.old.nodes[at].children.insert(name.clone(), child);
                names.push(name);
            }
            pages.push(names);
        }
        self.old.places[at].pages = pages;
        Ok(())
    }

    fn add(&mut self, number: u32) -> Result<usize> {
        ensure!(
            (1..=self.geometry.inodes()).contains(&number),
            "the file system has only {} inodes",
            self.geometry.inodes()
        );
        let mut inode = [0; to_usize(INODE)];
        self.image.read_exact_at(&mut inode, self.geometry.inode_at(number)).context("read the inode")?;
        let kind = match u16_at(&inode, 0) & 0xf000 {
            0x4000 => NodeKind::Directory,
            0x8000 => NodeKind::File,
            0xa000 => NodeKind::Symlink,
            other => bail!("an image of the builder has no inodes of type {other:x}"),
        };
        let bytes = u64::from(u32_at(&inode, 4)) | u64::from(u32_at(&inode, 0x6c)) << 32;
        let in_inode = &inode[0x28..0x28 + 60];
        let has_runs = u32_at(&inode, 0x20) & EXTENTS_FLAG != 0;
        let (runs, tree_blocks) =
            if has_runs { extents::decode(in_inode, &mut |block| self.block(block))? } else { Default::default() };
        let inside = |run: &BlockRun| run.physical + run.blocks <= self.geometry.blocks;
        let ordered = runs.windows(2).all(|pair| pair[0].logical + pair[0].blocks <= pair[1].logical);
        ensure!(ordered && runs.iter().all(inside), "the extents are damaged");
        let digest = match kind {
            NodeKind::Directory => [0; 32],
            _ if has_runs => self.digest(&runs, bytes)?,
            _ => {
                let target = in_inode
                    .get(..to_usize(bytes))
                    .context("the content is neither in blocks nor the short target of a link")?;
                ContentDigest::of(target)
            }
        };
        let attributes = u64::from(u32_at(&inode, 0x68)) | u64::from(u16_at(&inode, 0x76)) << 32;
        let attribute_block = (attributes != 0).then_some(attributes);
        self.known.insert(number, self.old.nodes.len());
        self.old.nodes.push(Node { kind, digest, children: Default::default() });
        self.old.places.push(InodePlace { number, runs, tree_blocks, attribute_block, pages: Vec::new() });
        Ok(self.old.nodes.len() - 1)
    }

    fn digest(&self, runs: &[BlockRun], bytes: u64) -> Result<[u8; 32]> {
        let mut digest = ContentDigest::default();
        let mut buffer = vec![0; to_usize((STRETCH * BLOCK).min(bytes))];
        for run in runs {
            let mut done = 0;
            while done < run.blocks {
                let from = (run.logical + done) * BLOCK;
                let length = (STRETCH.min(run.blocks - done) * BLOCK).min(bytes.saturating_sub(from));
                let stretch = &mut buffer[..to_usize(length)];
                self.image.read_exact_at(stretch, (run.physical + done) * BLOCK).context("read the content")?;
                digest.update(run.logical + done, stretch);
                done += STRETCH;
            }
        }
        Ok(digest.finish(bytes))
    }
}
