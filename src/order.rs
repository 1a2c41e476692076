//! Short lists in order, and stably so: what is equal keeps its order.
//!
//! std's sort is made for long lists, and costs the agent 3 KB for each type that is sorted. Cards, servers, partitions
//! and the like are a handful. Lists that grow with an image or a file system are sorted by std.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Puts a list in order by what a key says of its members.
pub fn by_key<T, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    by(list, |one, other| key(one).cmp(&key(other)));
}

/// Puts a list in order by a comparison.
pub fn by<T>(list: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    for end in 1..list.len() {
        let (sorted, rest) = list.split_at(end);
        let place = sorted.partition_point(|other| compare(other, &rest[0]).is_le());
        (place..end).rev().for_each(|at| list.swap(at, at + 1));
    }
}

/// Collects pairs into a map; of equal keys the last counts. `collect` sorts them first, and costs 5 KB for each type.
pub fn map<K: Ord, V>(pairs: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(pairs);
    map
}

#[cfg(test)]
mod tests {
    use super::by_key;
    use proptest::prelude::{any, prop, proptest};

    proptest! {
        #[test]
        fn it_is_the_order_of_std(mut list in prop::collection::vec((any::<u8>(), any::<u8>()), 0..40)) {
            let mut expected = list.clone();
            expected.sort_by_key(|(first, _)| *first / 8);
            by_key(&mut list, |(first, _)| *first / 8);
            assert_eq!(list, expected);
        }
    }
}
