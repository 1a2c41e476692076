//! Placement of everything in an image: pure decisions about inode numbers and blocks.
//!
//! A file that did not change keeps its number and its blocks. A large one that changed keeps them as well, so that
//! those of its blocks that are still the same need not even be written. One that changed and is smaller than a chunk
//! of a release is put together with other new files into the largest free stretches: scattered over the places of
//! their predecessors, small files would change as many chunks, each of which carries blocks of neighbours that did not
//! change. The places that they leave become zeros, and a chunk of old blocks and zeros costs no download.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::attributes;
use super::content::Content;
use super::directory::{self, Page};
use super::extents::{self, BlockRun};
use super::geometry::{Geometry, RESERVED_INODES, ROOT};
use super::placed::InodePlace;
use super::read::Old;
use super::space::{Pool, Space};
use super::tree::{self, NodeKind};
use crate::size::to_usize;

/// Smallest number of blocks with which a changed file stays where it is: those of the usual chunk of a release. For an
/// update of Debian's packages, 1, 4 and 16 make no difference to the download in chunks of 16 KiB (28.3, 28.0, 28.0
/// MiB), but they do to what is written (26.6, 28.7, 29.9 MiB), and with a new kernel to both (173, 174, 175 and 161,
/// 166, 189 MiB). With chunks of 64 KiB, 1 costs 5 % more to download than 4.
const LARGE: u64 = 4;

/// Layout of an image: the place of everything, by the indices of [`Content`].
#[derive(Debug)]
pub struct BlockPlan {
    /// Place of every inode.
    pub places: Vec<InodePlace>,
    /// Map of used blocks.
    pub space: Space,
    /// Figures of what stayed in place.
    pub figures: Figures,
}

/// Counts of what stayed in place and what moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Blocks of files, links and directories.
    pub blocks: u64,
    /// Blocks whose content is the same and in the same place as before.
    pub kept_blocks: u64,
    /// Files that have content.
    pub files: u64,
    /// Pieces that these files lie in, without those that holes make.
    pub pieces: u64,
}

/// Decides on all places.
///
/// # Errors
/// Fails when the content does not fit.
pub fn place(content: &Content, old: &Old, geometry: &Geometry) -> Result<BlockPlan> {
    let before = tree::continued(&old.nodes, &content.nodes);
    let numbers = numbers(&before, old, geometry)?;
    // Everything that stays is placed first, then new things in what is left.
    let mut space = Space::new(geometry.blocks, geometry.tables());
    let (mut wanted, mut figures) = (Vec::with_capacity(before.len()), Figures::default());
    for (at, before) in before.iter().enumerate() {
        let previous = before.map(|was| (&old.places[was], old.nodes[was].digest == content.nodes[at].digest));
        let one = Wanted::new(content, at, previous, &mut space)?;
        figures.blocks += one.blocks.len() as u64;
        if matches!(previous, Some((_, true))) {
            figures.kept_blocks += one.blocks.len() as u64 - one.missing();
        }
        wanted.push(one);
    }
    let missing: u64 = wanted.iter().map(Wanted::missing).sum();
    ensure!(
        missing <= space.free(),
        "the content does not fit: {missing} blocks of 4 KiB are still to be placed, {} are free",
        space.free()
    );
    let mut pool = space.pool();
    // Directories lie together because they change together.
    for kind in [NodeKind::Directory, NodeKind::File, NodeKind::Symlink] {
        for (one, _) in wanted.iter_mut().zip(&content.nodes).filter(|(_, node)| node.kind == kind) {
            one.fill(&mut pool)?;
        }
    }
    let mut places = Vec::with_capacity(wanted.len());
    for ((one, node), number) in wanted.into_iter().zip(&content.nodes).zip(numbers) {
        let place = one.into_place(number, &mut pool, &mut space)?;
        if node.kind == NodeKind::File && !place.runs.is_empty() {
            figures.files += 1;
            figures.pieces += pieces(&place.runs);
        }
        places.push(place);
    }
    pool.taken().for_each(|block| {
        space.claim(block);
    });
    Ok(BlockPlan { places, space, figures })
}

