//! Import from a server that behaves well, badly, and very badly.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use basin_model::image::ImageKind;
use basin_model::{Bytes, DatastoreId};
use basin_storage::dir::Patience;
use basin_storage::{Datastore, DirDatastore, ImportRequest, ImportSource, Opening, StorageError};
use common::*;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A request as far as it matters: its path, and where its range starts.
struct Asked {
    path: String,
    from: Option<usize>,
    /// How many requests there were before.
    before: usize,
}

/// Serves each connection one request by `answer`; gives the address.
fn serve(
    answer: impl Fn(Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer, count) = (stream.unwrap(), answer.clone(), count.clone());
            std::thread::spawn(move || {
                let mut lines =
                    BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(first) = lines.next() else { return };
                let path = first.split(' ').nth(1).unwrap().to_owned();
                let mut from = None;
                for line in lines.by_ref().take_while(|l| !l.is_empty()) {
                    if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        from = Some(range.trim_end_matches('-').parse().unwrap());
                    }
                }
                let before = count.fetch_add(1, Ordering::SeqCst);
                // The client may go away at any time.
                let _ = answer(Asked { path, from, before }, &mut stream);
            });
        }
    });
    address
}

fn fetching() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let id = DatastoreId::from_uuid(Uuid::new_v4());
    let patience = Patience {
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(3),
        breaks: 2,
        pause: Duration::from_millis(1),
    };
    let path = dir.path().join("store");
    DirDatastore::make(id, &path).unwrap();
    let opening = Opening { id, path, quota: None, sharer: None, patience };
    let store = DirDatastore::open_with(&opening).unwrap();
    Place { dir, id, store }
}

async fn import(p: &Place, url: String, sha256: Option<String>) -> Result<(), StorageError> {
    let (id, found) = p.import_as(ImageKind::Disk, ImportSource::Url { url }, None, sha256).await?;
    let layer = p.store.image(id, found.format);
    assert_eq!(content(&layer.path, layer.format, &p.scratch("out")), disk());
    Ok(())
}

fn fails(p: &Place, result: Result<(), StorageError>, word: &str) {
    match result {
        Err(StorageError::Fetch { why, .. }) if why.contains(word) => {}
        other => panic!("expected a failed fetch with '{word}', got {other:?}"),
    }
    assert_eq!(p.files(), [""; 0]);
}

/// Answers with the disk from where it was asked for, but stops after `most` bytes.
fn part(asked: &Asked, most: usize, headers: &str, to: &mut TcpStream) -> std::io::Result<()> {
    let disk = disk();
    let from = asked.from.unwrap_or(0);
    let rest = &disk[from..];
    match asked.from {
        Some(from) => write!(
            to,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
            disk.len() - 1,
            disk.len()
        )?,
        None => write!(to, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n")?,
    }
    write!(to, "{headers}Content-Length: {}\r\n\r\n", rest.len())?;
    to.write_all(&rest[..most.min(rest.len())])
}

const TAG: &str = "ETag: \"v1\"\r\n";

#[tokio::test]
async fn a_file_is_fetched_through_redirects() {
    let p = fetching();
    let address = serve(|asked, to| match asked.path.as_str() {
        "/disk" => part(&asked, usize::MAX, "", to),
        _ => write!(to, "HTTP/1.1 302 Found\r\nLocation: /disk\r\nContent-Length: 0\r\n\r\n"),
    });
    import(&p, format!("{address}/latest"), None).await.unwrap();
}

#[tokio::test]
async fn a_broken_transfer_is_taken_up_where_it_broke() {
    let p = fetching();
    let address = serve(|asked, to| part(&asked, 1_000_000, TAG, to));
    import(&p, address, None).await.unwrap();
    // Without a tag a stated checksum vouches for the whole.
    let p = fetching();
    let address = serve(|asked, to| part(&asked, 3_000_000, "", to));
    let sum = run("sha256sum", &[text(&p.write("a", &disk()))])[..64].to_owned();
    import(&p, address.clone(), Some(sum)).await.unwrap();
    let p = fetching();
    fails(&p, import(&p, address, None).await, "taken up again");
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_not_glued_together() {
    let p = fetching();
    let address = serve(|mut asked, to| {
        if asked.before > 0 {
            asked.from = None;
        }
        part(&asked, 1_000_000, TAG, to)
    });
    fails(&p, import(&p, address, None).await, "changed");
    let address = serve(|mut asked, to| {
        asked.from = asked.from.map(|from| from + 1);
        part(&asked, 1_000_000, TAG, to)
    });
    fails(&p, import(&p, address, None).await, "another part");
}

#[tokio::test]
async fn a_server_that_does_not_deliver_is_given_up_on() {
    let p = fetching();
    let status = |status: &'static str| {
        serve(move |_, to| write!(to, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"))
    };
    fails(&p, import(&p, status("404 Not Found"), None).await, "404");
    fails(&p, import(&p, status("503 Service Unavailable"), None).await, "tried 3 times");
    let around = serve(|asked, to| {
        write!(to, "HTTP/1.1 302 Found\r\nLocation: /{}\r\nContent-Length: 0\r\n\r\n", asked.before)
    });
    fails(&p, import(&p, around, None).await, "too many redirects");
    let silent = serve(|asked, to| {
        part(&asked, if asked.before == 0 { 100_000 } else { 0 }, TAG, to)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    fails(&p, import(&p, silent, None).await, "timed out");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(&p, import(&p, format!("http://{closed}"), None).await, "tried 3 times");
    let wrong = import(&p, "file:///etc/shadow".into(), None).await;
    assert!(matches!(wrong, Err(StorageError::Invalid(_))), "{wrong:?}");
}

#[tokio::test]
async fn plain_text_is_not_https() {
    let p = fetching();
    let address = serve(|asked, to| part(&asked, usize::MAX, "", to)).replace("http:", "https:");
    assert!(matches!(import(&p, address, None).await, Err(StorageError::Fetch { .. })));
    assert_eq!(p.files(), [""; 0]);
}

#[tokio::test]
async fn a_page_instead_of_a_disk_is_refused_at_its_first_bytes() {
    let p = fetching();
    let address = serve(|_, to| {
        write!(to, "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n<!DOCTYPE html>")?;
        to.write_all(&[b' '; 100_000])?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let result = import(&p, address, None).await;
    assert!(
        matches!(&result, Err(StorageError::Invalid(why)) if why.contains("web page")),
        "{result:?}"
    );
    assert_eq!(p.files(), [""; 0]);
}

#[tokio::test]
async fn a_fetch_is_cancelled_while_the_server_is_silent() {
    let p = fetching();
    let address = serve(|asked, to| {
        part(&asked, 1_000_000, TAG, to)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let progress = Arc::new(move |done: Bytes, _| {
        if done.get() >= 1_000_000 {
            stop.cancel();
        }
    });
    let request = ImportRequest {
        image: image_id(),
        kind: ImageKind::Disk,
        source: ImportSource::Url { url: address },
        format: None,
        sha256: None,
    };
    let result = p.store.import(&request, progress, cancel).await;
    assert!(matches!(result, Err(StorageError::Cancelled)), "{result:?}");
    assert_eq!(p.files(), [""; 0]);
}
