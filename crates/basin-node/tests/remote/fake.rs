use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use basin_model::datastore::{Capacity, Datastore};
use basin_model::host::{HostCapacity, HostStatus, KvmVerdict, QemuInfo};
use basin_model::image::ImageContent;
use basin_model::task::Problem;
use basin_model::volume::{Volume, VolumeFormat};
use basin_model::{Bytes, DatastoreId, HostId, ImageId, TaskId, Vcpus, VmId};
use basin_node::migration::types::{Aborted, Begin, Copied, Prepare, Prepared, Report, Stage};
use basin_node::{Chain, ConsoleLink, NodeApi, NodeError, NodeUsage, VmUsage};
use basin_qemu::Hardware;
use basin_qemu::migrate::MigrationSupport;
use basin_storage::{ImageBytes, ImportRequest, Progress, Proof, UploadId};
use futures::stream;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Notes what it is asked, and answers or refuses as told.
#[derive(Default)]
pub struct Fake {
    pub calls: Mutex<Vec<(&'static str, Value)>>,
    pub refusal: Mutex<Option<Problem>>,
    /// Long methods go on until they are cancelled, this long after.
    pub endless: Mutex<Option<std::time::Duration>>,
    /// How many long methods are under way.
    pub running: AtomicU32,
    /// The most there ever were at once.
    pub most: AtomicU32,
    pub uploaded: Mutex<Vec<u8>>,
    /// Uploads are not read: the disk does not take them.
    pub stuck: AtomicBool,
    /// Uploads that broke off.
    pub broken: AtomicU32,
    /// What the console's other end writes with; None: nobody has it open.
    pub say: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
}

type Answer<T> = Result<T, NodeError>;

impl Fake {
    fn note(&self, method: &'static str, arguments: Value) -> Answer<()> {
        self.calls.lock().unwrap().push((method, arguments));
        match &*self.refusal.lock().unwrap() {
            Some(problem) => Err(NodeError(problem.clone())),
            None => Ok(()),
        }
    }

    pub fn last(&self) -> (&'static str, Value) {
        self.calls.lock().unwrap().last().cloned().unwrap()
    }

