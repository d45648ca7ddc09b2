//! Disks for other servers: the standard tools over TLS, and who is let in.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use basin_blockd::control::{ErrorCode, Export, Fabric, Grant, Layer};
use basin_model::Generation;
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};
use support::fabric::{Pki, fabric, host};
use support::{Daemon, path_str, pattern, refusal, sh, until};

const SIZE: u64 = 16 << 20;
const MIB: usize = 1 << 20;

struct Place {
    pki: Pki,
    daemon: Daemon,
}

impl Place {
    fn new() -> Place {
        let (pki, daemon) = (Pki::new(), Daemon::start());
        daemon.set_fabric(&pki.fabric(host(1)));
        Place { pki, daemon }
    }

    fn disk(&self, format: VolumeFormat) -> Export {
        match format {
            Raw => self.daemon.raw("disk", SIZE),
            Qcow2 => {
                let path = self.daemon.path("disk.qcow2");
                sh("qemu-img", &["create", "-q", "-f", "qcow2", path_str(&path), "16M"]);
                self.daemon.export("disk", vec![Layer { path, format }])
            }
        }
    }
}

fn uri(export: &Export, at: SocketAddr, certificates: &Path) -> String {
    format!("nbds://{at}/{}?tls-certificates={}", export.volume, path_str(certificates))
}

/// QEMU's options for a disk of this server.
fn qemu(export: &Export, at: SocketAddr, certificates: &Path) -> (String, String) {
    let tls = format!(
        "tls-creds-x509,id=tls0,dir={},endpoint=client,verify-peer=yes",
        path_str(certificates)
    );
    let image = format!(
        "driver=nbd,host={},port={},export={},tls-creds=tls0",
        at.ip(),
        at.port(),
        export.volume
    );
    (tls, image)
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new("timeout").arg("60").arg(program).args(args).output().unwrap()
}

fn refused(program: &str, args: &[&str]) {
    let out = run(program, args);
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_ne!(out.status.code(), Some(124), "it hangs");
}

/// What the file below holds, as the tools of QEMU read it.
fn contents(place: &Place, export: &Export) -> Vec<u8> {
    let out = place.daemon.path("flat");
    let format = if export.layers[0].format == Raw { "raw" } else { "qcow2" };
    let path = path_str(&export.layers[0].path);
    sh("qemu-img", &["convert", "-f", format, "-O", "raw", path, path_str(&out)]);
    std::fs::read(out).unwrap()
}

