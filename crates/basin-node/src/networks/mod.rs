//! Keeps the server's networks as the store says they should be: leases, names, and
//! which server each interface is on.
//!
//! Woken by changes of networks, servers, or any VM's interfaces or place, and by a
//! timer, since others may have changed what the kernel has. Reads everything anew
//! each time.

mod plan;

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use basin_model::host::{Host, TrunkStatus};
use basin_model::keys::Kind;
use basin_model::network::Network;
use basin_model::task::Problem;
use basin_model::vlan::Trunk;
use basin_model::vm::Nic;
use basin_model::{HostId, MacAddr, NetworkId};
use basin_net::{Affected, Fabric, NetError, NetworkSpec};
use basin_store::Store;
use basin_store::records::{RecordEvent, Versioned, watch_records};
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::problem::{Explain, OFTEN, Unready, problem};
use crate::vms::Vms;

const REPAIR_EVERY: Duration = Duration::from_secs(30);

/// How long a VM's start waits for its networks.
const WAIT: Duration = Duration::from_secs(30);

/// The outcome of the latest run.
#[derive(Clone, Default)]
pub struct Applied {
    /// What the server has for certain.
    specs: Arc<Vec<NetworkSpec>>,
    /// The leases among them.
    leases: Arc<HashSet<(NetworkId, MacAddr, Ipv4Addr)>>,
    /// Why the latest run failed.
    pub problem: Option<Problem>,
    /// The largest packet of a guest that fits between servers from here.
    overlay_mtu: Option<u32>,
    /// The interfaces that are to carry VLANs, as they were found.
    trunks: Vec<TrunkStatus>,
    /// Networks that cannot be here, and why.
    absent: Arc<BTreeMap<NetworkId, String>>,
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
        host: HostId,
        stop: CancellationToken,
    ) -> (Networks, impl Future<Output = ()> + Send) {
        let (sender, applied) = watch::channel(Applied::default());
        let run = async move {
            let networks = watch_records::<Network>(store.clone(), Kind::Network.prefix());
            let hosts = watch_records::<Host>(store, Kind::Host.prefix());
            let work = reconcile(networks, hosts, &*fabric, vms, host, &sender);
            stop.run_until_cancelled(work).await;
        };
        (Networks { applied }, run)
    }

    pub fn problem(&self) -> Option<Problem> {
        self.applied.borrow().problem.clone()
    }

    pub fn overlay_mtu(&self) -> Option<u32> {
        self.applied.borrow().overlay_mtu
    }

    pub fn trunks(&self) -> Vec<TrunkStatus> {
        self.applied.borrow().trunks.clone()
    }

    pub fn changes(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Waits until every interface has its network and its lease, and is known to be
    /// here or on its way here.
    pub async fn ready(&self, nics: &[Nic]) -> Result<(), Unready> {
        let mut applied = self.applied.clone();
        let all = |a: &Applied| nics.iter().all(|nic| a.has_lease(nic));
        if let Ok(Ok(_)) = tokio::time::timeout(WAIT, applied.wait_for(all)).await {
            return Ok(());
        }
        let now = self.applied.borrow();
        let missing = nics.iter().find(|nic| !now.has_lease(nic));
        let network = missing.map_or_else(String::new, |nic| format!(" {}", nic.network));
        let absent = missing.and_then(|nic| now.absent.get(&nic.network));
        let problem = match &now.problem {
            _ if let Some(why) = absent => problem(
                "network-not-ready",
                format!("network{network} cannot be on this server: {why}"),
                "start the VM on a server that can have the network, or mend what is said here",
            ),
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
            let local = s.local();
            // Of an interface that is elsewhere, a tap here would carry nothing.
            let reached = s.trunk.as_ref().is_none_or(|t| t.device.is_some());
            let usable = s.leases.iter().filter(|l| reached && plan::usable_here(l, local));
            usable.map(|l| (id, l.mac, l.address)).collect::<Vec<_>>()
        };
        let leases = Arc::new(specs.iter().flat_map(of).collect());
        Applied { specs: specs.into(), leases, ..Applied::default() }
    }

    fn has_lease(&self, nic: &Nic) -> bool {
        self.leases.contains(&(nic.network, nic.mac, nic.address))
    }
}

