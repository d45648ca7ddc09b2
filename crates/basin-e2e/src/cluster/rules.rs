//! Pure. Which frames do not pass between servers, in nftables' words.

use std::fmt::Write as _;

/// What does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Everything from one server to the other; the way back is open.
    OneWay { from: u8, to: u8 },
    /// TCP and UDP of some services that `server` offers, and their answers.
    Service { server: u8, peer: u8, ports: Vec<u16> },
}

/// Nothing between servers of different groups; a server in no group is by itself.
pub(crate) fn partition(groups: &[Vec<u8>], all: &[u8]) -> Vec<Cut> {
    let group = |n: &u8| groups.iter().position(|g| g.contains(n));
    let mut cuts = Vec::new();
    for &from in all {
        for &to in all.iter().filter(|&&to| to != from) {
            let together = group(&from).is_some() && group(&from) == group(&to);
            if !together {
                cuts.push(Cut::OneWay { from, to });
            }
        }
    }
    cuts
}

/// Rules of a chain in a bridge's forward hook; `port` names a server's port.
pub(crate) fn rules(cuts: &[Cut], port: impl Fn(u8) -> String) -> String {
    let mut text = String::new();
    let mut line = |from: u8, to: u8, what: &str| {
        let _ = writeln!(text, "iifname \"{}\" oifname \"{}\" {what}drop", port(from), port(to));
    };
    for cut in cuts {
        match cut {
            Cut::OneWay { from, to } => line(*from, *to, ""),
            Cut::Service { server, peer, ports } => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let ports = ports.join(", ");
                for family in ["ip protocol", "ip6 nexthdr"] {
                    let kind = format!("{family} {{ tcp, udp }} ");
                    line(*peer, *server, &format!("{kind}th dport {{ {ports} }} "));
                    line(*server, *peer, &format!("{kind}th sport {{ {ports} }} "));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(groups: &[&[u8]], expect: &[(u8, u8)]) {
        let groups: Vec<Vec<u8>> = groups.iter().map(|g| g.to_vec()).collect();
        let got = partition(&groups, &[1, 2, 3]);
        let expect: Vec<Cut> = expect.iter().map(|&(from, to)| Cut::OneWay { from, to }).collect();
        assert_eq!(got, expect, "{groups:?}");
    }

    #[test]
    fn groups_do_not_hear_each_other() {
        check(&[&[1, 2, 3]], &[]);
        check(&[&[1, 2], &[3]], &[(1, 3), (2, 3), (3, 1), (3, 2)]);
        // Whoever is not named is alone.
        check(&[&[2, 3]], &[(1, 2), (1, 3), (2, 1), (3, 1)]);
        check(&[], &[(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]);
    }

    #[test]
    fn a_service_is_cut_off_both_ways() {
        let service = Cut::Service { server: 1, peer: 2, ports: vec![2379, 2380] };
        let text = rules(&[service], |n| format!("p{n}"));
        assert!(text.contains(
            "iifname \"p2\" oifname \"p1\" ip protocol { tcp, udp } th dport { 2379, 2380 } drop\n"
        ));
        assert!(text.contains(
            "iifname \"p1\" oifname \"p2\" ip protocol { tcp, udp } th sport { 2379, 2380 } drop\n"
        ));
        assert_eq!(text.lines().count(), 4);
    }
}
