//! The guests that tests run, and requests for VMs of them.

use std::path::{Path, PathBuf};

use basin_api::image::{Image, ImageCreate, ImageKind, ImageSource};
use basin_api::reference::Labels;
use basin_api::vm::{Boot, CloudInit, DiskChoice, FailurePolicy, Machine, NewDisk, VmCreate};
use basin_api::volume::{CloneKind, VolumeCreate, VolumeSource};

use crate::server::Server;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// The files of the micro guest.
pub fn micro(file: &str) -> PathBuf {
    guests().join("micro").join(file)
}

pub fn debian_disk() -> PathBuf {
    guests().join("debian/disk.qcow2")
}

fn guests() -> PathBuf {
    std::env::var_os("BASIN_GUEST_IMAGES").expect("set BASIN_GUEST_IMAGES").into()
}

/// A request to import a file of this machine.
pub fn import(name: &str, kind: ImageKind, path: &Path) -> ImageCreate {
    ImageCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: Labels::new(),
        kind,
        source: ImageSource::Path { path: path.display().to_string() },
        format: None,
        sha256: None,
        datastore: None,
    }
}

/// A request for a VM with no disk, on the default network, which is not started.
pub fn vm(name: &str, machine: Machine, boot: Boot, memory_bytes: u64) -> VmCreate {
    VmCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: Labels::new(),
        vcpus: 1,
        memory_bytes,
        cpu_model: None,
        machine,
        boot,
        disks: Vec::new(),
        cdroms: Vec::new(),
        nics: None,
        cloud_init: None,
        policy: FailurePolicy::default(),
        start: false,
    }
}

/// A new disk of zeroes.
pub fn blank(size_bytes: u64) -> NewDisk {
    new_disk(VolumeSource::Blank { size_bytes })
}

pub fn new_disk(source: VolumeSource) -> NewDisk {
    let disk = DiskChoice::New { source, format: None, datastore: None };
    NewDisk { disk, read_only: false, serial: None }
}

/// A volume that exists.
pub fn existing(volume: &str) -> NewDisk {
    let disk = DiskChoice::Existing { volume: volume.to_owned() };
    NewDisk { disk, read_only: false, serial: None }
}

/// Adds words to a guest's kernel line, such as `micro.ip=off`.
#[track_caller]
pub fn add_kernel_words(vm: &mut VmCreate, words: &str) {
    let Boot::Kernel { command_line, .. } = &mut vm.boot else {
        panic!("{} boots no kernel directly", vm.name)
    };
    command_line.push(' ');
    command_line.push_str(words);
}

impl Server {
    /// A request for a micro guest (docs/guest-images.md), on the default network.
    #[track_caller]
    pub fn micro(&self, name: &str, machine: Machine) -> VmCreate {
        self.imported.get_or_init(|| {
            for (name, kind, file) in [
                ("vmlinuz", ImageKind::Kernel, "vmlinuz"),
                ("vmlinux", ImageKind::Kernel, "vmlinux"),
                ("initrd", ImageKind::Initrd, "initrd.img"),
            ] {
                self.import(name, kind, &micro(file));
            }
        });
        let (kernel, words) = match machine {
            Machine::Q35 => ("vmlinuz", ""),
            // Without a clock to measure the TSC by, emulated guests hang at times.
            Machine::Microvm => ("vmlinux", " reboot=t tsc_early_khz=2600000"),
        };
        let boot = Boot::Kernel {
            kernel: kernel.to_owned(),
            initrd: Some("initrd".to_owned()),
            command_line: format!("console=ttyS0 quiet micro.hostname={name}{words}"),
        };
        vm(name, machine, boot, 128 * MIB)
    }

    /// A request for a Debian guest with a disk cloned from the image `debian`, which
    /// has to be imported (see [`Server::import`]), and a key to log in with.
    pub fn debian(&self, name: &str, firmware: Boot, ssh_key: &str) -> VmCreate {
        let (image, clone) = ("debian".to_owned(), CloneKind::Linked);
        let source = VolumeSource::Image { image, clone, size_bytes: None };
        VmCreate {
            vcpus: 2,
            disks: vec![new_disk(source)],
            cloud_init: Some(CloudInit {
                ssh_keys: vec![ssh_key.to_owned()],
                ..CloudInit::default()
            }),
            ..vm(name, Machine::Q35, firmware, 512 * MIB)
        }
    }

    #[track_caller]
    pub fn import(&self, name: &str, kind: ImageKind, path: &Path) {
        self.done(self.client().create::<Image>(&import(name, kind, path)));
    }
}

/// A request for an empty volume of a mebibyte.
pub fn volume(name: &str, datastore: Option<&str>) -> VolumeCreate {
    VolumeCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: Labels::new(),
        source: VolumeSource::Blank { size_bytes: MIB },
        format: None,
        datastore: datastore.map(str::to_owned),
    }
}