async fn reconcile(
    mut network_events: impl Stream<Item = Event<Network>> + Unpin,
    mut host_events: impl Stream<Item = Event<Host>> + Unpin,
    fabric: &dyn Fabric,
    vms: Vms,
    own: HostId,
    sender: &watch::Sender<Applied>,
) {
    let mut networks: Option<BTreeMap<NetworkId, Network>> = None;
    let mut hosts: Option<BTreeMap<HostId, Host>> = None;
    let (mut replugged, mut anything) = (vms.replugged(), vms.changes());
    let mut repair = tokio::time::interval(REPAIR_EVERY);
    repair.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut repairing = false;
        // What failed is tried again as soon as somebody does anything, such as to start
        // a VM anew after the trouble was mended.
        let failed = sender.borrow().problem.is_some();
        if !failed {
            anything.borrow_and_update();
        }
        tokio::select! {
            event = network_events.next() => match event {
                Some(event) => take_in(&mut networks, event, |n| n.id),
                None => return,
            },
            event = host_events.next() => match event {
                Some(event) => take_in(&mut hosts, event, |h| h.id),
                None => return,
            },
            changed = replugged.changed() => if changed.is_err() { return },
            changed = anything.changed(), if failed => if changed.is_err() { return },
            _ = repair.tick() => repairing = true,
        }
        // Nothing is known for certain until all have been read once: what is there
        // from before must not be torn down meanwhile.
        let (Some(networks), Some(hosts), Some(vms)) = (&networks, &hosts, vms.all()) else {
            continue;
        };
        let before = sender.borrow().clone();
        let wanted = plan::trunks(own, hosts.values());
        let known = before.trunks.iter().map(|t| &t.trunk).eq(wanted);
        let trunks = match known && !repairing && !failed {
            true => before.trunks.clone(),
            false => look(fabric, wanted).await,
        };
        let absent = Arc::new(plan::absent(networks.values(), &trunks));
        let places = plan::Places::new(own, hosts.values());
        let specs = plan::plan(&places, &trunks, networks.values(), vms.values());
        let looks = (&before.trunks, &before.absent) == (&trunks, &absent);
        let same = *before.specs == specs && looks;
        if same && before.problem.is_none() && !repairing {
            continue;
        }
        let overlay_mtu = match plan::local(own, hosts.values()) {
            Some(local) if repairing || before.overlay_mtu.is_none() => {
                fabric.overlay_mtu(local).await
            }
            Some(_) => before.overlay_mtu,
            None => None,
        };
        let (problem, specs) = match fabric.sync(&specs).await {
            Ok(()) => (None, specs),
            Err(failure) => {
                let problem = Some(failure.error.problem());
                if before.problem != problem {
                    tracing::warn!(error = %failure, "networks are not as they should be");
                }
                (problem, certain(specs, &before.specs, &failure.affected))
            }
        };
        let same = before.problem == problem && before.overlay_mtu == overlay_mtu && looks;
        if !same || *before.specs != specs {
            sender.send_replace(Applied {
                problem,
                overlay_mtu,
                trunks,
                absent,
                ..Applied::new(specs)
            });
        }
    }
}

async fn look(fabric: &dyn Fabric, trunks: &[Trunk]) -> Vec<TrunkStatus> {
    let mut found = Vec::new();
    for trunk in trunks {
        let (mtu, problem) = match fabric.trunk_mtu(trunk).await {
            Ok(mtu) => (Some(mtu), None),
            Err(NetError::Refused { why, .. }) => (None, Some(why)),
            Err(e) => (None, Some(e.to_string())),
        };
        found.push(TrunkStatus { trunk: trunk.clone(), mtu, problem });
    }
    found
}

/// What the server has for certain after a sync that failed: one network's trouble is
/// not the others'.
fn certain(
    wanted: Vec<NetworkSpec>,
    before: &[NetworkSpec],
    affected: &Affected,
) -> Vec<NetworkSpec> {
    let Affected::Only(failed) = affected else { return before.to_vec() };
    let old = before.iter().filter(|n| failed.contains(&n.id)).cloned();
    let good = wanted.into_iter().filter(|n| !failed.contains(&n.id));
    good.chain(old).collect()
}

type Event<T> = Result<RecordEvent<T>, basin_store::StoreError>;

fn take_in<I: Ord + ToString, T>(
    known: &mut Option<BTreeMap<I, T>>,
    event: Event<T>,
    id: impl Fn(&T) -> I,
) {
    let pair = |r: Versioned<T>| (id(&r.value), r.value);
    match event {
        Ok(RecordEvent::Resync { records, .. }) => {
            *known = Some(records.into_iter().map(pair).collect());
        }
        Ok(RecordEvent::Put(record)) => known.get_or_insert_default().extend([pair(record)]),
        Ok(RecordEvent::Deleted { key, .. }) => {
            if let (Some(all), Some((_, gone))) = (known, Kind::parse(&key)) {
                all.retain(|n, _| n.to_string() != gone);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot watch networks and servers"),
    }
}
