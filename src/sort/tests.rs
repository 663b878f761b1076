use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn it_sorts_as_the_library_does(mut items in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut wanted = items.clone();
        wanted.sort_unstable();
        sort(&mut items);
        prop_assert_eq!(items, wanted);
    }

    #[test]
    fn a_key_decides_and_nothing_is_lost(
        mut items in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..80)
    ) {
        let mut wanted = items.clone();
        sort_by_key(&mut items, |item| item.1);
        prop_assert!(items.is_sorted_by_key(|item| item.1));
        wanted.sort_unstable();
        items.sort_unstable();
        prop_assert_eq!(items, wanted);
    }
}
