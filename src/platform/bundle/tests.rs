use super::*;
use alloc::format;
use proptest::prelude::*;
use std::process::{Command, Stdio};

/// Appends an entry as `cpio -H newc` writes it.
pub(crate) fn entry(archive: &mut Vec<u8>, mode: u32, name: &str, data: &[u8]) {
    archive.extend_from_slice(MAGIC);
    let (data_len, name_len) = (data.len() as u32, name.len() as u32 + 1);
    for field in [1, mode, 0, 0, 1, 0, data_len, 0, 0, 0, 0, name_len, 0] {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// An archive of regular files.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, data) in files {
        entry(&mut archive, MODE_REGULAR | 0o644, name, data);
    }
    entry(&mut archive, 0, TRAILER, &[]);
    archive
}

fn refused(bytes: &[u8]) -> BundleError {
    Bundle::parse(bytes).unwrap_err()
}

#[test]
fn files_are_found_by_name_whatever_surrounds_them() {
    let mut bytes = Vec::new();
    entry(&mut bytes, MODE_DIRECTORY | 0o755, ".", &[]);
    entry(&mut bytes, MODE_REGULAR, "./vms.dtb", b"tree!");
    entry(&mut bytes, MODE_REGULAR, "guests/probe.img", b"");
    entry(&mut bytes, 0, TRAILER, &[]);
    bytes.resize(bytes.len() + 512, 0xa5);
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.get("vms.dtb").unwrap().bytes, b"tree!");
    assert_eq!(bundle.get("guests/probe.img").unwrap().bytes, b"");
    assert_eq!(bundle.get("./vms.dtb"), None);
    assert_eq!(bundle.files().len(), 2);
}

#[test]
fn an_archive_may_end_right_behind_its_trailer() {
    let mut bytes = archive(&[("a", b"data")]);
    bytes.truncate(bytes.len() - 3);
    assert_eq!(Bundle::parse(&bytes).unwrap().files().len(), 1);
    bytes.pop();
    assert_eq!(refused(&bytes), BundleError::Truncated { at: 116 });
}

#[test]
#[cfg_attr(miri, ignore = "runs cpio")]
fn what_cpio_writes_is_read_where_there_is_a_cpio() {
    let dir = std::env::temp_dir().join(format!("cordon-bundle-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("probe.img"), [7; 4097]).unwrap();
    let child = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        std::eprintln!("skipped: no cpio here");
        return;
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b".\nprobe.img\n").unwrap();
    let output = child.wait_with_output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(output.status.success());
    let bundle = Bundle::parse(&output.stdout).unwrap();
    assert_eq!(bundle.get("probe.img").unwrap().bytes, [7; 4097]);
}

#[test]
fn every_way_to_be_wrong_has_its_name() {
    let good = archive(&[("a", b"data")]);
    assert_eq!(refused(&[]), BundleError::NoTrailer);
    assert_eq!(refused(&good[..109]), BundleError::Truncated { at: 0 });
    assert_eq!(refused(&good[..115]), BundleError::Truncated { at: 0 });
    assert_eq!(refused(&good[..116]), BundleError::NoTrailer);
    assert_eq!(refused(&[0x1f; 200]), BundleError::BadMagic { at: 0 });

    let mut odc = good.clone();
    odc[..6].copy_from_slice(b"070707");
    assert_eq!(refused(&odc), BundleError::BadMagic { at: 0 });

    for digit in [b'g', b'+', b' ', 0] {
        let mut bad = good.clone();
        bad[6 + 6 * 8] = digit;
        assert_eq!(refused(&bad), BundleError::BadNumber { at: 0 });
    }

    let mut huge = good.clone();
    huge[54..62].copy_from_slice(b"ffffffff");
    assert_eq!(refused(&huge), BundleError::Truncated { at: 0 });

    let mut long_name = good;
    long_name[94..102].copy_from_slice(b"ffffffff");
    assert_eq!(refused(&long_name), BundleError::BadName { at: 0 });
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    for name in [
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        "a/./b",
        "a b",
        "\u{e9}",
        "./",
    ] {
        assert_eq!(
            refused(&archive(&[(name, b"")])),
            BundleError::BadName { at: 0 },
            "{name}"
        );
    }
}

#[test]
fn a_name_is_there_once() {
    let second = archive(&[("a", b"")]).len() - archive(&[]).len();
    let twice = archive(&[("a", b""), ("./a", b"")]);
    assert_eq!(refused(&twice), BundleError::DuplicateName { at: second });
}

#[test]
fn a_link_is_no_file() {
    let mut bytes = Vec::new();
    entry(&mut bytes, 0o120_777, "link", b"target");
    assert_eq!(refused(&bytes), BundleError::BadKind { at: 0 });
}

#[test]
fn the_number_of_files_is_bounded() {
    let names: Vec<_> = (0..=MAX_FILES).map(|index| format!("f{index}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    assert_eq!(
        Bundle::parse(&archive(&files[1..])).unwrap().files().len(),
        MAX_FILES
    );
    assert_eq!(refused(&archive(&files)), BundleError::TooManyFiles);
}

proptest! {
    #![proptest_config(crate::platform::fuzz_config())]

    #[test]
    fn every_archive_reads_back(
        files in proptest::collection::btree_map("[a-z]{1,9}(/[a-z.]{3,9})?",
            proptest::collection::vec(any::<u8>(), 0..40), 0..8)
    ) {
        let list: Vec<_> =
            files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
        prop_assume!(list.iter().all(|(name, _)| !name.ends_with("/...")));
        let bytes = archive(&list);
        let bundle = Bundle::parse(&bytes).unwrap();
        let read: Vec<_> = bundle.files().iter().map(|file| (file.name, file.bytes)).collect();
        prop_assert_eq!(read, list);
    }

    #[test]
    fn a_damaged_archive_never_panics(
        damage in crate::platform::damage(400),
    ) {
        let mut bytes = archive(&[("vms.dtb", &[1; 37]), ("probe.img", &[2; 64]), ("x/y", &[])]);
        damage.apply(&mut bytes);
        if let Ok(bundle) = Bundle::parse(&bytes) {
            for file in bundle.files() {
                prop_assert!(file.bytes.len() <= bytes.len());
            }
        }
    }
}