    async fn long(&self, progress: Progress, cancel: CancellationToken) -> Answer<()> {
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        progress(Bytes::mib(1), None);
        let endless = *self.endless.lock().unwrap();
        let result = match endless {
            None => {
                progress(Bytes::mib(3), Some(Bytes::mib(3)));
                Ok(())
            }
            Some(winding_down) => {
                cancel.cancelled().await;
                tokio::time::sleep(winding_down).await;
                Err(NodeError(cancelled()))
            }
        };
        self.running.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

pub fn cancelled() -> Problem {
    Problem { code: "cancelled".into(), detail: "cancelled".into(), advice: "again".into() }
}

pub fn capacity() -> Capacity {
    Capacity { total: Bytes::gib(9), used: Bytes::mib(5), free: Bytes(7) }
}

pub fn status() -> HostStatus {
    HostStatus {
        host: HostId::from_uuid(Uuid::nil()),
        daemon_version: "0.1.0".into(),
        boot_id: "b".into(),
        started_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        kernel: "6.1".into(),
        cpu_model: "x".into(),
        capacity: HostCapacity { cpus: Vcpus(4), memory: Bytes::gib(8) },
        qemu: QemuInfo::Usable { path: "/q".into(), version: "7.2".into() },
        kvm: KvmVerdict { usable: false, reason: "no".into() },
        cgroups: "v2".into(),
        conditions: vec![],
        hardware: Some(basin_qemu::fake::hardware_facts()),
        overlay_mtu: Some(1450),
        trunks: Vec::new(),
        shared_datastores: Default::default(),
    }
}

pub fn usage() -> NodeUsage {
    let mut usage = NodeUsage::default();
    usage.host.cpu_busy = std::time::Duration::from_nanos(1_500_000_007);
    usage.host.blockd_resident = Some(Bytes::mib(3));
    let mut vm = VmUsage { resident: Bytes(u64::MAX), ..VmUsage::default() };
    vm.balloon = Some(basin_qemu::BalloonStats { free: Some(Bytes(5)), ..Default::default() });
    vm.guest = Some(basin_qemu::GuestInfo { hostname: Some("ü".into()), ..Default::default() });
    let volume = basin_model::VolumeId::from_uuid(Uuid::from_u128(7));
    vm.disks.insert(volume, basin_node::DiskUsage { reads: 3, ..Default::default() });
    usage.vms.insert(VmId::from_uuid(Uuid::from_u128(8)), vm);
    usage
}

pub fn content() -> ImageContent {
    ImageContent {
        format: VolumeFormat::Qcow2,
        virtual_size: Bytes::gib(2),
        file_size: Bytes::mib(300),
        sha256: "ab".repeat(32),
    }
}

/// More than one frame holds.
pub fn image_file() -> Vec<u8> {
    (0..3_000_001u32).map(|n| (n % 251) as u8).collect()
}

pub fn hardware() -> Hardware {
    Hardware {
        machine: "pc-q35-7.2".into(),
        cpu: "Nehalem".into(),
        accelerator: "tcg".into(),
        ram: Bytes::mib(256),
        max_vcpus: Vcpus(2),
        flash: None,
        described: false,
        layout: 1,
    }
}

pub fn prepared() -> Prepared {
    let disk = basin_model::VolumeId::from_uuid(Uuid::from_u128(5));
    Prepared {
        address: "10.0.0.2:4711".parse().unwrap(),
        disks: [(disk, "10.0.0.2:10809".parse().unwrap())].into(),
    }
}

#[async_trait]
impl NodeApi for Fake {
    async fn status(&self) -> Answer<HostStatus> {
        self.note("status", json!({}))?;
        Ok(status())
    }

    async fn usage(&self) -> Answer<NodeUsage> {
        self.note("usage", json!({}))?;
        Ok(usage())
    }

    async fn open_datastore(&self, datastore: &Datastore) -> Answer<Capacity> {
        self.note("open_datastore", json!([datastore]))?;
        Ok(capacity())
    }

    async fn close_datastore(&self, datastore: DatastoreId) -> Answer<()> {
        self.note("close_datastore", json!([datastore]))
    }

    async fn discard_datastore(&self, datastore: &Datastore) -> Answer<()> {
        self.note("discard_datastore", json!([datastore]))
    }

    async fn witness_datastore(
        &self,
        datastore: DatastoreId,
        from: HostId,
        proof: Proof,
    ) -> Answer<Proof> {
        self.note("witness_datastore", json!([datastore, from, proof]))?;
        Ok(Proof(Uuid::from_u128(9)))
    }

    async fn capacity(&self, datastore: DatastoreId) -> Answer<Capacity> {
        self.note("capacity", json!([datastore]))?;
        Ok(capacity())
    }

    async fn check_subnet(&self, subnet: Ipv4Net) -> Answer<()> {
        self.note("check_subnet", json!([subnet]))
    }

    async fn import_image(
        &self,
        datastore: DatastoreId,
        request: &ImportRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<ImageContent> {
        self.note("import_image", json!([datastore, request]))?;
        self.long(progress, cancel).await?;
        Ok(content())
    }

    async fn receive_upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Answer<Bytes> {
        self.note("receive_upload", json!([datastore, upload]))?;
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let mut all = Vec::new();
        match bytes.read_to_end(&mut all).await {
            Ok(size) => {
                *self.uploaded.lock().unwrap() = all;
                Ok(Bytes(size as u64))
            }
            Err(_) => {
                self.broken.fetch_add(1, Ordering::SeqCst);
                Err(NodeError(cancelled()))
            }
        }
    }

    async fn discard_upload(&self, datastore: DatastoreId, upload: UploadId) -> Answer<()> {
        self.note("discard_upload", json!([datastore, upload]))
    }

    async fn read_image(
        &self,
        datastore: DatastoreId,
        image: ImageId,
        offset: Bytes,
    ) -> Answer<ImageBytes> {
        self.note("read_image", json!([datastore, image, offset]))?;
        let bytes = match self.endless.lock().unwrap().is_some() {
            false => image_file()[offset.get() as usize..]
                .chunks(1 << 20)
                .map(|c| Ok(c.to_vec()))
                .collect(),
            true => vec![Ok(vec![1; 1000]), Err(std::io::Error::other("the disk broke"))],
        };
        let bytes = StreamReader::new(stream::iter(
            bytes.into_iter().map(|b: std::io::Result<Vec<u8>>| b.map(bytes::Bytes::from)),
        ));
        let size = Bytes(image_file().len() as u64);
        Ok(ImageBytes { size, sha256: "cd".repeat(32), bytes: Box::pin(bytes) })
    }

    async fn delete_image(&self, datastore: DatastoreId, image: ImageId) -> Answer<()> {
        self.note("delete_image", json!([datastore, image]))
    }

    async fn create_volume(
        &self,
        volume: &Volume,
        chain: &Chain,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Answer<()> {
        self.note("create_volume", json!([volume, chain]))?;
        self.long(progress, cancel).await
    }

    async fn grow_volume(&self, volume: &Volume, size: Bytes) -> Answer<()> {
        self.note("grow_volume", json!([volume, size]))
    }

    async fn delete_volume(&self, volume: &Volume) -> Answer<()> {
        let running = self.running.load(Ordering::SeqCst);
        self.note("delete_volume", json!([volume, running]))
    }

    async fn allocated(&self, volume: &Volume) -> Answer<Bytes> {
        self.note("allocated", json!([volume]))?;
        Ok(Bytes(12345))
    }

    async fn forget_vm(&self, vm: VmId) -> Answer<()> {
        self.note("forget_vm", json!([vm]))
    }

    async fn migration_support(&self) -> Answer<MigrationSupport> {
        self.note("migration_support", json!([]))?;
        Ok(MigrationSupport { version: "7.2.22".into(), ..Default::default() })
    }

    async fn guest_hardware(&self, vm: VmId) -> Answer<Hardware> {
        self.note("guest_hardware", json!([vm]))?;
        Ok(hardware())
    }

    async fn migrate_prepare(&self, prepare: &Prepare) -> Answer<Prepared> {
        self.note("migrate_prepare", json!([prepare]))?;
        Ok(prepared())
    }

    async fn migrate_begin(&self, begin: &Begin) -> Answer<()> {
        self.note("migrate_begin", json!([begin]))
    }

    async fn migrate_report(&self, vm: VmId, task: TaskId) -> Answer<Report> {
        self.note("migrate_report", json!([vm, task]))?;
        Ok(Report {
            stage: Stage::Stayed { cancelled: true, why: "ü".into(), full: Vec::new() },
            disks: Copied { total: Bytes(9), left: Bytes(3) },
            memory: Copied::default(),
            dirty_rate: basin_model::BytesPerSecond(1),
            bandwidth: basin_model::BytesPerSecond(2),
            remaining_time: Some(std::time::Duration::from_millis(1500)),
            throttle: 20,
            passes: 3,
        })
    }

    async fn migrate_cancel(&self, vm: VmId, task: TaskId) -> Answer<()> {
        self.note("migrate_cancel", json!([vm, task]))
    }

    async fn migrate_abort(&self, vm: VmId, task: TaskId) -> Answer<Aborted> {
        self.note("migrate_abort", json!([vm, task]))?;
        Ok(Aborted::Runs)
    }

    async fn migrate_listen_again(&self, vm: VmId, task: TaskId) -> Answer<SocketAddr> {
        self.note("migrate_listen_again", json!([vm, task]))?;
        Ok("[fd00::1]:7".parse().unwrap())
    }

    async fn migrate_reconnect(&self, vm: VmId, task: TaskId, to: SocketAddr) -> Answer<()> {
        self.note("migrate_reconnect", json!([vm, task, to]))
    }

    async fn console(&self, vm: VmId) -> Answer<ConsoleLink> {
        self.note("console", json!([vm]))?;
        let (say, output) = mpsc::channel(4);
        let (input, mut typed) = mpsc::channel::<Vec<u8>>(4);
        *self.say.lock().unwrap() = Some(say.clone());
        tokio::spawn(async move {
            // Echoes, as a terminal does.
            while let Some(bytes) = typed.recv().await {
                let _ = say.send(bytes).await;
            }
        });
        Ok(ConsoleLink { history: b"what was before\n".to_vec(), output, input })
    }

    async fn console_log(&self, vm: VmId, bytes: usize) -> Answer<Vec<u8>> {
        self.note("console_log", json!([vm, bytes]))?;
        Ok(vec![0xff; bytes])
    }
}
