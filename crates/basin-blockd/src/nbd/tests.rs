//! Negotiation and requests without a network: what a client gets that has shown who
//! it is, and then means harm or leaves at a bad moment.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use basin_model::volume::VolumeFormat;
use basin_model::{Generation, HostId, VolumeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::grants::Grants;
use super::negotiate::{Agreed, negotiate};
use super::proto::option::{self, kind};
use super::proto::request::{Command, Request};
use super::proto::{MAX_PAYLOAD, MIRROR_CONTEXT, allocation};
use super::session::transmit;
use crate::control::{Grant, Layer};

const SIZE: u64 = 64 << 20;

struct Place {
    _dir: tempfile::TempDir,
    grants: Grants,
    host: HostId,
    volume: VolumeId,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let host: HostId = "00000000000000000000000000000001".parse().unwrap();
        let volume: VolumeId = "00000000000000000000000000000002".parse().unwrap();
        let grants = Grants::default();
        grants
            .add(&Grant {
                volume,
                generation: Generation(1),
                layers: vec![Layer { path, format: VolumeFormat::Raw }],
                read_only: false,
                host,
            })
            .unwrap();
        Place { _dir: dir, grants, host, volume }
    }

    fn complete(&self) -> bool {
        self.grants.list(None)[0].complete
    }

    fn agreed(&self, mirror: Option<&str>) -> Agreed {
        Agreed {
            granted: self.grants.find(&self.volume.to_string(), self.host).unwrap(),
            structured: true,
            allocation: true,
            mirror: mirror.map(str::to_owned),
        }
    }

    /// A connection, and how it ends.
    fn connect(
        &self,
        mirror: Option<&str>,
    ) -> (DuplexStream, tokio::task::JoinHandle<Result<(), String>>) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (ours, tokio::spawn(transmit(theirs, self.agreed(mirror))))
    }
}

fn request(command: Command, offset: u64, len: u32) -> [u8; 28] {
    Request { command, cookie: 1, offset, len }.bytes()
}

const WRITE: Command = Command::Write { fua: false };
const LEAVE: Command = Command::Disconnect;

#[tokio::test]
async fn a_mirror_is_complete_when_all_its_connections_have_taken_leave() {
    let place = Place::new();
    let (mut a, end_a) = place.connect(Some("m1"));
    let (mut b, end_b) = place.connect(Some("m1"));
    a.write_all(&request(WRITE, 0, 512)).await.unwrap();
    a.write_all(&[7; 512]).await.unwrap();
    a.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end_a.await.unwrap().unwrap();
    assert!(!place.complete(), "the other one is still there");
    b.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end_b.await.unwrap().unwrap();
    assert!(place.complete());
    // Another one begins: what is there is not to be relied on any more.
    let (c, end_c) = place.connect(Some("m2"));
    let (mut d, end_d) = place.connect(Some("m2"));
    while place.grants.list(None)[0].connections < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!place.complete());
    drop(c);
    end_c.await.unwrap().unwrap_err();
    d.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end_d.await.unwrap().unwrap();
    assert!(!place.complete(), "one of its connections broke");
}

