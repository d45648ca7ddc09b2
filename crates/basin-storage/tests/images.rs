//! Import of real images, good and bad.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};

use basin_model::Bytes;
use basin_model::image::{ImageKind, SourceFormat};
use basin_model::volume::VolumeFormat;
use basin_storage::{Datastore, ImportRequest, ImportSource, StorageError, UploadId};
use common::*;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn sha256(path: &std::path::Path) -> String {
    run("sha256sum", &[text(path)])[..64].to_owned()
}

#[tokio::test]
async fn every_format_becomes_the_same_disk() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    for format in ["raw", "qcow2", "vmdk", "vhdx", "vdi"] {
        let source = p.scratch(&format!("b.{format}"));
        run("qemu-img", &["convert", "-f", "raw", "-O", format, text(&raw), text(&source)]);
        let before = sha256(&source);
        let (id, found) = p.import(ImageKind::Disk, &source).await.unwrap();
        assert_eq!(found.format, VolumeFormat::Qcow2, "{format}");
        assert_eq!(found.sha256, before, "{format}");
        let layer = p.store.image(id, found.format);
        let about = fs::metadata(&layer.path).unwrap();
        assert_eq!(about.len(), found.file_size.get(), "{format}");
        assert_eq!((about.uid(), about.permissions().mode() & 0o777), (0, 0o440), "{format}");
        let seen = content(&layer.path, layer.format, &p.scratch("out"));
        assert_eq!(seen.len() as u64, found.virtual_size.get(), "{format}");
        assert_eq!(seen[..disk().len()], disk(), "{format}");
        assert!(seen[disk().len()..].iter().all(|b| *b == 0), "{format}");
        p.store.delete_image(id).await.unwrap();
        p.store.delete_image(id).await.unwrap();
    }
    assert_eq!(p.files(), [""; 0]);
}

#[tokio::test]
async fn a_stream_optimized_vmdk_and_compressed_sources_are_taken() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    let vmdk = p.scratch("s.vmdk");
    let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    run("qemu-img", &[&args[..], &[text(&raw), text(&vmdk)]].concat());
    let qcow2 = p.scratch("c.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]);
    let zstd = p.scratch("z.qcow2");
    let args = ["convert", "-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2"];
    run("qemu-img", &[&args[..], &[text(&raw), text(&zstd)]].concat());
    run("gzip", &["-k", text(&raw)]);
    run("xz", &["-k", text(&raw)]);
    run("zstd", &["-q", "-k", text(&qcow2)]);
    let sources =
        [vmdk, qcow2, zstd, p.scratch("a.raw.gz"), p.scratch("a.raw.xz"), p.scratch("c.qcow2.zst")];
    for source in sources {
        let (id, found) = p.import(ImageKind::Disk, &source).await.unwrap();
        assert_eq!(found.sha256, sha256(&source));
        let seen = content(&p.store.image(id, found.format).path, found.format, &p.scratch("out"));
        assert_eq!(seen[..disk().len()], disk(), "{}", source.display());
        let info = run("qemu-img", &["info", text(&p.store.image(id, found.format).path)]);
        assert!(!info.contains("compression type: zstd"), "blockd does not read it: {info}");
    }
}

#[tokio::test]
async fn an_import_repeated_gives_the_same_answer() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    let request = ImportRequest {
        image: image_id(),
        kind: ImageKind::Disk,
        source: ImportSource::Path { path: raw.clone() },
        format: None,
        sha256: Some(sha256(&raw).to_uppercase()),
    };
    let import = || p.store.import(&request, quiet(), CancellationToken::new());
    let (first, second) = tokio::join!(import(), import());
    let first = first.unwrap();
    assert_eq!(first, second.unwrap());
    fs::remove_file(&raw).unwrap();
    // The source is not asked again... but it must still be there to be opened.
    fs::write(&raw, b"other").unwrap();
    assert_eq!(import().await.unwrap(), first);
    assert_eq!(p.files().len(), 2);
}

#[tokio::test]
async fn progress_ends_where_it_says_it_ends() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (note, request) = (
        seen.clone(),
        ImportRequest {
            image: image_id(),
            kind: ImageKind::Disk,
            source: ImportSource::Path { path: raw },
            format: None,
            sha256: None,
        },
    );
    let progress = Arc::new(move |done, all| note.lock().unwrap().push((done, all)));
    p.store.import(&request, progress, CancellationToken::new()).await.unwrap();
    let seen = seen.lock().unwrap();
    let all = Bytes(2 * disk().len() as u64);
    assert!(seen.is_sorted_by_key(|(done, _)| *done), "{seen:?}");
    assert_eq!(seen.last(), Some(&(all, Some(all))));
}