/// Counts the pieces that lie apart on the medium: a hole, or the limited length of one entry, does not count.
fn pieces(runs: &[BlockRun]) -> u64 {
    let apart = runs.windows(2).filter(|pair| pair[0].physical + pair[0].blocks != pair[1].physical);
    1 + apart.count() as u64
}

/// Assigns numbers to inodes: those that stay, then the lowest free ones.
fn numbers(before: &[Option<usize>], old: &Old, geometry: &Geometry) -> Result<Vec<u32>> {
    let (last, mut used) = (geometry.inodes(), BTreeSet::new());
    let mut numbers: Vec<Option<u32>> = Vec::with_capacity(before.len());
    for (at, before) in before.iter().enumerate() {
        let kept = before.map(|was| old.places[was].number).filter(|number| (RESERVED_INODES..=last).contains(number));
        let number = if at == 0 { Some(ROOT) } else { kept };
        // A damaged image may have the same number twice.
        numbers.push(number.filter(|number| used.insert(*number)));
    }
    let mut free = (RESERVED_INODES + 1..=last).filter(|number| !used.contains(number));
    let all: Option<Vec<u32>> = numbers.into_iter().map(|number| number.or_else(|| free.next())).collect();
    all.ok_or_else(|| {
        anyhow::anyhow!(
            "the file system has {} inodes, the content needs {}",
            last,
            before.len() + RESERVED_INODES as usize
        )
    })
}

/// Needs of one inode that have no place yet.
struct Wanted {
    /// Blocks of the file, and where they lie as far as that is decided.
    blocks: Vec<(u64, Option<u64>)>,
    tree_blocks: Vec<u64>,
    attribute_block: Option<u64>,
    needs_attribute_block: bool,
    pages: Vec<Page>,
}

impl Wanted {
    /// Starts from where the inode lay before, and whether its content is the same (`previous`). Blocks that stay are
    /// claimed.
    fn new(content: &Content, at: usize, previous: Option<(&InodePlace, bool)>, space: &mut Space) -> Result<Self> {
        let (node, inode) = (&content.nodes[at], &content.inodes[at]);
        let needs_attribute_block = attributes::need_block(&inode.attributes)?;
        let mut wanted = Self {
            blocks: inode.data.iter().flat_map(Clone::clone).map(|logical| (logical, None)).collect(),
            tree_blocks: Vec::new(),
            attribute_block: None,
            needs_attribute_block,
            pages: Vec::new(),
        };
        if node.kind == NodeKind::Directory {
            let before = previous.map(|(place, _)| place.pages.as_slice()).unwrap_or_default();
            wanted.pages = directory::pages(before, node.children.keys());
            wanted.blocks = (0..wanted.pages.len() as u64).map(|logical| (logical, None)).collect();
        }
        let Some((place, same)) = previous else { return Ok(wanted) };
        if same || node.kind == NodeKind::Directory || wanted.blocks.len() as u64 >= LARGE {
            for (logical, found) in &mut wanted.blocks {
                let before = match wanted.pages.get(to_usize(*logical)) {
                    Some(page) => page.before.map(|before| before as u64),
                    None => Some(*logical),
                };
                let block = before.and_then(|before| physical(&place.runs, before));
                *found = block.filter(|block| space.claim(*block));
            }
            wanted.tree_blocks = place.tree_blocks.iter().copied().filter(|block| space.claim(*block)).collect();
        }
        if needs_attribute_block {
            wanted.attribute_block = place.attribute_block.filter(|block| space.claim(*block));
        }
        Ok(wanted)
    }

    /// Counts the blocks of content that have no place yet.
    fn missing(&self) -> u64 {
        self.blocks.iter().filter(|(_, place)| place.is_none()).count() as u64
    }

