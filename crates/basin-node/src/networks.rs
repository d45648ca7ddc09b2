//! Keeps the server's networks and their DHCP leases as the store says they should be.
//!
//! Woken by changes of networks or of any VM's interfaces, and by a timer, since
//! others may have changed what the kernel has. Reads everything anew each time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use basin_model::keys::Kind;
use basin_model::network::{Network, NetworkKind};
use basin_model::task::Problem;
use basin_model::vm::{Nic, Vm};
use basin_model::{MacAddr, NetworkId, VmId};
use basin_net::{Fabric, Lease, NetworkSpec};
use basin_store::Store;
use basin_store::records::{RecordEvent, Versioned, watch_records};
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::problem::{Explain, OFTEN, Unready, problem};
use crate::vms::Vms;

const REPAIR_EVERY: Duration = Duration::from_secs(30);

/// How long a VM's start waits for its networks.
const WAIT: Duration = Duration::from_secs(10);

/// The outcome of the latest run.
#[derive(Clone, Default)]
pub struct Applied {
    /// What the server has for certain.
    specs: Arc<Vec<NetworkSpec>>,
    /// The leases among them.
    leases: Arc<HashSet<(NetworkId, MacAddr, Ipv4Addr)>>,
    /// Why the latest run failed.
    pub problem: Option<Problem>,
}

/// The reconciler, as others see it.
#[derive(Clone)]
pub struct Networks {
    applied: watch::Receiver<Applied>,
}

impl Networks {
    pub fn start(
        store: Arc<dyn Store>,
        fabric: Arc<dyn Fabric>,
        vms: Vms,
        stop: CancellationToken,
    ) -> (Networks, impl Future<Output = ()> + Send) {
        let (sender, applied) = watch::channel(Applied::default());
        let run = async move {
            let events = watch_records::<Network>(store, Kind::Network.prefix());
            let work = reconcile(events, &*fabric, vms, &sender);
            stop.run_until_cancelled(work).await;
        };
        (Networks { applied }, run)
    }

    pub fn problem(&self) -> Option<Problem> {
        self.applied.borrow().problem.clone()
    }

    pub fn changes(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Waits until every interface has its network and its lease.
    pub async fn ready(&self, nics: &[Nic]) -> Result<(), Unready> {
        let mut applied = self.applied.clone();
        let all = |a: &Applied| nics.iter().all(|nic| a.has_lease(nic));
        if let Ok(Ok(_)) = tokio::time::timeout(WAIT, applied.wait_for(all)).await {
            return Ok(());
        }
        let now = self.applied.borrow();
        let missing = nics.iter().find(|nic| !now.has_lease(nic));
        let network = missing.map_or_else(String::new, |nic| format!(" {}", nic.network));
        let problem = match &now.problem {
            Some(p) => Problem {
                detail: format!("network{network} cannot be set up: {}", p.detail),
                ..p.clone()
            },
            None => problem(
                "network-not-ready",
                format!("network{network} is not on this server"),
                "check that the network exists; attach the interface to another one if not",
            ),
        };
        Err(Unready { problem, tries: OFTEN })
    }
}

impl Applied {
    fn new(specs: Vec<NetworkSpec>) -> Applied {
        let of = |s: &NetworkSpec| {
            let id = s.id;
            s.leases.iter().map(move |l| (id, l.mac, l.address)).collect::<Vec<_>>()
        };
        let leases = Arc::new(specs.iter().flat_map(of).collect());
        Applied { specs: specs.into(), leases, problem: None }
    }