#[tokio::test]
async fn kernels_initrds_and_isos_are_kept_as_they_are() {
    let p = place();
    let mut kernel = noise(100_000);
    kernel[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let mut initrd = noise(5000);
    initrd[..6].copy_from_slice(b"070701");
    let iso = p.scratch("x.iso");
    run("genisoimage", &["-quiet", "-o", text(&iso), text(&p.write("f", b"x"))]);
    let cases = [
        (ImageKind::Kernel, p.write("kernel", &kernel)),
        (ImageKind::Initrd, p.write("initrd", &initrd)),
        (ImageKind::Iso, iso),
    ];
    for (kind, source) in cases {
        let (id, found) = p.import(kind, &source).await.unwrap();
        assert_eq!(found.format, VolumeFormat::Raw);
        assert_eq!(
            fs::read(p.store.image(id, found.format).path).unwrap(),
            fs::read(&source).unwrap()
        );
        for other in [ImageKind::Kernel, ImageKind::Iso] {
            if other != kind {
                assert!(matches!(p.import(other, &source).await, Err(StorageError::Invalid(_))));
            }
        }
    }
    assert_eq!(p.files().len(), 6);
}

#[tokio::test]
async fn uploads_are_imported_and_then_gone() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    let qcow2 = p.scratch("a.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]);
    for source in [&raw, &qcow2] {
        let upload = UploadId(Uuid::new_v4());
        let bytes = fs::read(source).unwrap();
        let length = p.store.receive(upload, &mut &bytes[..]).await.unwrap();
        assert_eq!(length.get(), bytes.len() as u64);
        let wrong = Some("0".repeat(64));
        let refused =
            p.import_as(ImageKind::Disk, ImportSource::Upload { upload }, None, wrong).await;
        assert!(matches!(refused, Err(StorageError::Checksum { .. })), "{refused:?}");
        // A failed import leaves the upload for another try.
        let (id, found) = p
            .import_as(ImageKind::Disk, ImportSource::Upload { upload }, None, Some(sha256(source)))
            .await
            .unwrap();
        let seen = content(&p.store.image(id, found.format).path, found.format, &p.scratch("out"));
        assert_eq!(seen, disk());
        let again = p.import_as(ImageKind::Disk, ImportSource::Upload { upload }, None, None).await;
        assert!(matches!(again, Err(StorageError::NotFound(_))), "{again:?}");
        p.store.discard_upload(upload).await.unwrap();
    }
    assert_eq!(p.files().len(), 4);
}

#[tokio::test]
async fn what_is_not_as_it_should_be_is_refused_and_leaves_nothing() {
    let p = place();
    let raw = p.write("a.raw", &disk());
    let make = |name: &str, args: &[&str]| {
        let path = p.scratch(name);
        run("qemu-img", &[args, &[text(&path)]].concat());
        path
    };
    let whole = make("whole.qcow2", &["convert", "-f", "raw", "-O", "qcow2", text(&raw)]);
    let packed = make("packed.qcow2", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw)]);
    let vmdk = make("whole.vmdk", &["convert", "-f", "raw", "-O", "vmdk", text(&raw)]);
    let vdi = make("whole.vdi", &["convert", "-f", "raw", "-O", "vdi", text(&raw)]);
    let vhdx = make("whole.vhdx", &["convert", "-f", "raw", "-O", "vhdx", text(&raw)]);
    let cut = |of: &std::path::Path, name: &str, by: usize| {
        let bytes = fs::read(of).unwrap();
        p.write(name, &bytes[..bytes.len() - by])
    };
    let bent = |of: &std::path::Path, name: &str, at: usize| {
        let mut bytes = fs::read(of).unwrap();
        bytes[at..at + 64].fill(0xa5);
        p.write(name, &bytes)
    };
    // The header's word on where the L1 table is.
    let damaged = [
        cut(&whole, "cut.qcow2", 200_000),
        cut(&packed, "cut-packed.qcow2", 3000),
        cut(&vmdk, "cut.vmdk", 200_000),
        cut(&vdi, "cut.vdi", 200_000),
        cut(&vhdx, "cut.vhdx", 4 << 20),
        cut(&raw, "cut.raw", 100),
        bent(&whole, "bent.qcow2", 64 << 10),
        bent(&whole, "bent-l1.qcow2", 3 * (64 << 10)),
        p.write("empty", b""),
        p.write("short.qcow2", b"QFI\xfb\0\0\0\x03"),
        p.write("short.gz", &{
            run("gzip", &["-kf", text(&raw)]);
            let gz = fs::read(p.scratch("a.raw.gz")).unwrap();
            gz[..gz.len() / 2].to_vec()
        }),
    ];
    for path in damaged {
        let result = p.import(ImageKind::Disk, &path).await;
        assert!(
            matches!(result, Err(StorageError::Corrupt { .. })),
            "{}: {result:?}",
            path.display()
        );
    }
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&raw),
            "-F",
            "raw",
            text(&p.scratch("backed.qcow2")),
        ],
    );
    let data = format!("data_file={}", text(&p.scratch("data")));
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &data, text(&p.scratch("outside.qcow2")), "1M"],
    );
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            "subformat=monolithicFlat",
            text(&p.scratch("flat.vmdk")),
            "1M",
        ],
    );
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vpc",
            "-o",
            "subformat=fixed",
            text(&p.scratch("fixed.vhd")),
            "1M",
        ],
    );
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            text(&vmdk),
            "-F",
            "vmdk",
            text(&p.scratch("child.vmdk")),
        ],
    );
    let unfit = [
        p.scratch("backed.qcow2"),
        p.scratch("outside.qcow2"),
        p.scratch("flat.vmdk"),
        p.scratch("fixed.vhd"),
        p.scratch("child.vmdk"),
        p.write("page", b"<!DOCTYPE html><html><body>404</body></html>"),
        p.dir.path().to_owned(),
    ];
    for path in unfit {
        let result = p.import(ImageKind::Disk, &path).await;
        assert!(matches!(result, Err(StorageError::Invalid(_))), "{}: {result:?}", path.display());
    }
    let absent = p.import(ImageKind::Disk, &p.scratch("absent")).await;
    assert!(matches!(absent, Err(StorageError::NotFound(_))), "{absent:?}");
    let path = ImportSource::Path { path: whole };
    let stated = p.import_as(ImageKind::Disk, path.clone(), Some(SourceFormat::Raw), None).await;
    assert!(matches!(stated, Err(StorageError::Invalid(_))), "{stated:?}");
    let sum = p.import_as(ImageKind::Disk, path.clone(), None, Some("abc".into())).await;
    assert!(matches!(sum, Err(StorageError::Invalid(_))), "{sum:?}");
    let sum = p.import_as(ImageKind::Disk, path, None, Some("a".repeat(64))).await;
    assert!(matches!(sum, Err(StorageError::Checksum { .. })), "{sum:?}");
    assert_eq!(p.files(), [""; 0]);
}

