//! Bad input at the border: each is refused with words that name the thing and say
//! what to do, and leaves nothing half-made.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use basin_e2e::images::MIB;
use basin_e2e::{Server, Setup};

/// Runs a command that has to be refused in these words, with advice.
#[track_caller]
fn refused(server: &Server, args: &[&str], words: &[&str]) {
    let said = server.cli(args);
    assert_eq!(said.code, 1, "{args:?}: {}{}", said.stdout, said.stderr);
    for word in words {
        assert!(said.stderr.contains(word), "{args:?} does not say '{word}':\n{}", said.stderr);
    }
    assert!(said.stderr.starts_with("error: "), "{args:?}: {}", said.stderr);
    assert!(said.stderr.len() < 800, "{args:?} says too much:\n{}", said.stderr);
    assert!(
        !said.stderr.contains("/proc/self/fd"),
        "{args:?} tells of Basin's own:\n{}",
        said.stderr
    );
}

/// The same, and it says what to do.
#[track_caller]
fn advised(server: &Server, args: &[&str], words: &[&str]) {
    refused(server, args, &[words, &["\n  → "]].concat());
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// No file of an image or a volume, and nothing on its way to be one.
#[track_caller]
fn no_files(datastore: &Path) {
    for part in ["images", "volumes", "incoming"] {
        assert_eq!(files(&datastore.join(part)), Vec::<PathBuf>::new(), "{part}");
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().expect("run a program");
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A qcow2 with 4 MiB of data in it, under a name in the server's directory.
fn qcow2(server: &Server, name: &str) -> String {
    let path = server.place.dir.join(name).display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "8M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 5 0 4M", &path]);
    path
}

/// Changes bytes of a file.
fn scribble(path: impl AsRef<Path>, at: usize, bytes: &[u8]) {
    let mut content = fs::read(&path).expect("read a file");
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(&path, content).expect("write a file");
}

fn cut(path: &str, len: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("open a file");
    file.set_len(len).expect("cut a file");
}

#[test]
fn images_that_are_not_what_they_should_be() {
    let server = Server::start();
    let import = |file: &str, more: &[&str], words: &[&str]| {
        advised(&server, &[&["image", "import", file, "--name", "i"], more].concat(), words);
        assert_eq!(server.cli(&["image", "list"]).ok(), "", "{file}");
        no_files(&server.place.state_dir().join("datastores/default"));
    };
    let corrupt = qcow2(&server, "corrupt");
    scribble(&corrupt, 40, &[0xff; 8]);
    import(&corrupt, &[], &[&corrupt, "L1 table offset invalid", "fetch the source anew"]);
    let tables = qcow2(&server, "tables");
    scribble(&tables, 3 << 16, &[0x5a; 4096]);
    import(&tables, &[], &[&tables, "cannot be used", "L1 entry", "more lines"]);
    let truncated = qcow2(&server, "truncated");
    cut(&truncated, 1_000_000);
    import(&truncated, &[], &[&truncated, "truncated"]);
    let beheaded = qcow2(&server, "beheaded");
    cut(&beheaded, 50);
    import(&beheaded, &[], &[&beheaded, "truncated", "header"]);

    let good = qcow2(&server, "good");
    let wrong = "0".repeat(64);
    import(&good, &["--sha256", &wrong], &[&good, "checksum", &wrong, "publisher"]);
    import(&good, &["--sha256", "abc"], &["'abc' is not 64 hex digits"]);
    import(&good, &["--kind", "kernel"], &[&good, "not a Linux kernel"]);
    import(&good, &["--datastore", "nope"], &["no datastore 'nope'", "basin datastore list"]);
    import("http://127.0.0.1:9/x.qcow2", &[], &["http://127.0.0.1:9/x.qcow2", "refused"]);
    let absent = ["image", "import", "/nonexistent/x.qcow2"];
    refused(&server, &absent, &["/nonexistent/x.qcow2", "No such file"]);

    // What is good is taken, once.
    server.cli(&["image", "import", &good, "--name", "i"]).ok();
    let again = ["image", "import", &good, "--name", "i"];
    advised(&server, &again, &["image name 'i' is taken", "another name"]);
}

#[test]
fn what_is_taken_or_absent_or_too_much() {
    let server = Setup::new().arg("--memory=1GiB").start();
    let network = server.cli(&["network", "list", "-o", "json"]).ok();
    let network: serde_json::Value = serde_json::from_str(&network).expect("JSON");
    let subnet = network["items"][0]["subnet"].as_str().expect("a subnet").to_owned();
    let (prefix, _) = subnet.rsplit_once('.').expect("an address");
    let (mac, address) = ("mac=52:54:00:00:00:01", format!("address={prefix}.50"));
    let nic = format!("default,{mac},{address}");
    let small = ["vm", "create", "a", "--memory", "64MiB", "--network"];
    server.cli(&[&small[..], &[&nic]].concat()).ok();
    server.cli(&["volume", "create", "v", "--size", "8MiB"]).ok();

    let check = |args: &[&str], words: &[&str]| advised(&server, args, words);
    let nic = |spec: &str| format!("default,{spec}");
    let vm = |more: &[&str], words: &[&str]| {
        advised(&server, &[&["vm", "create", "b", "--memory", "64MiB"], more].concat(), words);
    };
    check(&["vm", "create", "a"], &["vm name 'a' is taken", "another name"]);
    vm(&["--network", &nic(mac)], &["52:54:00:00:00:01", "belongs to another"]);
    vm(&["--network", &nic(&address)], &[&format!("{prefix}.50"), "belongs to another"]);
    vm(&["--network", &nic("address=192.0.2.7")], &["192.0.2.7", &subnet]);
    vm(&["--network", &nic("mac=01:00:5e:00:00:01")], &["01:00:5e:00:00:01"]);
    vm(&["--network", "nope"], &["no network 'nope'", "basin network list"]);
    vm(&["--image", "nope"], &["no image 'nope'", "basin image list"]);
    vm(&["--disk", "volume=nope"], &["no volume 'nope'", "basin volume list"]);
    vm(&["--cpus", "999"], &["999", "288"]);
    check(&["vm", "create", "Bad_Name"], &["Bad_Name", "capital letter", "web-1"]);
    let much = ["vm", "create", "b", "--memory", "2GiB"];
    check(&much, &["No server can run VM 'b'", "memory", "1 GiB", "shrink"]);
    check(&[&much[..], &["--start"]].concat(), &["No server can run VM 'b'", "memory", "1 GiB"]);
    check(&["vm", "start", "nope"], &["no vm 'nope'", "basin vm list"]);
    let volume = ["volume", "create", "v", "--size", "8MiB"];
    check(&volume, &["volume name 'v' is taken", "another name"]);
    check(&["volume", "create", "w", "--size", "900TiB"], &["900 TiB", "64 TiB"]);
    check(&["volume", "create", "w", "--size", "60TiB"], &["'default'", "60 TiB", "promise"]);
    let network = |name: &str, subnet: &str, words: &[&str]| {
        check(&["network", "create", name, "--subnet", subnet], words);
    };
    network("default", "10.1.0.0/24", &["network name 'default' is taken"]);
    network("n", &subnet, &[&subnet, "overlaps"]);
    network("n", "8.8.8.8/33", &["subnet"]);
    check(&["network", "delete", "default"], &["default", "vm a"]);

    // Nothing came of all that.
    let count = |noun: &str| {
        let list = server.cli(&[noun, "list", "-o", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        list["items"].as_array().map(Vec::len)
    };
    for (noun, expect) in [("vm", 1), ("volume", 1), ("network", 1), ("image", 0)] {
        assert_eq!(count(noun), Some(expect), "{noun}");
    }
}

#[test]
fn a_full_disk() {
    let server = Server::start();
    let disk = server.place.dir.join("disk");
    fs::create_dir(&disk).expect("make a directory");
    let path = disk.display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=32m,mode=711", "tmpfs", &path]);
    server.cli(&["datastore", "create", "small", &path]).ok();
    let big = server.place.dir.join("big").display().to_string();
    let bytes: Vec<u8> = (0..64 * MIB).map(|n| (n / 7 % 255) as u8 | 1).collect();
    fs::write(&big, &bytes).expect("write a file");
    let import = ["image", "import", &big, "--name", "i", "--datastore", "small"];

    advised(&server, &import, &[&path, "65 MiB needed", "32.0 MiB free"]);
    let volume = ["volume", "create", "v", "--size", "1GiB", "--datastore", "small"];
    advised(&server, &volume, &["'small'", "promise"]);
    no_files(&disk);

    // Something else takes the room that was there.
    fs::write(disk.join("other"), &bytes[..(28 * MIB) as usize]).expect("fill the disk");
    cut(&big, 10 * MIB);
    advised(&server, &import, &[&path, "needed", "free"]);
    no_files(&disk);
    fs::remove_file(disk.join("other")).expect("make room");
    server.cli(&import).ok();
    // A copy needs the room of its content.
    fs::write(disk.join("other"), &bytes[..(16 * MIB) as usize]).expect("fill the disk");
    let copy = ["volume", "create", "v", "--clone", "full", "--image", "i", "--datastore", "small"];
    advised(&server, &copy, &[&path, "needed", "free"]);
    assert_eq!(files(&disk.join("volumes")), Vec::<PathBuf>::new());
    assert_eq!(files(&disk.join("incoming")), Vec::<PathBuf>::new());
    fs::remove_file(disk.join("other")).expect("make room");
    server.cli(&copy).ok();
}

/// Sends bytes to the socket; the status and the body.
fn raw(server: &Server, request: &str) -> (u16, String) {
    let mut socket = UnixStream::connect(server.place.socket()).expect("connect");
    socket.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("read");
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

#[test]
fn bodies_that_make_no_sense() {
    let server = Server::start();
    let post = |path: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        raw(&server, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
    };
    let check = |path: &str, body: &str, status: u16, words: &[&str]| {
        let (got, said) = post(path, body);
        assert_eq!(got, status, "{body}: {said}");
        for word in words {
            assert!(said.contains(word), "{body} is not answered with '{word}': {said}");
        }
        let problem: serde_json::Value = serde_json::from_str(&said).expect("problem+json");
        for field in ["title", "status", "detail"] {
            assert!(!problem[field].is_null(), "{body}: no {field}: {said}");
        }
    };
    check("/v1/vms", "{", 400, &["column"]);
    check("/v1/vms", "", 400, &["missing field"]);
    check("/v1/vms", "{} {}", 400, &[]);
    check("/v1/vms", "{\"name\":\"a\"}", 400, &["missing field"]);
    let vm = |more: &str| {
        format!(
            "{{\"name\":\"a\",\"vcpus\":1,\"memory_bytes\":67108864,\"boot\":{{\"firmware\":\"bios\"}}{more}}}"
        )
    };
    check("/v1/vms", &vm(",\"colour\":\"red\""), 400, &["colour", "unknown field"]);
    check("/v1/vms", &vm(",\"disks\":{}"), 400, &["disks"]);
    check("/v1/vms", &vm(",\"start\":\"yes\""), 400, &["start"]);
    check("/v1/volumes", "{\"name\":\"a\",\"source\":{\"from\":\"air\"}}", 400, &["air"]);
    check("/v1/nonsense", "{}", 404, &["/v1/nonsense"]);
    let (status, _) = raw(&server, "NONSENSE\r\n\r\n");
    assert_eq!(status, 400);
    server.cli(&["vm", "create", "-f", "/nonexistent.yaml"]);
    assert_eq!(server.cli(&["vm", "list"]).ok(), "");
}

/// What a daemon that does not come up says.
#[track_caller]
fn does_not_start(server: &Server, words: &[&str]) {
    let before = server.log().len();
    server.try_boot().expect_err("the daemon should have refused to start");
    let log = server.log();
    for word in words {
        assert!(log[before..].contains(word), "it does not say '{word}':\n{}", &log[before..]);
    }
}

#[test]
fn a_second_daemon_on_the_same_state() {
    let server = Server::start();
    let status = server.serve_command().status().expect("run a second daemon");
    assert!(!status.success());
    let log = server.log();
    for word in [&server.place.state_dir().display().to_string(), "another", "daemon", "stop"] {
        assert!(log.contains(word), "it does not say '{word}':\n{log}");
    }
    // The first has not noticed.
    server.cli(&["vm", "create", "a", "--memory", "64MiB", "--start"]).ok();
}

#[test]
fn a_port_in_use() {
    let server = Setup::new().prepare();
    server.in_network(|_| {
        let taken = std::net::TcpListener::bind("127.0.0.1:7443").expect("take the port");
        does_not_start(&server, &["127.0.0.1:7443", "in use", "--listen"]);
        drop(taken);
    });
    server.boot();
}

#[test]
fn no_qemu_or_an_old_one() {
    let server = Setup::new().arg("--qemu=/nonexistent/qemu").start();
    let start = ["vm", "create", "a", "--memory", "64MiB", "--start"];
    let check = |words: &[&str]| {
        advised(&server, &start, words);
        let host = server.cli(&["host", "list", "-o", "json"]).ok();
        for word in words {
            assert!(host.contains(word), "the host's status does not say '{word}': {host}");
            assert!(server.log().contains(word), "the log does not say '{word}'");
        }
        assert_eq!(server.cli(&["vm", "list"]).ok(), "");
    };
    check(&["/nonexistent/qemu", "install"]);
    let old = server.place.dir.join("old-qemu");
    fs::write(&old, "#!/bin/sh\necho QEMU emulator version 6.0.0\n").expect("write a script");
    run("chmod", &["755", &old.display().to_string()]);
    let flag = format!("--qemu={}", old.display());
    server.stop();
    server.set_up(|_| Setup::new().arg(flag));
    server.boot();
    check(&["old-qemu", "6.0.0", "7.2"]);
}

#[test]
fn a_damaged_store_and_one_of_the_future() {
    let server = Server::start();
    server.cli(&["volume", "create", "v", "--size", "8MiB"]).ok();
    server.stop();
    let path = server.place.state_dir().join("store.sqlite");
    let name = path.display().to_string();
    let good = fs::read(&path).expect("read the store");
    let check = |words: &[&str]| does_not_start(&server, &[&[&name[..]], words].concat());

    fs::write(&path, [0x5a; 10_000]).expect("write the store");
    check(&["damaged", "backup"]);
    fs::write(&path, &good).expect("write the store");
    scribble(&path, 2 * 4096, &[0x5a; 3 * 4096]);
    check(&["damaged", "backup"]);
    fs::write(&path, &good).expect("write the store");
    // SQLite's user_version.
    scribble(&path, 60, &[0, 0, 0, 99]);
    check(&["newer Basin", "99", "upgrade"]);

    // None of these tries changed anything.
    fs::write(&path, &good).expect("write the store");
    server.boot();
    assert!(server.cli(&["volume", "list"]).ok().contains('v'));
}
