//! Clusters as tables: who can run what, and what comes of it.

use basin_model::hardware::{CpuModels, CpuVendor};
use proptest::prelude::*;

use super::*;

const KVM_INTEL: CpuClass = CpuClass::Kvm { vendor: CpuVendor::Intel };
const KVM_AMD: CpuClass = CpuClass::Kvm { vendor: CpuVendor::Amd };

fn host(n: usize) -> HostId {
    format!("00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

/// A server that runs its class's models up to `best`; the next ones lack `avx-N`.
fn server(class: &CpuClass, best: &str, q35: &str) -> HardwareFacts {
    let known = ranking(class);
    let best = known.iter().position(|m| *m == best).unwrap();
    let models = known.iter().enumerate().map(|(n, model)| {
        let missing = (best + 1..=n).map(|n| format!("avx-{n}")).collect();
        ((*model).to_owned(), missing)
    });
    let aliases =
        known.iter().filter_map(|m| Some((m.strip_suffix("-v1")?.to_owned(), (*m).to_owned())));
    HardwareFacts {
        class: class.clone(),
        cpus: CpuModels::new(models, aliases.collect()),
        q35: q35.split_whitespace().map(|v| v.parse().unwrap()).collect(),
    }
}

fn named(facts: &[HardwareFacts]) -> Vec<(String, &HardwareFacts)> {
    facts.iter().enumerate().map(|(n, facts)| (format!("srv{}", n + 1), facts)).collect()
}

fn all<'a>(facts: &'a [(String, &'a HardwareFacts)]) -> Vec<Server<'a>> {
    let server = |(n, (name, facts)): (usize, &'a (String, &'a HardwareFacts))| Server {
        host: host(n),
        name,
        hardware: Some(facts),
    };
    facts.iter().enumerate().map(server).collect()
}

/// `CLASS: MODEL MACHINE [CPU held back] [machine held back]` of every class.
fn check(facts: &[HardwareFacts], expect: &[&str]) {
    let named = named(facts);
    let found: Vec<String> = baselines(&all(&named))
        .iter()
        .map(|b| {
            let cpu = b.cpu.as_deref().unwrap_or("-");
            let machine = b.machine.map_or("-".to_owned(), |m| m.to_string());
            let mut line = format!("{}: {cpu} {machine}", b.class);
            b.cpu_held_back.iter().for_each(|h| line += &format!(" [{h}]"));
            b.machine_held_back.iter().for_each(|h| line += &format!(" [{h}]"));
            line
        })
        .collect();
    assert_eq!(found, expect);
}

#[test]
fn the_best_that_every_server_has() {
    let intel = |best| server(&KVM_INTEL, best, "7.2");
    check(
        &[intel("Icelake-Server-v6"), intel("Skylake-Server-v5"), intel("Icelake-Server-v6")],
        &["KVM on Intel: Skylake-Server-v5 7.2 [Icelake-Server-v6 is not possible because of \
           srv2: it lacks avx-20, avx-21, avx-22, avx-23, avx-24, avx-25, avx-26, avx-27, avx-28, \
           avx-29]"],
    );
    check(&[intel("Haswell-v4"), intel("Haswell-v4")], &["KVM on Intel: Haswell-v4 7.2"]);
}

#[test]
fn makers_and_emulation_are_apart() {
    check(
        &[
            server(&KVM_INTEL, "Broadwell-v4", "7.2"),
            server(&KVM_AMD, "EPYC-Rome-v2", "7.2"),
            server(&CpuClass::Tcg, "Nehalem-v1", "7.2"),
            server(&KVM_AMD, "EPYC-v2", "7.2"),
        ],
        &[
            "KVM on Intel: Broadwell-v4 7.2",
            "KVM on AMD: EPYC-v2 7.2 [EPYC-Rome-v2 is not possible because of srv4: it lacks \
             avx-10, avx-11, avx-8, avx-9]",
            "emulation (TCG): Nehalem-v1 7.2",
        ],
    );
    let other = CpuClass::Kvm { vendor: CpuVendor::Other("CentaurHauls".into()) };
    check(&[server(&other, "kvm64-v1", "7.2")], &["KVM on CentaurHauls: kvm64-v1 7.2"]);
}

#[test]
fn the_newest_machine_that_every_qemu_has() {
    let tcg = |q35| server(&CpuClass::Tcg, "Nehalem-v1", q35);
    check(
        &[tcg("7.2 8.0 9.2 10.0"), tcg("7.2 8.0")],
        &["emulation (TCG): Nehalem-v1 8.0 [10.0 is not possible because of srv2: its QEMU does \
           not know it]"],
    );
    check(
        &[tcg("9.2"), tcg("7.2")],
        &["emulation (TCG): Nehalem-v1 - [9.2 is not possible because of srv2: its QEMU does \
           not know it]"],
    );
}

/// On the first of the servers.
fn resolves(facts: &[HardwareFacts], wanted: &CpuModel, machine: Machine, expect: &str) {
    let named = named(facts);
    let found = resolve(wanted, machine, host(0), &all(&named));
    let text = found.map(|h| {
        let version = h.machine_version.map_or("-".to_owned(), |v| v.to_string());
        format!("{} {version}", h.cpu)
    });
    assert_eq!(text.as_deref().unwrap_or("QEMU's own"), expect);
}

#[test]
fn a_start_fixes_what_the_guest_sees() {
    use Machine::{Microvm, Q35};
    let intel = |best| server(&KVM_INTEL, best, "7.2 8.0");
    let amd = server(&KVM_AMD, "EPYC-v2", "7.2");
    let tcg = server(&CpuClass::Tcg, "Nehalem-v1", "7.2");
    let auto = CpuModel::Auto;
    // Alone: all that the server has.
    resolves(&[intel("Haswell-v4")], &auto, Q35, "host 8.0");
    resolves(std::slice::from_ref(&tcg), &auto, Q35, "Nehalem-v1 7.2");
    // Together: what each has.
    resolves(&[intel("Haswell-v4"), intel("Penryn-v1")], &auto, Q35, "Penryn-v1 8.0");
    resolves(&[intel("Haswell-v4"), amd], &auto, Q35, "Haswell-v4 8.0");
    resolves(&[tcg.clone(), tcg.clone()], &auto, Microvm, "Nehalem-v1 -");
    // Somebody's wish is kept, and pinned to its version.
    let named = |name: &str| CpuModel::Named(name.to_owned());
    resolves(&[tcg.clone(), tcg.clone()], &named("qemu64"), Q35, "qemu64-v1 7.2");
    resolves(&[intel("Haswell-v4"), intel("Haswell-v4")], &named("host"), Q35, "host 8.0");
    // A server that has not said counts as a server all the same.
    let (lonely, silent) = (intel("Haswell-v4"), host(9));
    let servers = [
        Server { host: host(0), name: "srv1", hardware: Some(&lonely) },
        Server { host: silent, name: "srv2", hardware: None },
    ];
    let found = resolve(&auto, Q35, host(0), &servers).unwrap();
    assert_eq!(found.cpu, "Haswell-v4");
    assert_eq!(resolve(&auto, Q35, silent, &servers), None);
}

#[test]
fn a_server_hears_what_it_costs_the_others() {
    let facts = [
        server(&KVM_INTEL, "IvyBridge-v1", "7.2 9.0"),
        server(&KVM_INTEL, "SandyBridge-v2", "7.2"),
    ];
    let named = named(&facts);
    let baseline = baselines(&all(&named)).remove(0);
    assert_eq!(baseline.note("srv1"), None);
    let note = baseline.note("srv2").unwrap();
    assert!(note.contains("SandyBridge-v2 instead of IvyBridge-v1"), "{note}");
    assert!(note.contains("it lacks avx-9") && note.contains("pc-q35-9.0"), "{note}");
}

proptest! {
    #[test]
    fn what_is_resolved_runs_on_every_server_of_the_class(
        bests in prop::collection::vec((0usize..35, prop::bool::ANY), 1..8),
    ) {
        let classes = [KVM_INTEL, KVM_AMD];
        let facts: Vec<HardwareFacts> = bests.iter().map(|(best, amd)| {
            let class = &classes[usize::from(*amd)];
            let ranking = ranking(class);
            server(class, ranking[*best % ranking.len()], "7.2 8.2")
        }).collect();
        let named = named(&facts);
        let servers = all(&named);
        for (n, at) in facts.iter().enumerate() {
            let found = resolve(&CpuModel::Auto, Machine::Q35, host(n), &servers).unwrap();
            if facts.len() == 1 {
                prop_assert_eq!(&found.cpu, GuestHardware::HOST_CPU);
                continue;
            }
            let same: Vec<_> = facts.iter().filter(|f| f.class == at.class).collect();
            prop_assert!(same.iter().all(|f| f.cpus.runs(&found.cpu)));
            // And nothing higher does.
            let ranking = ranking(&at.class);
            let rank = ranking.iter().position(|m| *m == found.cpu).unwrap();
            for higher in &ranking[rank + 1..] {
                prop_assert!(!same.iter().all(|f| f.cpus.runs(higher)));
            }
        }
    }
}
