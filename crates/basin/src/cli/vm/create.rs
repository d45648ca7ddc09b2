//! `basin vm create`: from flags or a file to the API's request.

use std::path::{Path, PathBuf};

use basin_api::vm::{CloudInit, DiskChoice, Machine, NewDisk, NewNic, Vm, VmCreate};
use basin_api::volume::VolumeSource;
use clap::{Args, ValueEnum};

use super::boot::{BootArgs, PolicyArgs};
use crate::cli::error::CliError;
use crate::cli::follow::Wait;
use crate::cli::session::{Session, read_text};
use crate::cli::spec::{CloneArg, is_ssh_key, parse_disk, parse_label, parse_nic, ssh_keys};
use crate::cli::text::parse_size;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin vm create web --image debian-12 --memory 2GiB --disk-size 20GiB \\
      --ssh-key ~/.ssh/id_ed25519.pub --start
  basin vm create db --cpus 4 --memory 8GiB --image debian-12 --disk size=100GiB
  basin vm create install --uefi --disk size=40GiB --iso debian-12-netinst --start
  basin vm create tiny --machine microvm --kernel linux --initrd busybox --cmdline console=ttyS0
  basin vm create web --image debian-12 --dry-run > web.yaml
  basin vm create -f web.yaml

A disk (--disk) is one of:
  size=20GiB[,format=raw|qcow2]              a blank one
  image=NAME[,size=SIZE][,clone=full]        an image's content
  from=VOLUME[,size=SIZE][,clone=full]       a copy of a volume
  volume=NAME                                a volume that exists, and stays when the VM goes
and any of them may have serial=TEXT and ro (read-only), new ones datastore=NAME.")]
pub struct CreateArgs {
    /// Its name: a DNS label
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Start it once it is made
    #[arg(long)]
    start: bool,
    /// A label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Words about it
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Chipset: q35 for any guest, microvm for Linux in a hurry [default: q35]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "q35|microvm")]
    machine: Option<MachineArg>,
    /// CPU model of QEMU; the best for the server when absent
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,
    /// Make it as this file says (YAML or JSON, as the API takes it; `-` is standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with_all = FLAGS)]
    file: Option<PathBuf>,
    /// Print the file that would make this VM, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,

    /// Clone the first disk from this image
    #[arg(long, help_heading = "Disks")]
    image: Option<String>,
    /// Size of that disk; the image's when absent
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "image")]
    #[arg(help_heading = "Disks")]
    disk_size: Option<u64>,
    /// How to clone it [default: linked]
    #[arg(long, value_enum, requires = "image", help_heading = "Disks")]
    clone: Option<CloneArg>,
    /// Another disk (repeatable); see below
    #[arg(long, value_name = "SPEC", value_parser = parse_disk, help_heading = "Disks")]
    disk: Vec<NewDisk>,
    /// An ISO image in a CD-ROM drive (repeatable)
    #[arg(long, value_name = "IMAGE", help_heading = "Disks")]
    iso: Vec<String>,

    /// An interface (repeatable): NETWORK[,mac=MAC][,address=IP]; one on `default` when absent
    #[arg(long, value_name = "SPEC", value_parser = parse_nic, help_heading = "Network")]
    network: Vec<NewNic>,
    /// No interface at all
    #[arg(long, conflicts_with = "network", help_heading = "Network")]
    no_network: bool,

    /// Log-in name that cloud-init makes; the image's default when absent
    #[arg(long, help_heading = "Cloud-init")]
    user: Option<String>,
    /// A public key for logging in, or a file of them (repeatable)
    #[arg(long, value_name = "FILE | KEY", help_heading = "Cloud-init")]
    ssh_key: Vec<String>,
    /// Hash of a password for the console, as `openssl passwd -6` makes it
    #[arg(long, value_name = "HASH", help_heading = "Cloud-init")]
    password_hash: Option<String>,
    /// A whole user-data document, instead of --user, --ssh-key and --password-hash
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "ssh_key", "password_hash"])]
    #[arg(help_heading = "Cloud-init")]
    user_data: Option<PathBuf>,
    /// A network-config document (version 2), instead of DHCP on every interface
    #[arg(long, value_name = "FILE", help_heading = "Cloud-init")]
    network_config: Option<PathBuf>,

    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// What a file says in their stead.