#[tokio::test]
async fn a_cancelled_import_leaves_nothing() {
    let p = place();
    let raw = p.write("a.raw", &noise(48 << 20));
    let cancel = CancellationToken::new();
    let request = ImportRequest {
        image: image_id(),
        kind: ImageKind::Disk,
        source: ImportSource::Path { path: raw },
        format: None,
        sha256: None,
    };
    // In the first phase, and in the second.
    for at in [1 << 20, 60 << 20] {
        let cancel_at = cancel.child_token();
        let stop = cancel_at.clone();
        let progress = Arc::new(move |done: Bytes, _| {
            if done.get() > at {
                stop.cancel();
            }
        });
        let result = p.store.import(&request, progress, cancel_at).await;
        assert!(matches!(result, Err(StorageError::Cancelled)), "{result:?}");
        assert_eq!(p.files(), [""; 0]);
    }
    p.store.import(&request, quiet(), cancel).await.unwrap();
}

#[tokio::test]
async fn an_images_file_is_read_by_other_servers_from_anywhere_in_it() {
    use tokio::io::AsyncReadExt;
    let p = place();
    let path = p.write("disk.raw", &disk());
    let (image, content) = p.import(ImageKind::Disk, &path).await.unwrap();
    let stored = fs::read(&p.store.image(image, content.format).path).unwrap();
    let sum = p.write("stored", &stored);
    let sum = run("sha256sum", &[text(&sum)]);
    for offset in [0, 1, stored.len() / 2, stored.len()] {
        let mut read = p.store.read_image(image, Bytes(offset as u64)).await.unwrap();
        assert_eq!(read.size, Bytes(stored.len() as u64));
        assert!(sum.starts_with(&read.sha256), "{sum} {}", read.sha256);
        let mut bytes = Vec::new();
        read.bytes.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == stored[offset..]);
    }
    let beyond = p.store.read_image(image, Bytes(stored.len() as u64 + 1)).await.err();
    assert!(matches!(beyond, Some(StorageError::Invalid(_))), "{beyond:?}");
    let absent = p.store.read_image(image_id(), Bytes::ZERO).await.err();
    assert!(matches!(absent, Some(StorageError::NotFound(_))), "{absent:?}");
    // Its description, which has the checksum now, still says the same.
    let source = ImportSource::Path { path };
    let kind = ImageKind::Disk;
    let again = ImportRequest { image, kind, source, format: None, sha256: None };
    let found = p.store.import(&again, quiet(), CancellationToken::new()).await.unwrap();
    assert_eq!(found, content);
}

#[tokio::test]
async fn an_import_is_repeated_when_its_upload_is_gone() {
    let p = place();
    let upload = UploadId(Uuid::new_v4());
    p.store.receive(upload, &mut &disk()[..]).await.unwrap();
    let source = ImportSource::Upload { upload };
    let kind = ImageKind::Disk;
    let request = ImportRequest { image: image_id(), kind, source, format: None, sha256: None };
    let first = p.store.import(&request, quiet(), CancellationToken::new()).await.unwrap();
    let second = p.store.import(&request, quiet(), CancellationToken::new()).await.unwrap();
    assert_eq!(first, second);
    assert!(p.files().iter().all(|f| !f.starts_with("incoming/")), "{:?}", p.files());
}
