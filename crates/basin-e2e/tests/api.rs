//! The API's own promises, over the socket and over HTTPS.

use basin_api::client::{Client, ClientError};
use basin_api::event::Change;
use basin_api::reference::MetaPatch;
use basin_api::vm::{Machine, Vm, VmPatch};
use basin_e2e::{Console, Server};
use serde_json::Value;

fn describe(text: &str) -> VmPatch {
    MetaPatch { description: Some(text.to_owned()), ..MetaPatch::default() }.into()
}

/// What curl says of a request to the server's socket: headers and body.
fn curl(server: &Server, arguments: &str) -> String {
    let socket = server.place.socket();
    server.sh(&format!("curl -s -i --unix-socket {} {arguments}", socket.display()))
}

fn body(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e} in {body}"))
}

#[test]
fn changes_from_an_old_state_are_refused() {
    let server = Server::start();
    let client = server.client();
    server.create(&server.micro("e", Machine::Q35));
    let read = server.ok(client.get::<Vm>("e"));
    server.ok(client.patch_if::<Vm>("e", &describe("first"), read.meta.revision));
    let late = server.refused(client.patch_if::<Vm>("e", &describe("late"), read.meta.revision));
    assert_eq!((late.status, late.code.as_str()), (412, "changed"));
    assert_eq!(server.ok(client.get::<Vm>("e")).meta.description, "first");

    // As a script would.
    let answer = curl(&server, "http://x/v1/vms/e");
    let tag = answer.lines().find_map(|l| l.strip_prefix("etag: ")).expect("an ETag").trim();
    let change = r#"-X PATCH -H 'content-type: application/json' http://x/v1/vms/e -d '{"description":"second"}'"#;
    let changed = curl(&server, &format!("-H 'If-Match: {tag}' {change}"));
    assert!(changed.starts_with("HTTP/1.1 200"), "{changed}");
    let refused = curl(&server, &format!("-H 'If-Match: {tag}' {change}"));
    assert!(refused.starts_with("HTTP/1.1 412"), "{refused}");
    assert!(refused.contains("content-type: application/problem+json"), "{refused}");
    assert_eq!(body(&refused)["code"], "changed");
}

#[test]
fn what_cannot_be_read_is_refused_and_changes_nothing() {
    let server = Server::start();
    let post = |json: &str| {
        let header = "content-type: application/json";
        let answer = curl(&server, &format!("-H '{header}' http://x/v1/vms -d '{json}'"));
        let status: u16 = answer.split(' ').nth(1).expect("a status").parse().unwrap();
        let problem = body(&answer);
        assert_eq!(problem["status"], status);
        (status, problem["detail"].as_str().expect("a detail").to_owned())
    };
    let (status, why) = post(r#"{"name":"x","vcpus":1,"memory_bytes":134217728,"memmory":1}"#);
    assert!((400..500).contains(&status) && why.contains("memmory"), "{status} {why}");
    let (status, why) = post(r#"{"name":"x","vcpus":"#);
    assert!((400..500).contains(&status) && !why.is_empty(), "{status} {why}");
    let (status, why) = post(r#"{"name":"Not A Name","vcpus":1,"memory_bytes":134217728}"#);
    assert!((400..500).contains(&status) && why.contains("Not A Name"), "{status} {why}");
    let (status, why) = post(r#"{"name":"x","vcpus":0,"memory_bytes":134217728}"#);
    assert!((400..500).contains(&status) && why.contains("vcpus"), "{status} {why}");
    assert!(server.ok(server.client().list::<Vm>()).items.is_empty());
}

#[test]
fn events_miss_nothing() {
    let server = Server::start();
    let client = server.client();
    let from = server.ok(client.list::<Vm>()).revision;
    let mut events = server.ok(client.events(&["vm"], Some(from)));
    server.create(&server.micro("e", Machine::Q35));
    let first = server.ok(events.next());
    assert_eq!((first.change, first.kind.as_str()), (Change::Created, "vm"));
    assert_eq!(first.object.as_ref().expect("the VM")["name"], "e");

    // The daemon dies; the stream goes on from where it was.
    server.kill();
    server.boot();
    let client = server.client();
    server.ok(client.patch::<Vm>("e", &describe("changed")));
    loop {
        let event = server.ok(events.next());
        assert_ne!(event.change, Change::Resync);
        if event.object.is_some_and(|vm| vm["description"] == "changed") {
            break;
        }
    }
    server.guest("e").delete(false);
    while server.ok(events.next()).change != Change::Deleted {}

    // As a browser resumes: everything after the first event, and not that one.
    let resume = format!(
        "curl -sN --max-time 3 --unix-socket {} -H 'Last-Event-ID: {}' 'http://x/v1/events?kind=vm' || true",
        server.place.socket().display(),
        first.revision
    );
    let seen = server.sh(&resume);
    assert!(seen.contains("\"deleted\""), "{seen}");
    assert!(!seen.contains("\"created\""), "{seen}");
}

#[test]
fn over_https_with_a_token() {
    let server = Server::start();
    let guest = server.create(&server.micro("h", Machine::Microvm));
    guest.start();
    guest.shell();
    let secret = server.cli(&["token", "create", "laptop"]).ok();
    let url = "https://127.0.0.1:7443";
    let ca = std::fs::read(server.place.state_dir().join("tls/server.pem")).unwrap();
    server.in_network(|runtime| {
        let connect = |token| Client::remote(url, token, Some(&ca)).expect("a client");
        let stranger = runtime.block_on(connect(None).list::<Vm>());
        assert_eq!(stranger.unwrap_err().code(), Some("unauthenticated"));
        let wrong = runtime.block_on(connect(Some("wrong")).list::<Vm>());
        assert_eq!(wrong.unwrap_err().code(), Some("unauthenticated"));
        let friend = connect(Some(secret.trim()));
        assert_eq!(runtime.block_on(friend.list::<Vm>()).unwrap().items.len(), 1);
    });
    let said = server.in_network(|runtime| {
        let friend = Client::remote(url, Some(secret.trim()), Some(&ca)).expect("a client");
        Console::of(runtime.handle(), &friend, "h").run("echo far away")
    });
    assert_eq!(said, "far away");

    server.cli(&["token", "delete", "laptop"]).ok();
    server.in_network(|runtime| {
        let revoked = Client::remote(url, Some(secret.trim()), Some(&ca)).expect("a client");
        let refused: Result<_, ClientError> = runtime.block_on(revoked.list::<Vm>());
        assert_eq!(refused.unwrap_err().code(), Some("unauthenticated"));
    });
}

#[test]
fn figures_are_openmetrics() {
    let server = Server::start();
    let guest = server.create(&server.micro("m", Machine::Microvm));
    guest.start();
    let answer = curl(&server, "http://x/metrics");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert_eq!(text.lines().last(), Some("# EOF"));
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        value.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {line}"));
        let name = series.split('{').next().unwrap();
        assert!(name.starts_with("basin_"), "{line}");
        samples += 1;
    }
    assert!(samples > 10);
    assert!(
        text.lines()
            .any(|l| l.starts_with("basin_vms{") && l.contains("running") && l.ends_with(" 1")),
        "{text}"
    );
    assert!(
        text.lines().any(|l| l.starts_with("basin_vm_resident_memory") && l.contains("vm=\"m\""))
    );
}