    /// Takes places for the missing blocks.
    fn fill(&mut self, pool: &mut Pool) -> Result<()> {
        let found = pool.take(self.missing());
        let missing: Vec<&mut Option<u64>> =
            self.blocks.iter_mut().map(|(_, place)| place).filter(|place| place.is_none()).collect();
        ensure!(found.len() == missing.len(), "the content does not fit");
        missing.into_iter().zip(found).for_each(|(place, found)| *place = Some(found));
        Ok(())
    }

    /// Takes blocks for extents and attributes. All content has a place already.
    fn into_place(self, number: u32, pool: &mut Pool, space: &mut Space) -> Result<InodePlace> {
        let mut runs = Vec::new();
        for (logical, place) in self.blocks {
            extents::push(&mut runs, logical, place.context("a block has no place")?);
        }
        let (mut tree_blocks, needed) = (self.tree_blocks, extents::tree_blocks(runs.len()));
        for extra in tree_blocks.drain(needed.min(tree_blocks.len())..) {
            space.release(extra);
        }
        tree_blocks.extend(pool.take((needed - tree_blocks.len()) as u64));
        let attribute_block = match self.attribute_block {
            None if self.needs_attribute_block => pool.take(1).first().copied(),
            kept => kept,
        };
        let complete = tree_blocks.len() == needed && attribute_block.is_some() == self.needs_attribute_block;
        ensure!(complete, "the content does not fit");
        let pages = self.pages.into_iter().map(|page| page.names).collect();
        Ok(InodePlace { number, runs, tree_blocks, attribute_block, pages })
    }
}

