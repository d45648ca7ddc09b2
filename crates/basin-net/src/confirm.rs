//! Pure. Whether dnsmasq has read what was written for it.
//!
//! A signal tells it to read its files again, and there is no answer to a signal: a
//! packet that comes right behind may still be judged by the old files. So the file
//! of names holds one that follows from the contents, and whoever gets an answer for
//! it knows that all was read: dnsmasq reads all its files before it looks at packets.

use std::fmt::Write;

use crate::state::Hosts;

/// A name for these contents (FNV-1a, 64 bits: told from the last, not kept secret).
fn label(hosts: &Hosts) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in hosts.dhcp.bytes().chain([0]).chain(hosts.dns.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("_basin-{hash:016x}")
}

/// Adds the name. Written in full: dnsmasq adds the domain to addresses of the
/// subnet only, and there is no address for this one.
pub fn seal(mut hosts: Hosts, domain: &str) -> Hosts {
    let label = label(&hosts);
    let _ = writeln!(hosts.dns, "0.0.0.0 {label}.{domain}");
    hosts
}

/// The full name that is known once these sealed hosts were read.
pub fn name(hosts: &Hosts) -> String {
    let last = hosts.dns.lines().next_back();
    last.and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned()
}

/// A DNS question for an address of `name`.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        // Labels are checked to be short before they come here.
        packet.push(label.len().min(63) as u8);
        packet.extend(label.bytes().take(63));
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Whether this answers that question with a record.
pub fn known(id: u16, answer: &[u8]) -> bool {
    answer.len() >= 12
        && answer[..2] == id.to_be_bytes()
        && answer[2] & 0x80 != 0
        && answer[3] & 0x0f == 0
        && answer[6..8] != [0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_from_the_contents() {
        let of =
            |dhcp: &str, dns: &str| seal(Hosts { dhcp: dhcp.into(), dns: dns.into() }, "x.y").dns;
        assert_eq!(of("a", "b\n"), of("a", "b\n"));
        assert_ne!(of("a", ""), of("", "a"));
        assert!(of("a", "b\n").starts_with("b\n0.0.0.0 _basin-"));
        let sealed = seal(Hosts::default(), "x.y");
        assert!(name(&sealed).ends_with(".x.y") && sealed.dns.contains(&name(&sealed)));
    }

    #[test]
    fn only_an_answer_with_a_record_counts() {
        let mut answer = query(7, "a.b");
        assert!(!known(7, &answer), "the question itself");
        answer[2] |= 0x80;
        assert!(!known(7, &answer), "no record");
        answer[7] = 1;
        assert!(known(7, &answer) && !known(8, &answer));
        answer[3] |= 3;
        assert!(!known(7, &answer), "no such name");
        assert!(!known(7, &answer[..5]));
    }
}
