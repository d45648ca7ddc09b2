//! The seed as the programs see it that look for it.

mod common;

use basin_model::vm::CloudInit;
use basin_model::{MacAddr, Name};
use basin_storage::{SeedInput, build_seed};
use common::*;

const DOCUMENTS: [&str; 3] = ["meta-data", "user-data", "network-config"];

#[test]
fn other_programs_read_the_seed_by_its_label_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.iso");
    let hostname: Name = "web-1".parse().unwrap();
    let given = "#cloud-config\nruncmd:\n- [echo, 'grüß dich']\n".to_owned() + &"#".repeat(70_000);
    let cloud_init = CloudInit { user_data: Some(given.clone()), ..CloudInit::default() };
    let macs = [MacAddr::from_random([1, 2, 3])];
    let input =
        SeedInput { instance_id: "i-1", hostname: &hostname, cloud_init: &cloud_init, macs: &macs };
    let image = build_seed(&input).unwrap();
    assert_eq!(image, build_seed(&input).unwrap());
    std::fs::write(&path, image).unwrap();
    let path = text(&path);

    let probe = run("blkid", &["-p", "-o", "export", path]);
    assert!(probe.lines().any(|l| l == "LABEL=cidata"), "{probe}");
    assert!(probe.lines().any(|l| l == "TYPE=iso9660"), "{probe}");
    // Rock Ridge, Joliet, and neither.
    for option in ["-R", "-J"] {
        for document in DOCUMENTS {
            let read = run("isoinfo", &["-i", path, option, "-x", &format!("/{document}")]);
            match document {
                "user-data" => assert_eq!(read, given, "{option}"),
                "meta-data" => assert!(read.contains("local-hostname: web-1"), "{option} {read}"),
                _ => assert!(read.contains("52:54:00:01:02:03"), "{option} {read}"),
            }
        }
    }
    assert_eq!(run("isoinfo", &["-i", path, "-x", "/FILE01.;1"]), given);
    let list = run("isoinfo", &["-i", path, "-l", "-R"]);
    assert!(list.contains("-r--r--r--"), "{list}");
}
