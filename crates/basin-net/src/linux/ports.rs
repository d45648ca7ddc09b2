//! Who holds a port that DHCP or DNS needs.

use std::collections::BTreeSet;
use std::fs;

/// What dnsmasq says when another socket is in its way.
pub const IN_USE: &str = "Address already in use";

/// What dnsmasq complained of, and which program is in its way.
pub fn explain(complaint: &str) -> String {
    let complaint = complaint.strip_prefix("dnsmasq: ").unwrap_or(complaint);
    if !complaint.contains(IN_USE) {
        return complaint.to_owned();
    }
    let port = if complaint.contains("DHCP") { 67 } else { 53 };
    let holders = holders(port);
    if holders.is_empty() {
        return complaint.to_owned();
    }
    let names: Vec<String> = holders.into_iter().collect();
    format!(
        "{complaint}: {} already listens on port {port} of all addresses; \
         bind it to the addresses it is meant for, or stop it",
        names.join(", ")
    )
}

/// Programs that have `port` of all IPv4 addresses, or of IPv6 and so of both.
fn holders(port: u16) -> BTreeSet<String> {
    let mut inodes = BTreeSet::new();
    for table in ["udp", "tcp", "udp6", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        inodes.extend(text.lines().skip(1).filter_map(|line| inode(line, table, port)));
    }
    let mut found = BTreeSet::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for pid in processes.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let holds = files.flatten().filter_map(|f| fs::read_link(f.path()).ok()).any(|link| {
            let text = link.to_string_lossy().into_owned();
            text.strip_prefix("socket:[")
                .and_then(|t| t.strip_suffix(']'))
                .is_some_and(|i| inodes.contains(i))
        });
        if holds {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.insert(format!("{} (pid {pid})", name.trim()));
        }
    }
    found
}

/// The inode of the socket on this line, if it holds the port of all addresses.
fn inode(line: &str, table: &str, port: u16) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (address, number) = words.get(1)?.split_once(':')?;
    let listening = !table.starts_with("tcp") || *words.get(3)? == "0A";
    let all = address.bytes().all(|b| b == b'0');
    let same = u16::from_str_radix(number, 16).ok()? == port;
    (listening && all && same).then(|| words.get(9).map(|w| (*w).to_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_all_addresses_is_told_from_others() {
        let udp = "  77: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4242 2 0";
        assert_eq!(inode(udp, "udp", 53).as_deref(), Some("4242"));
        assert_eq!(inode(udp, "udp", 67), None);
        let one = udp.replacen("00000000:0035", "0100007F:0035", 1);
        assert_eq!(inode(&one, "udp", 53), None);
        assert_eq!(inode("", "udp", 53), None);
        // A TCP connection is not a listener.
        assert_eq!(inode(udp, "tcp", 53), None);
    }
}