fn check_tools(format: VolumeFormat) {
    let place = Place::new();
    let (daemon, export) = (&place.daemon, place.disk(format));
    let theirs = place.pki.of(host(2));
    let at = daemon.grant(&export, host(2), false);
    let uri = uri(&export, at, &theirs);

    let info = sh("nbdinfo", &[&uri]);
    for line in [
        "export-size: 16777216",
        "can_multi_conn: true",
        "can_flush: true",
        "can_fua: true",
        "can_zero: true",
        "can_trim: true",
        "is_read_only: false",
        "base:allocation",
        "block_size_minimum: 512",
        "TLS",
    ] {
        assert!(info.contains(line), "nbdinfo does not say {line}:\n{info}");
    }
    let list =
        sh("nbdinfo", &["--list", &format!("nbds://{at}/?tls-certificates={}", path_str(&theirs))]);
    assert!(list.contains(&export.volume.to_string()), "{list}");

    // A copy with holes, four connections.
    let source = daemon.path("source");
    let file = File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    let data = pattern(1, 3 * MIB + 4096);
    file.write_all_at(&data, 2 << 20).unwrap();
    sh("nbdcopy", &["--connections=4", "--flush", path_str(&source), &uri]);
    let map = sh("nbdinfo", &["--map", &uri]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    let copy = daemon.path("copy");
    sh("nbdcopy", &[&uri, path_str(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&source).unwrap());

    // QEMU's client: writes, zeroes, discards, flushes, and compares.
    let (tls, image) = qemu(&export, at, &theirs);
    let io = |command: &str| {
        let out = run("qemu-io", &["--object", &tls, "--image-opts", &image, "-c", command]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && !text.contains("fail"), "{command}: {text}");
    };
    io("write -P 0x5a 4k 64k");
    io("write -f -P 0x5b 8M 1M");
    io("write -z 2M 64k");
    io("write -z -u 3M 1M");
    io("discard 4M 64k");
    io("flush");
    io("read -P 0x5a 4k 64k");
    io("read -P 0 3M 1M");
    let json = sh("qemu-img", &["map", "--output=json", "--object", &tls, "--image-opts", &image]);
    assert!(json.contains("\"zero\": true"), "{json}");
    sh(
        "qemu-img",
        &[
            "convert",
            "-n",
            "--object",
            &tls,
            "--image-opts",
            &image,
            "--target-image-opts",
            &format!("driver=file,filename={}", path_str(&copy)),
        ],
    );

    let state = daemon.granted(&export).unwrap();
    assert!(state.write_bytes.get() >= 4 << 20 && state.read_bytes.get() >= 4 << 20);
    daemon.revoke(&export);
    daemon.revoke(&export);
    assert!(daemon.granted(&export).is_none());
    let mut expect = vec![0; SIZE as usize];
    expect[2 * MIB..2 * MIB + data.len()].copy_from_slice(&data);
    expect[4096..4096 + 65536].fill(0x5a);
    expect[8 * MIB..9 * MIB].fill(0x5b);
    expect[2 * MIB..2 * MIB + 65536].fill(0);
    expect[3 * MIB..4 * MIB].fill(0);
    expect[4 * MIB..4 * MIB + 65536].fill(0);
    assert!(contents(&place, &export) == expect);
    refused("nbdinfo", &[&uri]);
}

#[test]
fn the_standard_tools_use_a_raw_disk() {
    check_tools(Raw);
}

#[test]
fn the_standard_tools_use_a_qcow2_disk() {
    check_tools(Qcow2);
}

#[test]
fn only_whom_it_is_granted_to_is_let_in() {
    let place = Place::new();
    let (daemon, export) = (&place.daemon, place.disk(Raw));
    let at = daemon.grant(&export, host(2), true);
    let theirs = place.pki.of(host(2));
    sh("nbdinfo", &["--size", &uri(&export, at, &theirs)]);
    // Another server of the cluster, a certificate that is no server's, another CA,
    // and no TLS at all.
    refused("nbdinfo", &["--size", &uri(&export, at, &place.pki.of(host(3)))]);
    let nobody = place.pki.sign("nobody", Some("basin:user:1".into()));
    refused("nbdinfo", &["--size", &uri(&export, at, &nobody)]);
    refused("nbdinfo", &["--size", &uri(&export, at, &Pki::new().of(host(2)))]);
    refused("nbdinfo", &["--size", &format!("nbd://{at}/{}", export.volume)]);
    let others = place.pki.of(host(3));
    let list = run(
        "nbdinfo",
        &["--list", &format!("nbds://{at}/?tls-certificates={}", path_str(&others))],
    );
    assert!(!String::from_utf8_lossy(&list.stdout).contains(&export.volume.to_string()));
    // Reading is not writing.
    let (tls, image) = qemu(&export, at, &theirs);
    refused("qemu-io", &["--object", &tls, "--image-opts", &image, "-c", "write 0 512"]);
    sh("qemu-io", &["-r", "--object", &tls, "--image-opts", &image, "-c", "read -P 0 0 512"]);
}

#[test]
fn grants_hold_to_generations_and_locks() {
    let place = Place::new();
    let (daemon, mut export) = (&place.daemon, place.disk(Raw));
    export.generation = Generation(4);
    let grant = |generation, read_only| Grant {
        volume: export.volume,
        generation: Generation(generation),
        layers: export.layers.clone(),
        read_only,
        host: host(2),
    };
    let ask = |grant: &Grant| daemon.ask(async |c| c.grant(grant).await);
    ask(&grant(4, false)).unwrap();
    ask(&grant(4, false)).unwrap();
    assert_eq!(refusal(ask(&grant(4, true))).0, ErrorCode::Invalid);
    assert_eq!(refusal(ask(&grant(3, false))).0, ErrorCode::Fenced);
    ask(&grant(5, false)).unwrap();
    let old = daemon.ask(async |c| c.revoke(export.volume, Generation(4)).await);
    assert_eq!(refusal(old).0, ErrorCode::Fenced);
    export.generation = Generation(5);
    // Somebody else's process, while it is granted for writing.
    let path = path_str(&export.layers[0].path);
    refused("qemu-io", &["-f", "raw", "-c", "write 0 512", path]);
    daemon.revoke(&export);
    assert_eq!(refusal(ask(&grant(4, false))).0, ErrorCode::Fenced);
    daemon.open(&export);
    assert_eq!(refusal(ask(&grant(6, true))).0, ErrorCode::Locked);
}

#[test]
fn certificates_are_read_anew() {
    let place = Place::new();
    let (daemon, export) = (&place.daemon, place.disk(Raw));
    let at = daemon.grant(&export, host(2), true);
    let other = Pki::new();
    // Over the old files, as a renewal does it.
    let new = other.of(host(1));
    let old = place.pki.of(host(1));
    for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        std::fs::copy(new.join(name), old.join(name)).unwrap();
    }
    daemon.set_fabric(&fabric(&old));
    assert_eq!(daemon.granted(&export).unwrap().address, Some(at), "it still listens there");
    refused("nbdinfo", &["--size", &uri(&export, at, &place.pki.of(host(2)))]);
    sh("nbdinfo", &["--size", &uri(&export, at, &other.of(host(2)))]);
    let bad = Fabric { key: daemon.path("absent"), ..fabric(&old) };
    let refusal = refusal(daemon.ask(async |c| c.fabric(Some(&bad)).await));
    assert!(refusal.0 == ErrorCode::Invalid && refusal.1.contains("absent"), "{refusal:?}");
    sh("nbdinfo", &["--size", &uri(&export, at, &other.of(host(2)))]);
    daemon.ask(async |c| c.fabric(None).await).unwrap();
    until("the end of the listener", || TcpStream::connect(at).is_err().then_some(()));
}

/// What a client may do that means harm, before it has shown who it is.
#[test]
fn hostile_clients_get_nowhere() {
    let place = Place::new();
    let (daemon, export) = (&place.daemon, place.disk(Raw));
    let at = daemon.grant(&export, host(2), true);
    let connect = || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream
    };
    let option = |kind: u32, len: u32, data: &[u8]| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(b"IHAVEOPT");
        bytes.extend(kind.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let ended = |mut stream: TcpStream| {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut rest);
        rest
    };
    let no_magic = [0xff; 64];
    let huge = option(7, u32::MAX, b"");
    let export_name = option(1, 4, b"disk");
    let old_style = 0u32.to_be_bytes();
    let garbage_for_tls = [option(5, 0, b""), vec![0x17; 2000]].concat();
    for bytes in [&no_magic[..], &huge, &export_name, &old_style, &garbage_for_tls] {
        let mut stream = connect();
        let _ = stream.write_all(bytes);
        ended(stream);
    }
    // Everything else is answered, with a refusal that tells nothing.
    for kind in [2u32, 3, 6, 7, 8, 9, 10, 77] {
        let mut stream = connect();
        stream.write_all(&option(kind, 0, b"")).unwrap();
        let mut head = [0; 20];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[8..12], kind.to_be_bytes());
        let answer = u32::from_be_bytes(head[12..16].try_into().unwrap());
        assert!(answer >> 31 == 1 || kind == 2, "option {kind} is answered with {answer:#x}");
    }
    // Those that say nothing are cut off, and until then keep nobody out for good.
    let idle: Vec<TcpStream> = (0..40).filter_map(|_| TcpStream::connect(at).ok()).collect();
    for stream in idle {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        ended(stream);
    }
    sh("nbdinfo", &["--size", &uri(&export, at, &place.pki.of(host(2)))]);
    assert!(daemon.granted(&export).unwrap().connections <= 1);
}
