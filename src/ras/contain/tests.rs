//! Containment where something is full, damaged or gone. The plain cases are the pipeline's tests.

use super::*;
use crate::ras::pipeline::tests::ContainBench;

const CONTAINED: Stage = Stage::Contained { pages: 1 };

#[test]
fn a_page_that_a_full_set_cannot_remember_is_cut_and_counted_once() {
    let bench = ContainBench::new(1, &[], 0);
    assert!(bench.contain(0));
    assert_eq!(bench.stages(), [CONTAINED]);
    assert!(bench.contain(0x1000));
    assert_eq!(bench.stages(), [Stage::Overflow, CONTAINED]);
    assert!(bench.contain(0x1000));
    assert_eq!(bench.stages(), [Stage::Overflow, Stage::Known]);
    assert_eq!((bench.holes(), bench.lost_pages()), (2, 2));
}

#[test]
fn a_page_that_falls_into_an_earlier_coarse_hole_is_an_error_of_its_own() {
    let bench = ContainBench::new(8, &[], 2 << 20);
    bench.contain(0);
    assert_eq!(bench.stages(), [Stage::Overflow, CONTAINED]);
    bench.contain(0x1000);
    assert_eq!(bench.stages(), [CONTAINED]);
    assert_eq!((bench.holes(), bench.lost_pages()), (1, 2));
}

#[test]
fn a_vm_whose_map_is_damaged_is_given_up_once_and_the_other_loses_the_page() {
    let bench = ContainBench::new(8, &[1], 0);
    assert!(bench.contain(ContainBench::shared()));
    assert_eq!(bench.given_up(), [1]);
    assert_eq!(bench.stages(), [Stage::VmStopped, CONTAINED]);
    assert_eq!(bench.holes(), 1);
    // Whoever runs no more cannot be stopped again.
    bench.contain(ContainBench::shared() + 0x1000);
    assert_eq!(bench.stages(), [CONTAINED]);
}
