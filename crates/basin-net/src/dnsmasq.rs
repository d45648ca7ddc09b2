//! Pure. What dnsmasq is told, what it writes down, and how to make it forget.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use basin_model::{MacAddr, NetworkId};

use crate::confirm;
use crate::fabric::NetworkSpec;
use crate::state::{Binding, Hosts};

/// Where the files of a network's DHCP and DNS are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    /// The unprivileged user dnsmasq becomes.
    pub user: String,
}

impl Layout {
    pub fn run(&self, network: NetworkId) -> PathBuf {
        self.run_dir.join("net").join(network.to_string())
    }

    pub fn state(&self, network: NetworkId) -> PathBuf {
        self.state_dir.join("net").join(network.to_string())
    }

    pub fn pid_file(&self, network: NetworkId) -> PathBuf {
        self.run(network).join("dnsmasq.pid")
    }

    pub fn dhcp_hosts(&self, network: NetworkId) -> PathBuf {
        self.run(network).join("dhcp-hosts")
    }

    pub fn dns_hosts(&self, network: NetworkId) -> PathBuf {
        self.run(network).join("dns-hosts")
    }

    pub fn leases(&self, network: NetworkId) -> PathBuf {
        self.state(network).join("leases")
    }

    /// The argument by which a running dnsmasq is known to be this network's.
    pub fn mark(&self, network: NetworkId) -> String {
        option("pid-file", &self.pid_file(network))
    }
}

fn option(name: &str, value: &Path) -> String {
    format!("--{name}={}", value.display())
}

/// The arguments of a network's dnsmasq.
pub fn arguments(layout: &Layout, network: &NetworkSpec, bridge: &str, mtu: u32) -> Vec<String> {
    let NetworkSpec { id, subnet, gateway, domain, .. } = network;
    let mut all = vec![
        // Not the server's own configuration of dnsmasq.
        "--conf-file=/dev/null".into(),
        layout.mark(*id),
        format!("--user={}", layout.user),
        format!("--interface={bridge}"),
        "--except-interface=lo".into(),
        "--bind-interfaces".into(),
        format!("--listen-address={gateway}"),
        // DNS: the network's names from a file, the rest from the server's resolvers.
        "--no-hosts".into(),
        option("addn-hosts", &layout.dns_hosts(*id)),
        "--resolv-file=/etc/resolv.conf".into(),
        // Names of addresses: all are the network's own, or others know the rest.
        match network.trunk {
            None => format!("--domain={domain},{subnet},local"),
            Some(_) => format!("--domain={domain},{subnet}"),
        },
        format!("--local=/{domain}/"),
        "--expand-hosts".into(),
        "--domain-needed".into(),
        "--localise-queries".into(),
        "--dns-loop-detect".into(),
        "--cache-size=1000".into(),
        "--local-ttl=5".into(),
        // DHCP: known interfaces only, each its own address.
        format!("--dhcp-range={},static,{},1h", subnet.network(), subnet.netmask()),
        "--dhcp-authoritative".into(),
        "--dhcp-no-override".into(),
        "--no-ping".into(),
        format!("--dhcp-lease-max={}", (1u64 << (32 - subnet.prefix_len())).min(65_536)),
        option("dhcp-hostsfile", &layout.dhcp_hosts(*id)),
        option("dhcp-leasefile", &layout.leases(*id)),
        "--quiet-dhcp".into(),
    ];
    if let Some(trunk) = &network.trunk {
        all.push(format!("--dhcp-option=option:router,{}", trunk.router));
    }
    if mtu != 1500 {
        all.push(format!("--dhcp-option=option:mtu,{mtu}"));
    }
    all
}

/// The files of hosts, the same for the same leases in any order.
pub fn hosts(network: &NetworkSpec) -> Hosts {
    let leases: BTreeSet<_> = network.leases.iter().map(|l| (l.address, l)).collect();
    let mut hosts = Hosts::default();
    for (address, lease) in leases {
        let _ = writeln!(hosts.dhcp, "{},{address},{}", lease.mac, lease.name);
        let _ = writeln!(hosts.dns, "{address} {}", lease.name);
    }
    confirm::seal(hosts, &network.domain)
}

/// Reads a lease file; lines of another form are not ours to judge.
pub fn bindings(file: &str) -> BTreeSet<Binding> {
    file.lines().filter_map(binding).collect()
}

fn binding(line: &str) -> Option<Binding> {
    let mut words = line.split(' ');
    let _expiry: u64 = words.next()?.parse().ok()?;
    let mac: MacAddr = words.next()?.parse().ok()?;
    let address = words.next()?.parse().ok()?;
    let _name = words.next()?;
    let client = match words.next()? {
        "*" => None,
        hex => Some(
            hex.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect::<Option<Vec<u8>>>()?,
        ),
    };
    Some(Binding { mac, address, client })
}

/// A DHCPRELEASE as the guest itself would send it (RFC 2131).
pub fn release(binding: &Binding, server: Ipv4Addr) -> Vec<u8> {
    const MAGIC: [u8; 4] = [99, 130, 83, 99];
    let mut packet = vec![0u8; 236];
    packet[0] = 1; // request
    packet[1] = 1; // Ethernet
    packet[2] = 6;
    packet[12..16].copy_from_slice(&binding.address.octets());
    packet[28..34].copy_from_slice(&binding.mac.0);
    packet.extend(MAGIC);
    packet.extend([53, 1, 7]);
    packet.extend([54, 4]);
    packet.extend(server.octets());
    if let Some(client) = &binding.client
        && let Ok(length) = u8::try_from(client.len())
    {
        packet.extend([61, length]);
        packet.extend(client);
    }
    packet.push(255);
    packet.resize(packet.len().max(300), 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_file_is_read_and_junk_is_not() {
        let file = "1795000000 52:54:00:00:00:05 10.7.0.5 web ff:00:01\n\
                    1795000000 52:54:00:00:00:06 10.7.0.6 * *\n\
                    duid 00:01:00\n\nwhat is this\n";
        let found: Vec<_> = bindings(file).into_iter().collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].client, Some(vec![0xff, 0, 1]));
        assert_eq!(found[1].client, None);
        let packet = release(&found[0], "10.7.0.1".parse().unwrap());
        assert_eq!(&packet[12..16], &[10, 7, 0, 5]);
        assert_eq!(packet.len(), 300);
    }
}