    fn has_lease(&self, nic: &Nic) -> bool {
        self.leases.contains(&(nic.network, nic.mac, nic.address))
    }
}

async fn reconcile(
    mut events: impl Stream<Item = Result<RecordEvent<Network>, basin_store::StoreError>> + Unpin,
    fabric: &dyn Fabric,
    vms: Vms,
    sender: &watch::Sender<Applied>,
) {
    let mut networks: Option<BTreeMap<NetworkId, Network>> = None;
    let mut vms_changed = vms.changes();
    let mut repair = tokio::time::interval(REPAIR_EVERY);
    repair.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut repairing = false;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => take_in(&mut networks, event),
                Some(Err(error)) => tracing::warn!(%error, "cannot watch networks"),
                None => return,
            },
            changed = vms_changed.changed() => if changed.is_err() { return },
            _ = repair.tick() => repairing = true,
        }
        // Nothing is known for certain until both have been read once: what is
        // there from before must not be torn down meanwhile.
        let (Some(networks), Some(vms)) = (&networks, vms.all()) else { continue };
        let specs = plan(networks.values(), vms.values());
        let before = sender.borrow().clone();
        if *before.specs == specs && before.problem.is_none() && !repairing {
            continue;
        }
        match fabric.sync(&specs).await {
            Ok(()) => {
                if before.problem.is_some() || *before.specs != specs {
                    sender.send_replace(Applied::new(specs));
                }
            }
            Err(error) => {
                let problem = Some(error.problem());
                if before.problem != problem {
                    tracing::warn!(%error, "networks are not as they should be");
                    sender.send_replace(Applied { problem, ..before });
                }
            }
        }
    }
}

fn take_in(networks: &mut Option<BTreeMap<NetworkId, Network>>, event: RecordEvent<Network>) {
    let pair = |r: Versioned<Network>| (r.value.id, r.value);
    match event {
        RecordEvent::Resync { records, .. } => {
            *networks = Some(records.into_iter().map(pair).collect());
        }
        RecordEvent::Put(record) => {
            networks.get_or_insert_default().extend([pair(record)]);
        }
        RecordEvent::Deleted { key, .. } => {
            if let (Some(all), Some((_, id))) = (networks, Kind::parse(&key)) {
                all.retain(|n, _| n.to_string() != id);
            }
        }
    }
}

/// What this server should have: every network, with the leases of every VM on it.
fn plan<'a>(
    networks: impl Iterator<Item = &'a Network>,
    vms: impl Iterator<Item = &'a Arc<Vm>>,
) -> Vec<NetworkSpec> {
    let mut leases: BTreeMap<NetworkId, BTreeMap<VmId, Vec<Lease>>> = BTreeMap::new();
    for vm in vms {
        for nic in &vm.spec.nics {
            let mine = leases.entry(nic.network).or_default().entry(vm.id).or_default();
            let name = lease_name(vm.meta.name.as_str(), mine.len());
            mine.push(Lease { mac: nic.mac, address: nic.address, name });
        }
    }
    networks
        .map(|network| {
            let NetworkKind::Nat { subnet, domain } = &network.kind;
            let leases = leases.remove(&network.id).into_iter().flat_map(BTreeMap::into_values);
            // A lease outside the subnet would make the DHCP server refuse them all.
            let fits = |l: &Lease| network.assignable(l.address);
            let mut leases: Vec<Lease> = leases.flatten().filter(fits).collect();
            leases.sort();
            let mut seen = BTreeSet::new();
            leases.retain(|l| seen.insert(l.mac));
            NetworkSpec {
                id: network.id,
                subnet: *subnet,
                gateway: network.gateway(),
                domain: domain.clone(),
                leases,
            }
        })
        .collect()
}

/// A VM's second interface on the same network is `NAME-2`, and so on.
fn lease_name(vm: &str, before: usize) -> String {
    if before == 0 {
        return vm.to_owned();
    }
    let suffix = format!("-{}", before + 1);
    let head = &vm[..vm.len().min(63 - suffix.len())];
    format!("{}{suffix}", head.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_interfaces_have_names_of_their_own() {
        assert_eq!(lease_name("web", 0), "web");
        assert_eq!(lease_name("web", 1), "web-2");
        let long = format!("{}-", "x".repeat(60));
        assert_eq!(lease_name(&format!("{long}ab"), 1).len(), 62);
        assert!(lease_name(&"x".repeat(63), 11).len() <= 63);
    }
}
