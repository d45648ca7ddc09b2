//! Files of networks: written whole or not at all.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use basin_model::NetworkId;

use crate::dnsmasq::Layout;
use crate::fabric::NetError;
use crate::state::Hosts;

fn refused<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> NetError + 'a {
    move |e| NetError::Refused { what: format!("{doing} {}", path.display()), why: e.to_string() }
}

/// A directory that others may pass through and not list.
pub fn directory(path: &Path) -> Result<(), NetError> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(refused("making", path))
}

/// Readable by the unprivileged user that dnsmasq is.
fn write(path: &Path, text: &str) -> Result<(), NetError> {
    let temporary = path.with_extension("new");
    let wrote = (|| {
        let mut file = File::create(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    wrote.map_err(refused("writing", path))
}

/// Networks that left a directory.
pub fn networks(layout: &Layout) -> BTreeSet<NetworkId> {
    let dirs = [&layout.run_dir, &layout.state_dir];
    let entries = dirs.iter().filter_map(|d| fs::read_dir(d.join("net")).ok()).flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

pub fn hosts(layout: &Layout, network: NetworkId) -> Option<Hosts> {
    let dhcp = fs::read_to_string(layout.dhcp_hosts(network)).ok()?;
    let dns = fs::read_to_string(layout.dns_hosts(network)).ok()?;
    Some(Hosts { dhcp, dns })
}

pub fn write_hosts(layout: &Layout, network: NetworkId, hosts: &Hosts) -> Result<(), NetError> {
    directory(&layout.run(network))?;
    directory(&layout.state(network))?;
    write(&layout.dhcp_hosts(network), &hosts.dhcp)?;
    write(&layout.dns_hosts(network), &hosts.dns)
}

pub fn leases(layout: &Layout, network: NetworkId) -> String {
    fs::read_to_string(layout.leases(network)).unwrap_or_default()
}

/// Removes all of a network's files.
pub fn remove(layout: &Layout, network: NetworkId) -> Result<(), NetError> {
    for path in [layout.run(network), layout.state(network)] {
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(refused("removing", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn record(layout: &Layout) -> PathBuf {
    // Not in the state directory: a reboot undoes what it records.
    layout.run_dir.join("net").join("forwarding.json")
}

/// Interfaces on which Basin turned forwarding on.
pub fn forwarding(layout: &Layout) -> BTreeSet<String> {
    let text = fs::read(record(layout)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub fn record_forwarding(layout: &Layout, devices: &BTreeSet<String>) -> Result<(), NetError> {
    let path = record(layout);
    if devices.is_empty() {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(refused("removing", &path)(e)),
            _ => Ok(()),
        };
    }
    directory(&layout.run_dir.join("net"))?;
    let text = serde_json::to_string(devices).map_err(|e| refused("writing", &path)(e.into()))?;
    write(&path, &text)
}