const FLAGS: [&str; 25] = [
    "cpus",
    "memory",
    "label",
    "description",
    "machine",
    "cpu_model",
    "image",
    "disk_size",
    "clone",
    "disk",
    "iso",
    "network",
    "no_network",
    "user",
    "ssh_key",
    "password_hash",
    "user_data",
    "network_config",
    "uefi",
    "bios",
    "kernel",
    "initrd",
    "cmdline",
    "on_crash",
    "on_death",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MachineArg {
    Q35,
    Microvm,
}

const DEFAULT_MEMORY: u64 = 1 << 30;

impl CreateArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let (wait, dry_run) = (self.wait, self.dry_run);
        let create = self.request(&read_text)?;
        if dry_run {
            let yaml = |it: &VmCreate| serde_yaml_ng::to_string(it).unwrap_or_default();
            return session.out.object(&create, yaml);
        }
        let verb = if create.start { "created and started" } else { "created" };
        let task = session.client.create::<Vm>(&create).await?;
        session.finish::<Vm>(task, wait, verb).await
    }

    /// The request that the flags mean; `read` gives a file's text.
    fn request(
        self,
        read: &dyn Fn(&Path) -> Result<String, CliError>,
    ) -> Result<VmCreate, CliError> {
        if let Some(file) = &self.file {
            let mut create = parse_file(file, &read(file)?)?;
            create.name = self.name.unwrap_or(create.name);
            create.start |= self.start;
            return Ok(create);
        }
        let cloud_init = self.cloud_init(read)?;
        let first = self.image.map(|image| NewDisk {
            disk: DiskChoice::New {
                source: VolumeSource::Image {
                    image,
                    clone: self.clone.map(Into::into).unwrap_or_default(),
                    size_bytes: self.disk_size,
                },
                format: None,
                datastore: None,
            },
            read_only: false,
            serial: None,
        });
        let nics = match (self.no_network, self.network) {
            (true, _) => Some(Vec::new()),
            (false, nics) if nics.is_empty() => None,
            (false, nics) => Some(nics),
        };
        Ok(VmCreate {
            name: self.name.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            labels: self.label.into_iter().collect(),
            vcpus: self.cpus.unwrap_or(1),
            memory_bytes: self.memory.unwrap_or(DEFAULT_MEMORY),
            cpu_model: self.cpu_model,
            machine: match self.machine {
                Some(MachineArg::Microvm) => Machine::Microvm,
                Some(MachineArg::Q35) | None => Machine::Q35,
            },
            boot: self.boot.boot().unwrap_or_default(),
            disks: first.into_iter().chain(self.disk).collect(),
            cdroms: self.iso,
            nics,
            cloud_init,
            policy: self.policy.over(Default::default()),
            start: self.start,
        })
    }

    /// None when no flag says anything about it.
    fn cloud_init(
        &self,
        read: &dyn Fn(&Path) -> Result<String, CliError>,
    ) -> Result<Option<CloudInit>, CliError> {
        let mut keys = Vec::new();
        for key in &self.ssh_key {
            if is_ssh_key(key) {
                keys.push(key.trim().to_owned());
                continue;
            }
            let found = ssh_keys(&read(Path::new(key))?)
                .map_err(|e| CliError::usage(format!("cannot use the ssh key {key}: {e}"), ""))?;
            keys.extend(found);
        }
        let document = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let cloud_init = CloudInit {
            user: self.user.clone(),
            ssh_keys: keys,
            password_hash: self.password_hash.clone(),
            user_data: document(&self.user_data)?,
            network_config: document(&self.network_config)?,
        };
        Ok((cloud_init != CloudInit::default()).then_some(cloud_init))
    }
}

fn parse_file(path: &Path, text: &str) -> Result<VmCreate, CliError> {
    let bad = |e: String| {
        CliError::usage(
            format!("{} does not describe a VM: {e}", path.display()),
            "`basin vm create NAME … --dry-run` prints such a file",
        )
    };
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| bad(e.to_string()))
    } else {
        serde_yaml_ng::from_str(text).map_err(|e| bad(e.to_string()))
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