fn physical(runs: &[BlockRun], logical: u64) -> Option<u64> {
    let at = runs.partition_point(|run| run.logical + run.blocks <= logical);
    runs.get(at).filter(|run| run.logical <= logical).map(|run| run.physical + logical - run.logical)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::{BlockPlan, place};
    use crate::image::ext4::content::{Content, ContentSource, Inode};
    use crate::image::ext4::geometry::{Geometry, Group};
    use crate::image::ext4::read::Old;
    use crate::image::ext4::tree::{Node, NodeKind};
    use crate::size::to_usize;

    /// Numbers that look random and are the same every time.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    fn geometry(blocks: u64) -> Geometry {
        let group = Group { block_bitmap: 2, inode_bitmap: 3, inode_table: 4 };
        Geometry { blocks, inodes_per_group: 4096, features: [0; 3], uuid: [0; 16], groups: vec![group] }
    }

    fn inode(blocks: u64) -> Inode {
        Inode {
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            bytes: blocks * 4096,
            source: ContentSource::Bytes(Vec::new()),
            data: Vec::from_iter((blocks > 0).then_some(0..blocks)),
            attributes: Vec::new(),
            parent: 0,
        }
    }

    /// Makes a directory of files by name, each with a number for its content and a number of blocks.
    fn content(files: &BTreeMap<u64, (u64, u64)>) -> Content {
        let node = |kind, digest| Node { kind, digest, children: BTreeMap::new() };
        let mut content = Content { nodes: vec![node(NodeKind::Directory, [0; 32])], inodes: vec![inode(0)] };
        for (at, (name, (said, blocks))) in (1..).zip(files) {
            content.nodes[0].children.insert(format!("{name:>40}").into_bytes(), at);
            content.nodes.push(node(
                NodeKind::File,
                *blake3::hash(&[said.to_le_bytes(), blocks.to_le_bytes()].concat()).as_bytes(),
            ));
            content.inodes.push(inode(*blocks));
        }
        content
    }

    fn assert_sound(layout: &BlockPlan, content: &Content, geometry: &Geometry) {
        let mut used: HashSet<u64> = geometry.tables().collect();
        let mut numbers = HashSet::new();
        for (place, inode) in layout.places.iter().zip(&content.inodes) {
            assert!(numbers.insert(place.number));
            let blocks: u64 = place.runs.iter().map(|run| run.blocks).sum();
            assert_eq!(blocks * 4096, inode.bytes.max(place.pages.len() as u64 * 4096));
            let own = place.runs.iter().flat_map(|run| run.physical..run.physical + run.blocks);
            assert!(own.chain(place.tree_blocks.iter().copied()).all(|block| used.insert(block)), "taken twice");
        }
        assert!((0..geometry.blocks).all(|block| layout.space.is_used(block) == used.contains(&block)));
    }

    #[test]
    fn many_releases_later_files_still_lie_in_one_piece() {
        let mut random = Random(1);
        let mut files: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for name in 0..1200 {
            // Sizes are as in an image: most files are small, a few hold most of the bytes.
            let blocks = [random.below(4), random.below(20), random.below(20), random.below(400)][to_usize(name % 4)];
            files.insert(name, (0, blocks));
        }
        let first = content(&files);
        // This is the margin that an image made afresh gets.
        let geometry = geometry(first.blocks().unwrap() * 17 / 16 + 300);
        let mut layout = place(&first, &Old::default(), &geometry).unwrap();
        assert_eq!((layout.figures.pieces, layout.figures.kept_blocks), (layout.figures.files, 0));
        let mut old = Old { nodes: first.nodes, places: layout.places };
        for release in 1..=40 {
            for _ in 0..60 {
                let Some((&name, &(_, blocks))) = files.iter().nth(to_usize(random.below(1200))) else { continue };
                // A file becomes a few percent smaller or larger, or another one takes its place.
                let blocks = (blocks * (97 + random.below(7)) / 100).min(400);
                files.insert(name, (release, blocks));
            }
            files.pop_first();
            files.insert(release + 2000, (release, random.below(60)));
            let next = content(&files);
            layout = place(&next, &old, &geometry).unwrap();
            assert_sound(&layout, &next, &geometry);
            let figures = layout.figures;
            assert!(figures.kept_blocks * 100 > figures.blocks * 80, "{figures:?}");
            assert!(figures.pieces * 100 < figures.files * 120, "release {release}: {figures:?}");
            old = Old { nodes: next.nodes, places: layout.places };
        }
    }

    #[test]
    fn small_changed_files_lie_together_and_large_ones_stay() {
        let mut files: BTreeMap<u64, (u64, u64)> = (0..100).map(|name| (name, (0, 2))).collect();
        files.insert(100, (0, 50));
        let first = content(&files);
        let geometry = geometry(3000);
        let before = place(&first, &Old::default(), &geometry).unwrap().places;
        for name in [10, 50, 90, 100] {
            files.insert(name, (1, files[&name].1));
        }
        let second = content(&files);
        let after = place(&second, &Old { nodes: first.nodes, places: before.clone() }, &geometry).unwrap().places;
        let starts = |name: usize| (before[name + 1].runs[0].physical, after[name + 1].runs[0].physical);
        assert_eq!(starts(100).0, starts(100).1);
        let moved: Vec<u64> = [10, 50, 90].map(|name| starts(name).1).to_vec();
        assert_eq!(moved, [moved[0], moved[0] + 2, moved[0] + 4]);
        assert!((0..100).filter(|name| starts(*name).0 != starts(*name).1).eq([10, 50, 90]));
        assert!(before.iter().zip(&after).all(|(before, after)| before.number == after.number));
    }

    #[test]
    fn content_that_does_not_fit_is_refused_with_figures() {
        let files = BTreeMap::from([(0, (0, 5000))]);
        let error = place(&content(&files), &Old::default(), &geometry(3000)).unwrap_err().to_string();
        assert!(error.contains("5001 blocks") && error.contains("free"), "{error}");
        let many: BTreeMap<u64, (u64, u64)> = (0..5000).map(|name| (name, (0, 0))).collect();
        let error = place(&content(&many), &Old::default(), &geometry(9000)).unwrap_err().to_string();
        assert!(error.contains("4096 inodes"), "{error}");
    }
}