#[tokio::test]
async fn a_reader_or_writer_that_is_no_mirror_completes_nothing() {
    let place = Place::new();
    let (mut a, end) = place.connect(None);
    a.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end.await.unwrap().unwrap();
    assert!(!place.complete());
    let (mut a, end) = place.connect(Some("m"));
    a.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end.await.unwrap().unwrap();
    assert!(place.complete());
    let (mut a, end) = place.connect(None);
    a.write_all(&request(WRITE, 0, 512)).await.unwrap();
    a.write_all(&[7; 512]).await.unwrap();
    a.write_all(&request(LEAVE, 0, 0)).await.unwrap();
    end.await.unwrap().unwrap();
    assert!(!place.complete(), "somebody else has written since");
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection() {
    let place = Place::new();
    let too_long = request(WRITE, 0, MAX_PAYLOAD + 512);
    for bytes in [&[0xffu8; 28][..], &too_long] {
        let (mut stream, end) = place.connect(None);
        stream.write_all(bytes).await.unwrap();
        end.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn requests_outside_of_the_disk_are_answered_with_errors() {
    let place = Place::new();
    let (mut stream, _end) = place.connect(None);
    let bad = [
        request(Command::Read, SIZE, 512),
        request(Command::Read, u64::MAX - 511, 512),
        request(Command::Read, 0, MAX_PAYLOAD + 512),
        request(Command::Trim { fua: false }, SIZE - 512, 1024),
        request(Command::WriteZeroes { fua: false, keep: false }, 1, 512),
        request(Command::BlockStatus { one: false }, 0, 0),
        request(Command::Unknown, 0, 0),
    ];
    for bytes in bad {
        stream.write_all(&bytes).await.unwrap();
        let mut head = [0; 20];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[6..8], (1u16 << 15 | 1).to_be_bytes(), "an error chunk");
        let len = u32::from_be_bytes(head[16..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize]).await.unwrap();
    }
    // The data of a write that is refused are taken, and the next request is understood.
    stream.write_all(&request(WRITE, SIZE, 512)).await.unwrap();
    stream.write_all(&[1; 512]).await.unwrap();
    let mut head = [0; 20];
    stream.read_exact(&mut head).await.unwrap();
    let len = u32::from_be_bytes(head[16..].try_into().unwrap());
    stream.read_exact(&mut vec![0; len as usize]).await.unwrap();
    stream.write_all(&request(Command::Flush, 0, 0)).await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_not_served_without_bound() {
    let place = Place::new();
    let (mut stream, end) = place.connect(None);
    let granted = place.agreed(None).granted;
    // Far more than it may have under way, and nothing is ever read.
    let asking = tokio::spawn(async move {
        for n in 0..400u64 {
            if stream.write_all(&request(Command::Read, (n % 60) << 20, 1 << 20)).await.is_err() {
                break;
            }
        }
        stream
    });
    let stream = asking.await.unwrap();
    // What it may have under way is read, and no more.
    let bound = 2 * u64::from(MAX_PAYLOAD);
    for _ in 0..200 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert!(granted.read_bytes.load(Relaxed) <= bound);
    }
    granted.closing.cancel();
    end.await.unwrap().unwrap_err();
    drop(stream);
}

#[tokio::test]
async fn contexts_and_exports_are_agreed_on() {
    let place = Place::new();
    let name = place.volume.to_string();
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    let mirror = format!("{MIRROR_CONTEXT}abc");
    let contexts = option::contexts_data(&name, &[allocation::NAME, &mirror, "other:x"]);
    let asks = [
        option::ask(kind::STRUCTURED_REPLY, &[]),
        option::ask(kind::LIST, &[]),
        option::ask(kind::GO, &option::go_data("another")),
        option::ask(kind::GO, &[1, 2, 3]),
        option::ask(kind::STARTTLS, &[]),
        option::ask(kind::SET_META_CONTEXT, &contexts),
        option::ask(kind::GO, &option::go_data(&name)),
    ];
    ours.write_all(&asks.concat()).await.unwrap();
    let agreed = negotiate(&mut theirs, place.host, &place.grants).await.unwrap().unwrap();
    assert!(agreed.structured && agreed.allocation);
    assert_eq!(agreed.mirror.as_deref(), Some("abc"));
    assert!(Arc::ptr_eq(&agreed.granted, &place.agreed(None).granted));
    // One who asks for ever does not get there.
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
    let endless = option::ask(kind::LIST, &[]).repeat(1000);
    ours.write_all(&endless).await.unwrap();
    assert!(negotiate(&mut theirs, place.host, &place.grants).await.is_err());
    // A stranger finds nothing.
    let stranger = "00000000000000000000000000000009".parse().unwrap();
    assert!(place.grants.find(&name, stranger).is_none());
    assert!(place.grants.names(stranger).is_empty());
}
