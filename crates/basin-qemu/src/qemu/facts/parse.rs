//! Pure. QEMU's answers, as far as they matter.

use std::collections::BTreeMap;

use basin_model::hardware::{CpuClass, CpuModels, CpuVendor, HardwareFacts, MachineVersion};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::qemu::cmdline::Accelerator;

/// Models that no 64-bit guest of today is given, or that are not models.
const LEFT_OUT: &[&str] = &[
    "486",
    "athlon",
    "base",
    "core2duo",
    "coreduo",
    "kvm32",
    "n270",
    "pentium",
    "pentium2",
    "pentium3",
    "phenom",
    "qemu32",
    "KnightsMill",
];

/// Basin runs on nothing older, so no guest has an older machine.
const OLDEST: MachineVersion = MachineVersion::new(7, 2);

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cpu {
    name: String,
    migration_safe: Option<bool>,
    #[serde(default)]
    unavailable_features: Vec<String>,
    alias_of: Option<String>,
}

#[derive(Deserialize)]
struct Machine {
    name: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    result: Vec<T>,
}

#[derive(Deserialize)]
struct Id {
    id: Option<String>,
}

/// From the monitor's lines.
pub fn facts(lines: &str, accelerator: Accelerator, vendor: &str) -> Result<HardwareFacts, String> {
    let cpus: Vec<Cpu> = answer(lines, "cpus", "query-cpu-definitions")?;
    let machines: Vec<Machine> = answer(lines, "machines", "query-machines")?;
    let class = match accelerator {
        Accelerator::Tcg => CpuClass::Tcg,
        Accelerator::Kvm => CpuClass::Kvm { vendor: CpuVendor::from(vendor.to_owned()) },
    };
    let mut q35: Vec<MachineVersion> = machines
        .iter()
        // Distributions have some of their own, such as pc-q35-jammy.
        .filter_map(|machine| machine.name.strip_prefix("pc-q35-")?.parse().ok())
        .filter(|version| *version >= OLDEST)
        .collect();
    q35.sort_unstable();
    Ok(HardwareFacts { class, cpus: models(cpus), q35 })
}

fn models(cpus: Vec<Cpu>) -> CpuModels {
    // `host` and `max` are not safe to migrate: each server's is another.
    let safe = cpus.into_iter().filter(|cpu| cpu.migration_safe == Some(true));
    let kept = |name: &str| !LEFT_OUT.contains(&name.split("-v").next().unwrap_or(name));
    let mut aliases = BTreeMap::new();
    let mut models = Vec::new();
    for cpu in safe.filter(|cpu| kept(&cpu.name)) {
        match cpu.alias_of {
            Some(model) => drop(aliases.insert(cpu.name, model)),
            None => {
                let mut missing = cpu.unavailable_features;
                missing.sort_unstable();
                missing.dedup();
                models.push((cpu.name, missing));
            }
        }
    }
    CpuModels::new(models, aliases)
}

fn answer<T: DeserializeOwned>(lines: &str, id: &str, what: &str) -> Result<Vec<T>, String> {
    let is = |line: &&str| {
        serde_json::from_str::<Id>(line).is_ok_and(|found| found.id.as_deref() == Some(id))
    };
    let line = lines.lines().find(is).ok_or_else(|| format!("no answer to {what}"))?;
    match serde_json::from_str::<Answer<T>>(line) {
        Ok(answer) => Ok(answer.result),
        Err(_) => Err(format!("{what} was answered with {:.200}", line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUS: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"return": [
 {"name": "max", "typename": "t", "unavailable-features": [], "static": false, "migration-safe": false},
 {"name": "host", "typename": "t", "unavailable-features": [], "static": false, "migration-safe": false},
 {"name": "pentium3-v1", "typename": "t", "unavailable-features": [], "static": false, "migration-safe": true},
 {"name": "EPYC-v1", "typename": "t", "unavailable-features": ["topoext", "osvw", "topoext"], "static": false, "migration-safe": true, "deprecated": false},
 {"name": "EPYC", "alias-of": "EPYC-v1", "typename": "t", "unavailable-features": ["x"], "static": false, "migration-safe": true}
], "id": "cpus"}"#;
    const MACHINES: &str = r#"{"return": [{"name": "pc-q35-10.0", "cpu-max": 9}, {"name": "pc-q35-jammy"}, {"name": "microvm"}, {"name": "pc-q35-7.2", "alias": "q35"}, {"name": "pc-q35-4.0.1"}, {"name": "pc-i440fx-7.2"}], "id": "machines"}"#;

    fn lines(cpus: &str, machines: &str) -> String {
        // A monitor answers in one line.
        let cpus = cpus.replace("[\n", "[").replace(",\n", ",").replace("\n]", "]");
        format!("{cpus}\n{machines}\n")
    }

    #[test]
    fn what_matters_is_kept() {
        let text = lines(CPUS, MACHINES);
        let facts = facts(&text, Accelerator::Kvm, "AuthenticAMD").unwrap();
        assert_eq!(facts.class, CpuClass::Kvm { vendor: CpuVendor::Amd });
        assert_eq!(facts.cpus.missing("EPYC"), Some(vec!["osvw", "topoext"]));
        for left_out in ["max", "host", "pentium3-v1"] {
            assert_eq!(facts.cpus.missing(left_out), None, "{left_out}");
        }
        assert_eq!(facts.q35, [MachineVersion::new(7, 2), MachineVersion::new(10, 0)]);
    }

    #[test]
    fn what_is_no_answer_is_shown() {
        let check = |text: &str, expect: &str| {
            let error = facts(text, Accelerator::Tcg, "").unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("", "no answer to query-cpu-definitions");
        check(&lines(CPUS, ""), "no answer to query-machines");
        let refused = r#"{"error": {"class": "GenericError", "desc": "not today"}, "id": "cpus"}"#;
        check(&lines(refused, MACHINES), "not today");
    }
}
