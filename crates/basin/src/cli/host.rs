//! `basin host`.

use basin_api::cluster::DrainRequest;
use basin_api::host::{Condition, Host, HostState, Trunk, TrunkSet};
use clap::Subcommand;
use jiff::Timestamp;

use super::error::CliError;
use super::meta::MetaCommand;
use super::session::{Session, sentence};
use super::table::Sheet;
use super::text::{age, clean, size};
use super::view::{View, meta_sheet, word};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List servers and what their VMs take of them
    #[command(visible_alias = "ls")]
    List,
    /// Show one in full: its hardware, QEMU, and why KVM is or is not used
    Show { host: String },
    /// Empty a server by moving its VMs away, and keep it empty
    #[command(after_help = "Examples:
  basin host drain srv2                 move its VMs to the others, then show what is left
  basin host drain srv2 --move-disks    also VMs with disks on its own datastores
  basin host undrain srv2               it takes VMs again")]
    Drain {
        host: String,
        /// Disks that only this server reaches move along
        #[arg(long)]
        move_disks: bool,
        /// Do not wait until it is empty
        #[arg(long)]
        no_wait: bool,
    },
    /// End the maintenance: the server takes VMs again
    Undrain { host: String },
    /// Name the interface by which a server has VLANs of the physical network
    #[command(after_help = "Examples:
  basin host set-trunk srv1 eth1                  all VLANs, each with its tag
  basin host set-trunk srv1 eth2 --untagged 120   VLAN 120 alone, without tags
  basin network create office --vlan 120 --subnet 10.20.0.0/24 --gateway 10.20.0.1

With tags, the server itself may go on using the interface. Without, the interface is for
guests alone. Basin sets it up, and changes nothing else of it.")]
    SetTrunk {
        host: String,
        interface: String,
        /// The only VLAN that it has, without tags
        #[arg(long, value_name = "VLAN")]
        untagged: Option<u16>,
    },
    /// Take back an interface by which a server had VLANs; no VM there may need it
    UnsetTrunk {
        host: String,
        /// The interface that has this VLAN without tags
        #[arg(long, value_name = "VLAN")]
        untagged: Option<u16>,
    },
    /// Shut a server out of the cluster for good; it must be empty
    #[command(visible_alias = "rm")]
    Remove {
        host: String,
        /// It never comes back, whatever was on it
        #[arg(long)]
        dead: bool,
    },
    #[command(flatten)]
    Meta(MetaCommand),
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Host>(&[].into()).await,
            Command::Show { host } => session.show::<Host>(&host).await,
            Command::Drain { host, move_disks, no_wait } => {
                drain(session, &host, move_disks, no_wait).await
            }
            Command::Undrain { host } => {
                session.said(&session.client.undrain_host(&host).await?, "takes VMs again")
            }
            Command::SetTrunk { host, interface, untagged } => {
                let trunk = TrunkSet { interface, untagged };
                session.said(&session.client.set_trunk(&host, &trunk).await?, "has its trunk")
            }
            Command::UnsetTrunk { host, untagged } => {
                let host = session.client.unset_trunk(&host, untagged).await?;
                session.said(&host, "has that trunk no more")
            }
            Command::Remove { host, dead } => {
                session.client.remove_host(&host, dead).await?;
                if session.out.is_table() {
                    super::out::write(sentence::<Host>(&host, "removed").as_bytes())?;
                }
                Ok(())
            }
            Command::Meta(command) => command.run::<Host>(session).await,
        }
    }
}

/// Waits until the server is empty, or what is left cannot move.
async fn drain(
    session: &Session,
    which: &str,
    move_local_disks: bool,
    no_wait: bool,
) -> Result<(), CliError> {
    let how = DrainRequest { move_local_disks };
    let mut host = session.client.drain_host(which, &how).await?;
    while !no_wait && host.state == HostState::Draining && !settled(&host) {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted(format!(
                "The drain goes on without you.\n  \
                 see how far it is: basin host show {which}\n  end it: basin host undrain {which}"
            ))),
        }
        host = session.client.get::<Host>(&host.meta.id).await?;
    }
    match host.state {
        HostState::Drained => session.said(&host, "is empty, and takes no VMs"),
        _ if host.stuck.is_empty() => session.said(&host, "is being emptied"),
        _ => {
            if !session.out.is_table() {
                return session.out.data(&host);
            }
            let stuck = host.stuck.iter().map(|s| {
                let reasons: String =
                    s.reasons.iter().map(|r| format!("\n    {}", clean(r))).collect();
                format!("  {}{reasons}\n", clean(&s.vm))
            });
            let advice = "what has to be done is said above; the drain goes on by itself then";
            let left: String = stuck.collect();
            Err(CliError::failed(format!("these VMs cannot leave {which}:\n{left}"), advice))
        }
    }
}

