//! Which groups of a release a plan downloads in the place of single frames.

use super::requests::{coalesce, joined_numbers};
use super::{ChunkPlaces, KeptFrames, Plan, Request};
use crate::release::groups::{ChunkGroup, Groups};
use crate::release::index::{Index, StoredChunkNo};

/// The least bytes of frames for each byte of the table of groups: the table must not cost more than one part in a
/// hundred, since a group may spare nothing.
const FRAME_BYTES_PER_TABLE_BYTE: u64 = 100;

impl Plan {
    /// Whether a table of groups of so many bytes may be worth its download.
    #[must_use]
    pub fn is_worth_groups(&self, table_bytes: u64) -> bool {
        let network = self.requests.iter().filter(|request| !self.is_local(request));
        let frame_bytes: u64 = network.map(Request::bytes).sum();
        frame_bytes / FRAME_BYTES_PER_TABLE_BYTE >= table_bytes
    }

    /// Takes chunks from groups, each where it has fewer bytes than the frames of those members that are needed.
    #[must_use]
    pub fn with_groups(mut self, index: &Index, groups: Groups) -> Self {
        let needed = self.needed();
        // Bytes that a group spares; what is kept on the partition costs nothing.
        let mut frame_bytes = vec![0_u64; index.stored_count() as usize];
        for stored in &needed {
            if !self.kept.as_ref().is_some_and(|kept: &KeptFrames| kept.has(*stored)) {
                let range = index.location(*stored).range;
                frame_bytes[*stored as usize] = range.end - range.start;
            }
        }
        let is_cheaper = |group: &ChunkGroup<'_>| {
            let frames: u64 = group.members.iter().flatten().map(|stored| frame_bytes[*stored as usize]).sum();
            group.range.end - group.range.start < frames
        };
        let used: Vec<u32> = (0..groups.len()).filter(|number| is_cheaper(&groups.get(*number))).collect();
        let mut is_grouped = vec![false; frame_bytes.len()];
        for stored in used.iter().flat_map(|number| groups.get(*number).members).flatten() {
            is_grouped[*stored as usize] = true;
        }
        let single: Vec<StoredChunkNo> = needed.into_iter().filter(|stored| !is_grouped[*stored as usize]).collect();
        self.requests = coalesce(ChunkPlaces::with(index, self.kept.as_ref()), &single);
        self.group_requests = joined_numbers(used.into_iter().map(|number| {
            let ChunkGroup { pack, range, .. } = groups.get(number);
            (number, groups.packs()[pack as usize].digest, range)
        }));
        self.groups = groups;
        self.count_downloads();
        self
    }

    /// Stored chunks that have to be fetched, ascending.
    pub(super) fn needed(&self) -> Vec<StoredChunkNo> {
        let mut needed: Vec<StoredChunkNo> = self.destinations.iter().map(|(stored, _)| *stored).collect();
        needed.dedup();
        needed
    }
}

#[cfg(test)]
mod tests {
    use crate::flash::plan::tests::index;
    use crate::flash::plan::{Comparison, FramePlace, KeptFrames, Plan, Reuse};
    use crate::release::digest::Digest;
    use crate::release::groups::Groups;
    use crate::release::index::{Index, Pack, StoredChunkNo};

    /// Frames have 10,000 bytes each.
    const GROUP_BYTES: u32 = 25_000;

    fn image() -> Index {
        index(&(0..12).map(Some).collect::<Vec<_>>())
    }

    /// Three groups of four chunks, in two packs; the second has a member that the image does not have.
    fn groups() -> Groups {
        let pack = |name: &[u8]| Pack { digest: Digest::of(name), size_bytes: 100_000 };
        let mut groups = Groups::default();
        let push = |groups: &mut Groups, at: u32, members: [Option<StoredChunkNo>; 4]| {
            let start = u64::from(at * GROUP_BYTES);
            groups.push_to_last(start..start + u64::from(GROUP_BYTES), [0; 16], &members);
        };
        groups.push_pack(pack(b"one"));
        push(&mut groups, 0, [0, 1, 2, 3].map(Some));
        push(&mut groups, 1, [Some(4), Some(5), None, Some(6)]);
        groups.push_pack(pack(b"two"));
        push(&mut groups, 0, [8, 9, 10, 11].map(Some));
        groups
    }

    fn plan(right: &[u32], kept: Option<KeptFrames>) -> Plan {
        let index = image();
        let comparison = Comparison::new(&index, (0..12).map(|chunk| right.contains(&chunk)).collect());
        Plan::new(&index, &comparison, Reuse { kept, ..Reuse::default() }).with_groups(&index, groups())
    }

    fn numbers(plan: &Plan) -> Vec<u32> {
        plan.group_requests.iter().flat_map(|request| request.numbers.clone()).collect()
    }

    fn singles(plan: &Plan) -> Vec<u32> {
        plan.requests.iter().flat_map(|request| request.stored.clone()).collect()
    }

    #[test]
    fn a_blank_partition_takes_groups_and_the_rest_by_itself() {
        let plan = plan(&[], None);
        assert_eq!((numbers(&plan), singles(&plan)), (vec![0, 1, 2], vec![7]));
        // One request for neighbours in a pack.
        assert_eq!(plan.group_requests.len(), 2);
        assert_eq!(plan.totals.download_bytes, 3 * u64::from(GROUP_BYTES) + 10_000);
    }

    #[test]
    fn a_group_is_taken_where_it_has_fewer_bytes() {
        // Three of four frames have 30,000 bytes, two have 20,000.
        let three_of_four = plan(&[0, 4], None);
        assert_eq!((numbers(&three_of_four), singles(&three_of_four)), (vec![0, 2], vec![5, 6, 7]));
        let none = plan(&[0, 1, 4, 8, 9], None);
        assert_eq!((numbers(&none), singles(&none)), (vec![], vec![2, 3, 5, 6, 7, 10, 11]));
        // With a gap of one frame that is downloaded too.
        assert!(none.is_worth_groups(800) && !none.is_worth_groups(801));
    }

    #[test]
    fn what_is_kept_is_not_downloaded_with_a_group() {
        let frames = [0, 1, 8].map(|stored| FramePlace { stored, length: 70, offset: 4096 * u64::from(stored) });
        let kept = KeptFrames::new(&image(), Pack { digest: Digest::of(b"kept"), size_bytes: 1 << 20 }, frames.into());
        let plan = plan(&[], Some(kept));
        // The first group would bring two frames, 20,000 bytes. Of the last one everything is taken once it comes.
        assert_eq!((numbers(&plan), singles(&plan)), (vec![1, 2], vec![2, 3, 7, 0, 1]));
    }
}
