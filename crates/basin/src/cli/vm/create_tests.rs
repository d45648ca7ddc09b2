//! Tests of `basin vm create`: what the flags mean.

use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: CreateArgs,
}

fn read(path: &Path) -> Result<String, CliError> {
    match path.to_str() {
        Some("id.pub") => Ok("# mine\nssh-ed25519 AAAA me\nssh-rsa BBBB you\n".to_owned()),
        Some("id") => Ok("-----BEGIN OPENSSH PRIVATE KEY-----".to_owned()),
        Some("user-data") => Ok("#cloud-config\n".to_owned()),
        Some("vm.yaml") => Ok("name: filed\nvcpus: 2\nmemory_bytes: 1024\n\
             boot: {firmware: uefi}\ndisks:\n- disk: {is: existing, volume: data}\n"
            .to_owned()),
        Some("vm.json") => Ok(r#"{"name": "filed", "vcpus": 2, "memory_bytes": 1024}"#.to_owned()),
        Some("typo.yaml") => Ok("name: filed\nvcpu: 2\nmemory_bytes: 1024\n".to_owned()),
        _ => Err(CliError::failed("no such file", "")),
    }
}

fn request(line: &str) -> Result<VmCreate, String> {
    let words = std::iter::once("create").chain(line.split_whitespace());
    let line = Line::try_parse_from(words).map_err(|e| e.to_string())?;
    line.args.request(&read).map_err(|e| format!("{e:?}"))
}

/// `expect` is what differs from the barest VM.
fn check(line: &str, expect: Value) {
    let created = request(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    let mut bare = json!({
        "name": "web", "description": "", "labels": {}, "vcpus": 1, "memory_bytes": 1 << 30,
        "machine": "q35", "boot": {"firmware": "bios"}, "disks": [], "cdroms": [],
        "policy": {"guest_crash": "restart", "machine_death": "restart"}, "start": false,
    });
    let (Value::Object(bare_fields), Value::Object(expect)) = (&mut bare, expect) else {
        panic!("not an object");
    };
    bare_fields.extend(expect);
    assert_eq!(serde_json::to_value(created).expect("JSON"), bare, "{line}");
}

#[test]
fn flags() {
    check("web", json!({}));
    check(
        "web --cpus 4 --memory 2GiB --cpu-model host --machine microvm --start",
        json!({"vcpus": 4, "memory_bytes": 2u64 << 30, "cpu_model": "host", "machine": "microvm",
               "start": true}),
    );
    check(
        "web --label a=b --label c=d --description words",
        json!({"labels": {"a": "b", "c": "d"}, "description": "words"}),
    );
    check("web --uefi --iso dvd", json!({"boot": {"firmware": "uefi"}, "cdroms": ["dvd"]}));
    check(
        "web --kernel linux --initrd busybox --cmdline quiet",
        json!({"boot": {"firmware": "kernel", "kernel": "linux", "initrd": "busybox",
                        "command_line": "quiet"}}),
    );
    check(
        "web --on-death stop",
        json!({"policy": {"guest_crash": "restart", "machine_death": "stop"}}),
    );
}

#[test]
fn disks_in_boot_order() {
    check(
        "web --disk volume=data,ro --image debian-12 --disk-size 20GiB --clone full",
        json!({"disks": [
            {"disk": {"is": "new", "source": {"from": "image", "image": "debian-12",
             "clone": "full", "size_bytes": 20u64 << 30}}, "read_only": false},
            {"disk": {"is": "existing", "volume": "data"}, "read_only": true},
        ]}),
    );
}

#[test]
fn networks() {
    check("web --no-network", json!({"nics": []}));
    check(
        "web --network lab --network dmz,address=10.0.0.9",
        json!({"nics": [{"network": "lab"}, {"network": "dmz", "address": "10.0.0.9"}]}),
    );
}

#[test]
fn cloud_init() {
    check(
        "web --user me --ssh-key id.pub",
        json!({"cloud_init": {"user": "me",
               "ssh_keys": ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"]}}),
    );
    check("web --user-data user-data", json!({"cloud_init": {"user_data": "#cloud-config\n"}}));
}

#[test]
fn files() {
    check("-f vm.json", json!({"name": "filed", "vcpus": 2, "memory_bytes": 1024}));
    check(
        "other -f vm.json --start",
        json!({"name": "other", "vcpus": 2, "memory_bytes": 1024, "start": true}),
    );
    check(
        "-f vm.yaml",
        json!({"name": "filed", "vcpus": 2, "memory_bytes": 1024, "boot": {"firmware": "uefi"},
               "disks": [{"disk": {"is": "existing", "volume": "data"}, "read_only": false}]}),
    );
}

/// What `--dry-run` prints makes the same VM.
#[test]
fn a_printed_file_is_read_again() {
    let line = "web --image debian-12 --disk size=1GiB --network lab --user me --ssh-key id.pub \
                --kernel k --on-crash leave --label a=b --start";
    let create = request(line).expect("a request");
    let yaml = serde_yaml_ng::to_string(&create).expect("YAML");
    assert_eq!(parse_file(Path::new("x"), &yaml).expect("the same"), create);
    let json = serde_json::to_string(&create).expect("JSON");
    assert_eq!(parse_file(Path::new("x"), &json).expect("the same"), create);
}

#[test]
fn refused() {
    let check = |line: &str, expect: &str| {
        let error = request(line).expect_err(line);
        assert!(error.contains(expect), "{line}: {error}");
    };
    check("", "required");
    check("web --disk-size 1G", "--image");
    check("web --memory lots", "not a size");
    check("web --initrd x", "--kernel");
    check("web --uefi --kernel x", "cannot be used with");
    check("web --no-network --network lab", "cannot be used with");
    check("web --user me --user-data user-data", "cannot be used with");
    check("-f vm.json --cpus 2", "cannot be used with");
    check("-f vm.json --on-death stop", "cannot be used with");
    check("-f typo.yaml", "vcpu");
    check("web --ssh-key id", "private key");
    check("web --ssh-key nowhere", "no such file");
}