/// Whether all that is left is stuck, and nothing of it goes away by itself.
fn settled(host: &Host) -> bool {
    let stuck = host.stuck.iter().filter(|stuck| !stuck.waits).count();
    stuck > 0 && stuck as u32 >= host.committed.vms
}

const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

impl View for Host {
    const COLUMNS: &[&str] = &[
        "NAME",
        "STATE",
        "VMS",
        "CPUS",
        "VCPUS",
        "MEMORY",
        "COMMITTED",
        "ACCELERATOR",
        "QEMU",
        "UP",
    ];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let status = self.status.as_ref();
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        vec![
            self.meta.name.clone(),
            state(self),
            self.committed.vms.to_string(),
            or_unknown(status.map(|s| s.cpus.to_string())),
            self.committed.vcpus.to_string(),
            or_unknown(status.map(|s| size(s.memory_bytes))),
            size(self.committed.memory_bytes),
            or_unknown(status.map(|s| s.accelerator.clone())),
            or_unknown(status.map(|s| s.qemu_version.clone().unwrap_or_else(|| "unusable".into()))),
            or_unknown(status.map(|s| age(now, &s.started_at))),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        let committed = &self.committed;
        sheet.pair("State", state(self)).some("Address", self.address.as_deref());
        for trunk in &self.trunks {
            sheet.pair("Trunk", trunk_line(trunk));
        }
        for stuck in &self.stuck {
            let what = if stuck.waits { "Leaves later" } else { "Cannot leave" };
            sheet.pair(what, format!("{}: {}", stuck.vm, stuck.reasons.join("; ")));
        }
        sheet.pair(
            "Committed",
            format!(
                "{} vCPUs and {} to {} VMs",
                committed.vcpus,
                size(committed.memory_bytes),
                committed.vms
            ),
        );
        let Some(status) = &self.status else {
            sheet.pair("Status", "its daemon has not reported yet");
            return sheet;
        };
        for condition in &status.conditions {
            let Condition { subject, detail, advice } = condition;
            sheet.pair("Attention", clean(&format!("{subject}: {detail} {advice}")));
        }
        sheet
            .pair("CPUs", format!("{} ({})", status.cpus, status.cpu_model))
            .pair("Memory", size(status.memory_bytes))
            .some("Free memory", status.usage.map(|u| size(u.memory_available_bytes)))
            .pair("Accelerator", format!("{} ({})", status.accelerator, status.kvm_reason))
            .some("QEMU", status.qemu_version.as_deref())
            .some("QEMU problem", status.qemu_problem.as_deref())
            .pair("Kernel", &status.kernel)
            .pair("Control groups", &status.cgroups)
            .pair(
                "Daemon",
                format!("{}, up for {}", status.daemon_version, age(now, &status.started_at)),
            )
            .some("Daemon memory", status.usage.map(|u| size(u.daemon_resident_bytes)))
            .some(
                "I/O daemon memory",
                status.usage.and_then(|u| u.blockd_resident_bytes).map(size),
            );
        sheet
    }
}

/// `eth2 (VLAN 120 without tags; packets of up to 1500)`.
fn trunk_line(trunk: &Trunk) -> String {
    let vlans = match trunk.untagged {
        Some(vlan) => format!("VLAN {vlan} without tags"),
        None => "all VLANs".to_owned(),
    };
    let found = match (&trunk.problem, trunk.mtu) {
        (Some(problem), _) => problem.clone(),
        (None, Some(mtu)) => format!("packets of up to {mtu}"),
        (None, None) => "not looked at yet".to_owned(),
    };
    clean(&format!("{} ({vlans}; {found})", trunk.interface))
}

/// `ready, leads`.
fn state(host: &Host) -> String {
    let mut words = word(&host.state);
    if host.leads {
        words.push_str(", leads");
    }
    words
}
