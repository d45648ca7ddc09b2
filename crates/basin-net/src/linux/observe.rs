//! Reads what is, for the plan.

use std::collections::{BTreeMap, BTreeSet};

use basin_model::NetworkId;

use super::files;
use super::netlink::Netlink;
use super::process;
use super::sysctl;
use crate::dnsmasq::{self, Layout};
use crate::fabric::NetError;
use crate::names::Instance;
use crate::state::{Forwarding, Hosts, Link, Observed, Process, Service, Sysctl};

/// Everything but forwarding entries, the firewall and the services.
pub async fn kernel(
    instance: &Instance,
    layout: &Layout,
    netlink: &Netlink,
) -> Result<Observed, NetError> {
    let mut links = netlink.links().await?;
    let (routes, answer_routes) = netlink.routes(&links).await?;
    for (name, link) in &mut links {
        let wanted: &[(Sysctl, u8)] = if link.is_own_bridge(name, instance) {
            &Sysctl::BRIDGE
        } else if link.own_tap(name, instance).is_some()
            || link.is_own_overlay(name, instance)
            || link.is_own_trunk(name, instance)
        {
            &Sysctl::PORT
        } else {
            continue;
        };
        // A setting that this kernel lacks is as wanted.
        let read = |(s, value): &(Sysctl, u8)| (*s, sysctl::get(&s.path(name)).unwrap_or(*value));
        link.sysctls = wanted.iter().map(read).collect();
    }
    let answer_rules = netlink.answer_rules().await?;
    let forwarding = forwarding(instance, layout, &links);
    let observed =
        Observed { links, routes, answer_routes, answer_rules, forwarding, ..Observed::default() };
    Ok(observed)
}

fn forwarding(instance: &Instance, layout: &Layout, links: &BTreeMap<String, Link>) -> Forwarding {
    // Machines' taps are many, and never a way to anywhere.
    let others = links.iter().filter(|(name, l)| l.own_tap(name, instance).is_none());
    let on = |name: &&String| sysctl::get(&Sysctl::Forwarding.path(name)) == Some(1);
    Forwarding {
        global: sysctl::get("ipv4/ip_forward") == Some(1),
        on: others.map(|(name, _)| name).filter(on).cloned().collect(),
        recorded: files::forwarding(layout),
    }
}

/// DHCP and DNS of the networks that are wanted or left something.
pub fn services(
    layout: &Layout,
    wanted: &BTreeSet<NetworkId>,
    loaded: &BTreeMap<NetworkId, (i32, Hosts)>,
    first: bool,
) -> BTreeMap<NetworkId, Service> {
    let dirs = files::networks(layout);
    let mut processes: BTreeMap<NetworkId, Process> = BTreeMap::new();
    for id in dirs.union(wanted) {
        processes.extend(process::by_pid_file(layout, *id).map(|p| (*id, p)));
    }
    // Looking through all processes costs more: only when one is not where it should be.
    if first || wanted.iter().any(|id| !processes.contains_key(id)) {
        for (id, process) in process::scan(layout) {
            processes.entry(id).or_insert(process);
        }
    }
    let ids: BTreeSet<NetworkId> = dirs.iter().chain(processes.keys()).copied().collect();
    let service = |id: NetworkId| {
        let process = processes.get(&id).cloned();
        let hosts = files::hosts(layout, id);
        let hosts_loaded = match (&process, &hosts, loaded.get(&id)) {
            (Some(p), Some(hosts), Some((pid, read))) => p.pid == *pid && read == hosts,
            _ => false,
        };
        let bindings = dnsmasq::bindings(&files::leases(layout, id));
        (id, Service { process, hosts, hosts_loaded, bindings })
    };
    ids.into_iter().map(service).collect()
}
